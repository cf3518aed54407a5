"""Our layers and training steps in turn with those of PyTorch packages.

Needs torch, transformers, linformer, performer-pytorch, reformer-pytorch,
nystrom-attention and local-attention in the environment of effformer; what is
not installed is left out, by name. Each row is one pair: samples taken in turn,
the median of their ratios (ours / theirs), the lowest and the highest.

`share_of_matrix_rate` is the rate of our product operations over that of a
product of two 1024 x 1024 matrices in the same rounds. Causal exact attention
has none: what it skips is decided as it runs, so its operations are unknown.
"""

import json
import statistics
from collections.abc import Iterator

from experiments import peer_layers, peer_steps

MATRIX = 1024


def _seconds(call, clock, repeats: int) -> float:
  start = clock()
  for _ in range(repeats):
    call()
  return (clock() - start) / repeats


def _matrix_product():
  """A call of 2 MATRIX^3 operations."""
  import jax

  x = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
  product = jax.jit(lambda x: x @ x)
  return lambda: jax.block_until_ready(product(x))


def in_turn(ours, theirs, products, options, clock) -> dict:
  """The measured half of a row."""
  sides = (ours, theirs, _matrix_product())
  for call in sides:
    call()
  longest = max(_seconds(call, clock, 1) for call in sides[:2])
  repeats = max(1, min(50, int(0.05 / max(longest, 1e-5))))
  samples = [
    tuple(_seconds(call, clock, repeats) for call in sides)
    for _ in range(options.rounds)
  ]
  our, their, matrix = map(statistics.median, zip(*samples, strict=True))
  ratios = [a / b for a, b, _ in samples]
  share = ''
  if products:
    share = round(products / our / (2 * MATRIX**3 / matrix), 3)
  return {
    'ours_ms': round(1e3 * our, 4),
    'peer_ms': round(1e3 * their, 4),
    'ratio': round(statistics.median(ratios), 3),
    'ratio_low': round(min(ratios), 3),
    'ratio_high': round(max(ratios), 3),
    'rounds': options.rounds,
    'share_of_matrix_rate': share,
  }


def of_layer(peer, length: int, options, clock) -> Iterator[dict]:
  """Rows of one peer at one length."""
  import numpy as np

  shape = (options.batch, length, peer_layers.WIDTH)
  x_BTD = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  ours = peer_layers.our_calls(peer, x_BTD)
  theirs = peer_layers.torch_calls(peer, x_BTD)
  for name, (call, products) in ours.items():
    if peer.name == 'sdpa causal':
      products = None
    yield {
      'peer': peer.name,
      'package': peer.package,
      'mechanism': peer.mechanism,
      'pass': name,
      'length': length,
      'batch': options.batch,
      **in_turn(call, theirs[name], products, options, clock),
      'note': peer.note,
    }


def of_step(size, options, clock) -> Iterator[dict]:
  """The row of one size of encoder."""
  ours, theirs = peer_steps.our_step(size), peer_steps.torch_step(size)
  yield {
    'peer': f'encoder {size.name}',
    'package': 'torch',
    'mechanism': 'full',
    'pass': 'step',
    'length': peer_steps.LENGTH,
    'batch': peer_steps.BATCH,
    **in_turn(ours, theirs, None, options, clock),
    'note': f'{size.layers} layers of {size.width}, AdamW, no dropout',
  }


def _wanted(options, mechanism) -> bool:
  return options.mechanisms == 'all' or (
    mechanism in options.mechanisms.split(',')
  )


def run(options, clock) -> Iterator[dict]:
  """Rows of all peers that are installed, at all lengths, and of the steps."""
  import torch

  torch.manual_seed(0)
  if options.threads:
    torch.set_num_threads(options.threads)

  def shown(rows):
    for row in rows:
      row = {**row, 'torch': torch.__version__}
      print(json.dumps(row), flush=True)
      yield row

  is_beyond = set()
  for length in sorted(map(int, options.lengths.split(','))):
    for peer in peer_layers.PEERS:
      if not _wanted(options, peer.mechanism) or peer.name in is_beyond:
        continue
      if peer.missing():
        print(f'{peer.name}: left out, {peer.missing()} is not installed')
        continue
      for row in shown(of_layer(peer, length, options, clock)):
        if max(row['ours_ms'], row['peer_ms']) > 1e3 * options.max_seconds:
          is_beyond.add(peer.name)
        yield row
  if _wanted(options, 'full'):
    for size in peer_steps.SIZES:
      yield from shown(of_step(size, options, clock))
