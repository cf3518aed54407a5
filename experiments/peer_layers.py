"""The layers of PyTorch packages, and which of ours stands beside each.

Settings are the same on both sides: heads, widths, ranks, windows, features,
hashes. Differences that remain are said in `Peer.note`.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

WIDTH, HEADS = 256, 4
HEAD_WIDTH = WIDTH // HEADS
WINDOW = 64


@dataclasses.dataclass(frozen=True)
class Peer:
  """One package, and what of ours stands beside it.

  Attributes:
    name: of the row.
    package: to import.
    mechanism: ours.
    settings: of ours.
    make: length -> a module of torch that maps [B, T, D] to [B, T, D].
    note: what is not the same on both sides.
  """

  name: str
  package: str
  mechanism: str
  settings: dict[str, Any]
  make: Callable[[int], Any]
  note: str = ''

  def missing(self) -> str:
    """The package that is not there, or ''."""
    for package in ('torch', self.package):
      if importlib.util.find_spec(package) is None:
        return package
    return ''


def _projected(inner):
  """A torch layer of four projections around `inner(q, k, v)`, [B, H, T, K]."""
  import torch

  class Layer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False)
      self.out = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x_BTD):
      batch, length, _ = x_BTD.shape
      parts = self.qkv(x_BTD).view(batch, length, 3, HEADS, HEAD_WIDTH)
      q, k, v = parts.permute(2, 0, 3, 1, 4)
      o = inner(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH)
      return self.out(o)

  return Layer()


def _fused(is_causal):
  def make(length):
    from torch.nn import functional

    return _projected(
      lambda q, k, v: functional.scaled_dot_product_attention(
        q, k, v, is_causal=is_causal
      )
    )

  return make


def _linformer(length):
  import linformer

  return linformer.LinformerSelfAttention(
    WIDTH, length, k=64, heads=HEADS, dim_head=HEAD_WIDTH
  )


def _performer(is_causal):
  def make(length):
    import performer_pytorch

    return performer_pytorch.SelfAttention(
      WIDTH, causal=is_causal, heads=HEADS, dim_head=HEAD_WIDTH,
      nb_features=256,
    ).eval()  # fmt: skip

  return make


def _nystromformer(length):
  import nystrom_attention

  return nystrom_attention.NystromAttention(
    WIDTH, dim_head=HEAD_WIDTH, heads=HEADS, num_landmarks=64
  )


def _local(is_causal):
  def make(length):
    import local_attention

    return local_attention.LocalMHA(
      dim=WIDTH, window_size=WINDOW, dim_head=HEAD_WIDTH, heads=HEADS,
      causal=is_causal, use_rotary_pos_emb=False,
    )  # fmt: skip

  return make


def _reformer(length):
  import reformer_pytorch

  return reformer_pytorch.LSHSelfAttention(
    WIDTH, heads=HEADS, bucket_size=64, n_hashes=2, dim_head=HEAD_WIDTH
  )


def _first_output(module, call):
  import torch

  class First(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.inner = module

    def forward(self, x_BTD):
      return call(self.inner, x_BTD)[0]

  return First()


def _longformer(length):
  import torch
  from transformers import LongformerConfig
  from transformers.models.longformer import modeling_longformer

  config = LongformerConfig(
    hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=1,
    attention_window=[128], attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  module = modeling_longformer.LongformerSelfAttention(config, 0)
  mask_BT = torch.zeros(1, length)
  none_BT = torch.zeros(1, length, dtype=torch.bool)
  return _first_output(
    module,
    lambda inner, x_BTD: inner(
      x_BTD,
      attention_mask=mask_BT.expand(x_BTD.shape[0], -1),
      is_index_masked=none_BT.expand(x_BTD.shape[0], -1),
      is_index_global_attn=none_BT.expand(x_BTD.shape[0], -1),
      is_global_attn=False,
    ),
  )


def _fnet(length):
  from transformers import FNetConfig
  from transformers.models.fnet import modeling_fnet

  config = FNetConfig(hidden_size=WIDTH, tpu_short_seq_length=length)
  module = modeling_fnet.FNetBasicFourierTransform(config)
  return _first_output(module, lambda inner, x_BTD: inner(x_BTD))


PEERS = (
  Peer('sdpa', 'torch', 'full', {}, _fused(False)),
  Peer('sdpa causal', 'torch', 'full', {'causal': True}, _fused(True)),
  Peer(
    'linformer', 'linformer', 'linformer',
    {'rank': 64, 'sharing': 'headwise'}, _linformer,
    'the package has a bias in its output',
  ),
  Peer(
    'performer', 'performer_pytorch', 'performer', {'num_features': 256},
    _performer(False), 'the package has a bias in its output',
  ),
  Peer(
    'performer causal', 'performer_pytorch', 'performer',
    {'num_features': 256, 'causal': True}, _performer(True),
    'the fallback of the package without its CUDA kernel',
  ),
  Peer(
    'nystrom', 'nystrom_attention', 'nystromformer', {'rank': 64},
    _nystromformer,
  ),
  Peer(
    'local', 'local_attention', 'local', {'window': WINDOW}, _local(False),
    'the package has blocks of the window and their neighbours, ours a band',
  ),
  Peer(
    'local causal', 'local_attention', 'local',
    {'window': WINDOW, 'causal': True}, _local(True),
    'the package has blocks of the window and their neighbours, ours a band',
  ),
  Peer(
    'lsh', 'reformer_pytorch', 'reformer', {'num_hashes': 2}, _reformer,
    'buckets: the package takes length / 64',
  ),
  Peer(
    'longformer', 'transformers', 'longformer',
    {'attention_window': 128, 'global_tokens': 0}, _longformer,
    'the package has no output projection',
  ),
  Peer('fnet', 'transformers', 'fnet', {}, _fnet),
)  # fmt: skip


def torch_calls(peer: Peer, x_BTD) -> dict[str, Callable[[], Any]]:
  """pass -> a call of the package's layer."""
  import torch

  module = peer.make(x_BTD.shape[1])
  x = torch.tensor(x_BTD)
  with_gradient = x.clone().requires_grad_()

  def forward():
    with torch.no_grad():
      return module(x)

  def gradient():
    module.zero_grad(set_to_none=True)
    with_gradient.grad = None
    (module(with_gradient) * x).sum().backward()

  return {'forward': forward, 'gradient': gradient}


def our_calls(peer: Peer, x_BTD) -> dict[str, tuple[Callable[[], Any], float]]:
  """pass -> a call of our layer, compiled, and its product operations."""
  import jax
  import numpy as np

  from effformer import attention, cost
  from effformer.shapes import Tokens

  known = attention.settings(peer.mechanism)
  shared = {'num_heads': HEADS, 'head_width': HEAD_WIDTH}
  settings = {k: v for k, v in shared.items() if k in known} | peer.settings
  if 'max_length' in known:
    settings['max_length'] = x_BTD.shape[1]
  module = attention.build(peer.mechanism, **settings)
  tokens = Tokens.from_lengths(
    np.full(x_BTD.shape[0], x_BTD.shape[1]), x_BTD.shape[1]
  )
  x = jax.numpy.asarray(x_BTD)
  init = jax.jit(functools.partial(module.init, tokens=tokens))
  variables = init(jax.random.key(0), x)

  def forward(variables, x_BTD):
    return module.apply(variables, x_BTD, tokens=tokens)

  def loss(variables, x_BTD):
    return (forward(variables, x_BTD) * x_BTD).sum()

  gradient = jax.grad(loss, argnums=(0, 1))
  calls = {}
  for name, function in (('forward', forward), ('gradient', gradient)):
    compiled = jax.jit(function).lower(variables, x).compile()
    products = cost.count(function, variables, x).products
    calls[name] = functools.partial(_blocking, compiled, variables, x), products
  return calls


def _blocking(compiled, *inputs):
  import jax

  return jax.block_until_ready(compiled(*inputs))
