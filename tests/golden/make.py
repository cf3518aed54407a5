"""Makes the golden files from public PyTorch implementations; see README.md.

One function a mechanism. Each builds an oracle, gives it random weights, and
records what it does to random tokens, with the weights under our names and in
our shapes.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
MAKERS = {}

# Sizes, where an oracle leaves the choice.
B, T, D, H = 2, 24, 12, 3
K = D // H
LENGTHS = (T, T - 7)


def maker(function):
  MAKERS[function.__name__] = function
  return function


def normal(*shape, seed):
  values = np.random.default_rng([seed, *shape]).normal(size=shape)
  return torch.tensor(values, dtype=torch.float32)


def stir(module, seed=1):
  """Random weights, large enough for attention to be far from uniform."""
  with torch.no_grad():
    for number, parameter in enumerate(module.parameters()):
      noise = normal(*parameter.shape, seed=100 * seed + number)
      if parameter.ndim < 2:
        parameter.add_(0.3 * noise)
      else:
        fan_in = int(np.prod(parameter.shape[1:]))
        parameter.copy_(1.5 * noise * fan_in**-0.5)
  return module.eval()


def heads_in(linear, heads):
  """torch [H K, D] -> our kernel [D, H, K] and bias [H, K]."""
  width = linear.weight.shape[1]
  bias = linear.bias
  if bias is None:
    bias = torch.zeros(linear.weight.shape[0])
  return {
    'kernel': linear.weight.T.reshape(width, heads, -1),
    'bias': bias.reshape(heads, -1),
  }


def heads_out(linear, heads):
  """torch [D, H V] -> our kernel [H, V, D] and bias [D]."""
  bias = linear.bias
  if bias is None:
    bias = torch.zeros(linear.weight.shape[0])
  return {
    'kernel': linear.weight.T.reshape(heads, -1, linear.weight.shape[0]),
    'bias': bias,
  }


def without_bias(*projections):
  return [{'kernel': projection['kernel']} for projection in projections]


def four(query, key, value, out, heads=H, sources=None, use_bias=True):
  """The standard projections of ours."""
  sources = sources or heads
  projections = [
    heads_in(query, heads), heads_in(key, sources), heads_in(value, sources),
    heads_out(out, heads),
  ]  # fmt: skip
  if not use_bias:
    projections = without_bias(*projections)
  return dict(zip(('query', 'key', 'value', 'out'), projections, strict=True))


def split(x, heads=H):
  """[B, T, H K] -> [B, H, T, K]."""
  return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x):
  return x.transpose(1, 2).flatten(-2)


def projections(seed, heads=H, bias=True):
  """Four linear layers for oracles that have none of their own."""
  layers = torch.nn.ModuleList(
    [torch.nn.Linear(D, D, bias=bias) for _ in range(4)]
  )
  return stir(layers, seed)


def keep_of(lengths, length):
  return torch.arange(length)[None] < torch.tensor(lengths)[:, None]


def rows_alone(oracle):
  """An oracle without a mask -> one that is given each row at its length."""

  def padded(x, lengths):
    rows = [
      F.pad(oracle(row[None, :n])[0], (0, 0, 0, x.shape[1] - n))
      for row, n in zip(x, lengths, strict=True)
    ]
    return torch.stack(rows)

  return padded


def unmasked(oracle):
  """An oracle without a mask, for rows of full length."""

  def whole(x, lengths):
    assert set(lengths) == {x.shape[1]}
    return oracle(x)

  return whole


def flat(tree, prefix):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}/{name}')
    else:
      yield f'{prefix}/{name}', value


def numbers(value):
  if torch.is_tensor(value):
    value = value.detach().numpy()
  return value.astype(np.float32) if value.dtype == np.float64 else value


def record(
  file, mechanism, oracle, params, settings, *, packages, source,
  shape=(B, T, D), lengths=None, context=None, constant=None, note='',
  dtype=torch.float32,
):  # fmt: skip
  """Runs `oracle(x, lengths)` and its gradient, and writes one file."""
  lengths = tuple(lengths or (shape[1],) * shape[0])
  keep = keep_of(lengths, shape[1])[..., None]
  x = normal(*shape, seed=2).to(dtype).requires_grad_()
  cotangent = torch.where(keep, normal(*shape, seed=3), 0.0)
  arrays = {}
  if context is not None:
    context = context.requires_grad_()
    y = oracle(x, lengths, context)
    arrays['context'] = context
  else:
    y = oracle(x, lengths)
  assert y.shape == x.shape, (file, y.shape)
  y = torch.where(keep, y, 0.0)
  (y * cotangent).sum().backward()
  arrays |= {'x': x, 'cotangent': cotangent, 'y': y, 'dx': x.grad}
  arrays['lengths'] = np.array(lengths, np.int32)
  if context is not None:
    arrays['dcontext'] = context.grad
  if constant is not None:
    arrays['constant'] = constant
  arrays |= dict(flat(params, 'params'))
  write(file, arrays, mechanism, settings, packages, source, note)


def write(file, arrays, mechanism, settings, packages, source, note=''):
  about = {
    'mechanism': mechanism,
    'settings': settings,
    'oracle': source,
    'note': note,
    'versions': {
      name: importlib.metadata.version(name)
      for name in ('torch', 'numpy', *packages)
    },
  }
  arrays = {name: numbers(value) for name, value in arrays.items()}
  for name, value in arrays.items():
    assert np.isfinite(value).all(), (file, name)
  np.savez_compressed(
    HERE / f'{file}.npz', about=json.dumps(about, sort_keys=True), **arrays
  )


def naive(name):
  """A `naive.py` of fla, by its path: importing fla itself needs Triton.

  What such a file takes from fla itself serves packed rows only.
  """
  for stub in ('fla.ops.utils', 'fla.ops.utils.pooling'):
    sys.modules[stub] = mock.MagicMock()
  root = pathlib.Path(importlib.util.find_spec('fla').origin).parent
  spec = importlib.util.spec_from_file_location(
    f'naive_{name}', root / 'ops' / name / 'naive.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@maker
def linformer():
  from linformer.linformer import LinformerSelfAttention

  module = LinformerSelfAttention(D, seq_len=T + 4, k=5, heads=H)
  stir(module)
  params = four(module.to_q, module.to_k, module.to_v, module.to_out)
  mixes = {'mix_keys': module.proj_k.T, 'mix_values': module.proj_v.T}
  settings = {
    'num_heads': H, 'rank': 5, 'max_length': T + 4, 'use_bias': True,
    'sharing': 'headwise',
  }  # fmt: skip
  save = functools.partial(
    record, mechanism='linformer', packages=['linformer'],
    source='linformer LinformerSelfAttention',
  )  # fmt: skip
  save(
    'linformer', oracle=rows_alone(module), params=params | mixes,
    settings=settings, lengths=LENGTHS,
    note='the oracle has no mask: each row alone, at its length',
  )  # fmt: skip
  save(
    'linformer-context',
    oracle=lambda x, lengths, context: module(x, context=context),
    params=params | mixes, settings=settings,
    context=normal(B, T + 1, D, seed=4),
  )  # fmt: skip
  with torch.no_grad():
    module.proj_v.copy_(module.proj_k)
  save(
    'linformer-key_value', oracle=unmasked(module),
    params=params | {'mix_keys': mixes['mix_keys']},
    settings=settings | {'sharing': 'key_value'},
  )  # fmt: skip


@maker
def local():
  from local_attention import LocalAttention

  save = functools.partial(
    record, mechanism='local', lengths=LENGTHS, packages=['local-attention']
  )
  settings = {'num_heads': H, 'use_bias': True, 'window': 6, 'block': 6}
  for file, causal, rotary in (
    ('local', False, False), ('local-causal', True, False),
    ('local-causal-rotary', True, True),
  ):  # fmt: skip
    band = LocalAttention(
      5, causal=causal, autopad=True, exact_windowsize=True,
      use_rotary_pos_emb=rotary, dim=K,
    )  # fmt: skip
    query, key, value, out = projections(seed=5)

    def oracle(x, lengths, band=band, layers=(query, key, value, out)):
      query, key, value, out = layers
      heads = (split(layer(x)) for layer in (query, key, value))
      return out(merge(band(*heads, mask=keep_of(lengths, x.shape[1]))))

    save(
      file, oracle=oracle, params=four(query, key, value, out),
      settings=settings | {'causal': causal, 'rotary': rotary},
      source='local-attention LocalAttention, exact_windowsize',
      note='its window counts distances up to the window, ours less than',
    )  # fmt: skip

  turn = rotation(K)
  index = torch.arange(T)
  near = (index[:, None] - index[None]).abs() < 6
  keep = keep_of(LENGTHS, T)[:, None, None] & near

  def dense(x, lengths):
    q, k, v = (split(layer(x)) for layer in (query, key, value))
    return out(merge(attend(turn(q), turn(k), v, keep)))

  save(
    'local-rotary', oracle=dense, params=four(query, key, value, out),
    settings=settings | {'rotary': True},
    source='torch scaled_dot_product_attention with the mask of a band',
    note='LocalAttention turns queries as if they stood in the last block '
    'that they see, which is theirs only where it does not look forward',
  )  # fmt: skip


def rotation(width):
  """Rotary positions of [B, H, T, width], as Llama has them."""
  from transformers import LlamaConfig
  from transformers.models.llama import modeling_llama

  config = LlamaConfig(hidden_size=width, num_attention_heads=1)
  angles = modeling_llama.LlamaRotaryEmbedding(config)

  def turn(x):
    cos, sin = angles(x, torch.arange(x.shape[2])[None])
    return modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0]

  return turn


def attend(q, k, v, keep, bias=None):
  """torch's own attention over admissible pairs; [B, H, T, K]."""
  mask = torch.zeros(keep.shape).masked_fill(~keep, -1e9)
  return F.scaled_dot_product_attention(
    q, k, v, attn_mask=mask if bias is None else mask + bias
  )


@maker
def full():
  from transformers import LlamaConfig, T5Config
  from transformers.models.bloom import modeling_bloom
  from transformers.models.llama import modeling_llama
  from transformers.models.t5 import modeling_t5

  keep = keep_of(LENGTHS, T)[:, None, None]
  past = keep & torch.ones(T, T, dtype=torch.bool).tril()
  save = functools.partial(
    record, mechanism='full', lengths=LENGTHS, packages=['transformers']
  )

  query, key, value, out = projections(seed=6)

  def dense(x, lengths):
    heads = (split(layer(x)) for layer in (query, key, value))
    return out(merge(attend(*heads, keep)))

  save(
    'full', oracle=dense, params=four(query, key, value, out),
    settings={'num_heads': H, 'use_bias': True, 'block': 8},
    source='torch scaled_dot_product_attention',
  )  # fmt: skip

  config = LlamaConfig(
    hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
    attn_implementation='sdpa',
  )  # fmt: skip
  llama = stir(modeling_llama.LlamaAttention(config, 0))
  turn = modeling_llama.LlamaRotaryEmbedding(config)

  def rotated(x, lengths):
    angles = turn(x, torch.arange(T)[None])
    mask = torch.zeros(past.shape).masked_fill(~past, -1e9)
    return llama(x, angles, mask)[0]

  save(
    'full-rotary', oracle=rotated, shape=(B, T, 16),
    params=four(
      llama.q_proj, llama.k_proj, llama.v_proj, llama.o_proj, 4, 2, False
    ),
    settings={
      'num_heads': 4, 'num_kv_heads': 2, 'causal': True, 'rotary': True,
      'block': 8,
    },
    source='transformers LlamaAttention, with grouped queries',
  )  # fmt: skip

  for causal in (False, True):
    config = T5Config(
      d_model=D, d_kv=K, num_heads=H, is_decoder=causal, dropout_rate=0.0,
      attn_implementation='eager',
    )  # fmt: skip
    t5 = stir(modeling_t5.T5Attention(config, True, 0))
    t5.relative_attention_bias.weight.data *= 3
    seen = past if causal else keep

    def biased(x, lengths, t5=t5, seen=seen):
      bias = t5.compute_bias(x.shape[1], x.shape[1])
      mask = torch.zeros(seen.shape).masked_fill(~seen, -1e9)
      return t5(x, position_bias=bias + mask)[0]

    params = four(t5.q, t5.k, t5.v, t5.o, use_bias=False)
    params['query']['kernel'] = params['query']['kernel'] * K**0.5
    params['relative_bias'] = t5.relative_attention_bias.weight.T
    save(
      'full-t5-causal' if causal else 'full-t5', oracle=biased, params=params,
      settings={'num_heads': H, 'causal': causal, 'relative_bias': 't5',
                'block': 8},
      source='transformers T5Attention',
      note='its logits are not scaled: our query kernel is sqrt(K) times its',
    )  # fmt: skip

  query, key, value, out = projections(seed=7)
  # Its bias is slope times the index of the key, which is the same under a
  # softmax as slope times the distance.
  alibi = modeling_bloom.build_alibi_tensor(
    torch.ones(B, T), H, torch.float32
  ).reshape(B, H, 1, T)

  def sloped(x, lengths):
    heads = (split(layer(x)) for layer in (query, key, value))
    return out(merge(attend(*heads, past, alibi)))

  save(
    'full-alibi-causal', oracle=sloped, params=four(query, key, value, out),
    settings={
      'num_heads': H, 'use_bias': True, 'causal': True,
      'relative_bias': 'alibi', 'block': 8,
    },
    source='torch scaled_dot_product_attention, transformers Bloom biases',
  )  # fmt: skip


@maker
def fnet():
  from transformers import FNetConfig
  from transformers.models.fnet import modeling_fnet

  config = FNetConfig(hidden_size=D, use_tpu_fourier_optimizations=False)
  module = modeling_fnet.FNetBasicFourierTransform(config)

  def oracle(x, lengths):
    return module(x * keep_of(lengths, x.shape[1])[..., None])[0]

  record(
    'fnet', 'fnet', oracle, {}, {}, lengths=LENGTHS, packages=['transformers'],
    shape=(B, T + 1, D), source='transformers FNetBasicFourierTransform',
  )  # fmt: skip


@maker
def performer():
  from performer_pytorch import performer_pytorch as oracles

  num_features = 10
  omega = oracles.gaussian_orthogonal_random_matrix(num_features, K)

  def positive(q, k):
    kernel = functools.partial(
      oracles.softmax_kernel, projection_matrix=omega, eps=0.0
    )
    return kernel(q, is_query=True), kernel(k, is_query=False)

  def relu(q, k):
    return [
      oracles.generalized_kernel(x, projection_matrix=omega) for x in (q, k)
    ]

  past = functools.partial(
    oracles.causal_linear_attention_noncuda, eps=0.0, chunk_size=4
  )
  for file, kernel, causal in (
    ('performer', positive, False), ('performer-causal', positive, True),
    ('performer-relu', relu, False), ('performer-relu-causal', relu, True),
  ):  # fmt: skip
    layers = projections(seed=9)

    def oracle(x, layers=layers, kernel=kernel, causal=causal):
      query, key, value, out = layers
      q, k, v = (split(layer(x)) for layer in (query, key, value))
      mix = past if causal else oracles.linear_attention
      return out(merge(mix(*kernel(q, k), v)))

    record(
      file, 'performer', rows_alone(oracle), four(*layers),
      {
        'num_heads': H, 'use_bias': True, 'causal': causal, 'chunk': 5,
        'num_features': num_features, 'features': kernel.__name__,
      },
      lengths=LENGTHS, packages=['performer-pytorch'],
      constant=omega.expand(H, -1, -1),
      source='performer-pytorch softmax_kernel, generalized_kernel, '
      'linear_attention',
      note='eps is 0 here, as in ours: 1e-4 in the features is no longer the '
      'estimate. It has no mask: each row alone, at its length. The constant '
      'is its Omega, which ours is given.',
    )  # fmt: skip


@maker
def reformer():
  from reformer_pytorch import reformer_pytorch
  from transformers import ReformerConfig
  from transformers.models.reformer import modeling_reformer

  # Chunks must be full, at the length of each row.
  block = 4
  for file, causal, rounds, buckets in (
    ('reformer', False, 2, 6), ('reformer-causal', True, 3, 4),
    ('reformer-many-buckets', False, 2, [6, 22]),
  ):  # fmt: skip
    config = ReformerConfig(
      hidden_size=D, num_attention_heads=H, attention_head_size=K,
      lsh_attn_chunk_length=block, lsh_num_chunks_before=1,
      lsh_num_chunks_after=0, num_hashes=rounds, num_buckets=buckets,
      is_decoder=causal, attn_layers=['lsh'],
    )  # fmt: skip
    module = stir(modeling_reformer.LSHSelfAttention(config, 0), seed=10)
    out = projections(seed=10, bias=False)[3]
    module, out = module.double(), out.double()
    half = int(np.sum(buckets)) // 2
    directions = normal(H, K, rounds, half, seed=11).double()

    def oracle(x, module=module, out=out, given=directions):
      with replaced(torch, 'randn', lambda *a, **k: given):
        return out(module(x).hidden_states)

    record(
      file, 'reformer', rows_alone(oracle),
      shared_projections(module.query_key, module.value, out),
      {
        'num_heads': H, 'causal': causal, 'block': block, 'num_hashes': rounds,
        'num_buckets': int(np.prod(buckets)),
      },
      shape=(B, 28, D), lengths=(28, 20), packages=['transformers'],
      dtype=torch.float64, constant=directions.transpose(1, 2),
      source='transformers LSHSelfAttention',
      note='It sorts padding to the end of each round, ours behind all: each '
      'row alone, at its length. In float64, since float32 knows its -1e5 for '
      'a token itself to 4e-3. The constant are its random directions.',
    )  # fmt: skip

  for file, causal, same_bucket, count_once in (
    ('reformer-scaled', False, False, False),
    ('reformer-same-bucket', False, True, False),
    ('reformer-count-once', False, False, True),
    ('reformer-both', True, True, True),
  ):  # fmt: skip
    lsh = reformer_pytorch.LSHAttention(
      bucket_size=block, n_hashes=3, causal=causal,
      attend_across_buckets=not same_bucket,
      allow_duplicate_attention=not count_once,
    )  # fmt: skip
    layers = projections(seed=12, bias=False)[:3].double()
    is_wrong = count_once and not same_bucket
    # Its number of buckets is the number of chunks.
    directions = normal(1, K, 3, 3, seed=13).double()

    def shared(x, lsh=lsh, layers=layers, given=directions, dense=is_wrong):
      query_key, value, out = layers
      q, v = (split(layer(x)).flatten(0, 1) for layer in (query_key, value))
      with replaced(torch, 'randn', lambda *a, **k: given):
        if dense:
          o = union_of_windows(q, v, lsh.hash_vectors(6, q), block)
        else:
          o = lsh(q, v)[0]
      return out(merge(o.unflatten(0, (-1, H))))

    source = 'reformer-pytorch LSHAttention'
    note = ''
    if is_wrong:
      source = 'softmax over the union of the windows of all rounds'
      note = (
        'LSHAttention counts pairs by rounds, and so a pair of copies from two '
        'rounds in the first window of a round 0 times: log 1e-9 is taken off '
        'its logit'
      )
    record(
      file, 'reformer', unmasked(shared), shared_projections(*layers),
      {
        'num_heads': H, 'causal': causal, 'block': block, 'num_hashes': 3,
        'num_buckets': 6, 'scaled': True, 'same_bucket': same_bucket,
        'count_once': count_once,
      },
      shape=(B, 24, D), packages=['reformer-pytorch'], dtype=torch.float64,
      constant=directions.transpose(1, 2).expand(H, -1, -1, -1),
      source=source, note=note,
    )  # fmt: skip


def shared_projections(query_key, value, out):
  made = heads_in(query_key, H), heads_in(value, H), heads_out(out, H)
  names = ('query_key', 'value', 'out')
  return dict(zip(names, without_bias(*made), strict=True))


def union_of_windows(q, v, bucket, block):
  """Softmax over all keys that share a window with the query, itself last.

  Where no pair counts more than once, rounds merge to one softmax.

  Args:
    q: queries and keys before their norm, [N, T, K].
    v: values.
    bucket: of all copies, [N, R T], those of a round larger than all before.
    block: tokens of a chunk.
  """
  length, copies = q.shape[1], bucket.shape[1]
  order = (bucket * length + torch.arange(copies) % length).argsort(-1)
  chunk = order.argsort(-1) // block
  num_chunks = copies // block
  # [N, copies of queries, copies of keys]
  is_own = chunk[:, :, None] == chunk[:, None]
  is_before = (chunk[:, :, None] - 1) % num_chunks == chunk[:, None]
  pairs = (is_own | is_before).unflatten(1, (-1, length))
  seen = pairs.unflatten(-1, (-1, length)).any(1).any(2)
  logits = q @ F.normalize(q, dim=-1).mT * q.shape[-1] ** -0.5
  is_self = torch.eye(length, dtype=torch.bool)
  logits = logits.masked_fill(is_self, -1e5).masked_fill(~seen, -1e9)
  return logits.softmax(-1) @ v


@contextlib.contextmanager
def replaced(module, name, value):
  old = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, old)


@maker
def longformer():
  from transformers import LongformerConfig
  from transformers.models.longformer import modeling_longformer

  window = 6
  config = LongformerConfig(
    hidden_size=D, num_attention_heads=H, attention_window=[window],
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  for file, num_global in (('longformer-window', 0), ('longformer', 2)):
    module = stir(
      modeling_longformer.LongformerSelfAttention(config, 0), seed=14
    )
    out = projections(seed=15)[3]

    def oracle(x, lengths, module=module, out=out, num_global=num_global):
      keep = keep_of(lengths, x.shape[1])
      is_global = torch.zeros_like(keep)
      is_global[:, :num_global] = True
      mask = torch.where(keep, 0.0, -1e4)
      mask = torch.where(is_global, 1e4, mask)
      return out(
        module(
          x, attention_mask=mask, is_index_masked=~keep,
          is_index_global_attn=is_global, is_global_attn=num_global > 0,
        )[0]
      )  # fmt: skip

    params = four(module.query, module.key, module.value, out)
    if num_global:
      params |= {
        f'{name}_global': heads_in(getattr(module, f'{name}_global'), H)
        for name in ('query', 'key', 'value')
      }
    record(
      file, 'longformer', oracle, params,
      {'num_heads': H, 'use_bias': True, 'attention_window': window,
  'global_tokens': num_global, 'block': 5},
      lengths=LENGTHS, packages=['transformers'],
      source='transformers LongformerSelfAttention',
    )  # fmt: skip


@maker
def retnet():
  from yet_another_retnet.retention import MultiScaleRetention

  # Its decays are those of the paper for 5 heads.
  heads, width = 5, 40
  module = MultiScaleRetention(
    width, heads, relative_position=False, group_norm_eps=1e-5
  )
  stir(module, seed=22)

  def whole(x):
    return module.forward_parallel(x, x, x)[0]

  record(
    'retnet', 'retnet', rows_alone(whole),
    four(module.q_proj, module.k_proj, module.v_proj, module.out_proj, heads)
    | {'gate': heads_in(module.g_proj, heads)},
    {'num_heads': heads, 'use_bias': True, 'causal': True, 'chunk': 5,
     'value_width': width // heads},
    shape=(B, 14, width), lengths=(14, 9), packages=['yet-another-retnet'],
    source='yet-another-retnet MultiScaleRetention',
    note='no mask: each row alone, at its length',
  )  # fmt: skip

  retention = naive('retention').naive_retention
  turn = rotation(K)
  query, key, _, _ = projections(seed=23, bias=False)
  value, gate = (torch.nn.Linear(D, 2 * D, bias=False) for _ in range(2))
  out = torch.nn.Linear(2 * D, D, bias=False)
  stir(torch.nn.ModuleList([value, gate, out]), seed=24)

  def rotated(x):
    q, k, v = (split(layer(x)) for layer in (query, key, value))
    o = merge(F.layer_norm(retention(turn(q), turn(k), v), (2 * K,)))
    return out(o * F.silu(gate(x)))

  record(
    'retnet-rotary', 'retnet', rows_alone(rotated),
    four(query, key, value, out, use_bias=False)
    | {'gate': without_bias(heads_in(gate, H))[0]},
    {'num_heads': H, 'causal': True, 'rotary': True, 'chunk': 5},
    lengths=LENGTHS, packages=['fla-core', 'transformers'],
    source='fla-core naive_retention, Llama rotary positions',
    note='no mask: each row alone, at its length',
  )  # fmt: skip


def swish_gated(o, gate, scale=None, eps=1e-5):
  """RMS norm of each head [B, T, H, V], times its gate."""
  o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps)
  if scale is not None:
    o = o * scale
  return o.flatten(-2) * F.silu(gate)


@maker
def gla():
  recurrent = naive('gla').naive_recurrent_gla
  key_width, value_width, rank = 2, 4, 3
  widths = {
    'query': H * key_width, 'key': H * key_width, 'value': H * value_width,
    'gate': H * value_width, 'decay_low': rank,
  }  # fmt: skip
  layers = torch.nn.ModuleDict(
    {name: torch.nn.Linear(D, n, bias=False) for name, n in widths.items()}
  )
  layers['decay'] = torch.nn.Linear(rank, H * key_width)
  layers['out'] = torch.nn.Linear(H * value_width, D, bias=False)
  stir(layers, seed=25)
  scale = 1 + 0.3 * normal(value_width, seed=26)

  def oracle(x):
    decay = F.logsigmoid(layers['decay'](layers['decay_low'](x))) / 16
    streams = (layers[name](x) for name in ('query', 'key', 'value'))
    q, k, v, decay = (y.unflatten(-1, (H, -1)) for y in (*streams, decay))
    o, _ = recurrent(q, k, v, decay)
    return layers['out'](swish_gated(o, layers['gate'](x), scale))

  params = four(
    *(layers[name] for name in ('query', 'key', 'value', 'out')),
    use_bias=False,
  )
  params |= {
    'gate': without_bias(heads_in(layers['gate'], H))[0],
    'decay_low': {'kernel': layers['decay_low'].weight.T},
    'decay': heads_in(layers['decay'], H),
    'norm': scale,
  }
  record(
    'gla', 'gla', rows_alone(oracle), params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'gate_rank': rank},
    lengths=LENGTHS, packages=['fla-core'],
    source='fla-core naive_recurrent_gla, with the layer of the paper in torch',
    note='no mask: each row alone, at its length',
  )  # fmt: skip


@maker
def gated_deltanet():
  from transformers import Qwen3NextConfig
  from transformers.models.qwen3_next import modeling_qwen3_next

  key_width, value_width, taps = 4, 6, 4
  config = Qwen3NextConfig(
    hidden_size=D, linear_num_value_heads=H, linear_num_key_heads=H,
    linear_key_head_dim=key_width, linear_value_head_dim=value_width,
    linear_conv_kernel_dim=taps, rms_norm_eps=1e-5, num_hidden_layers=1,
    layer_types=['linear_attention'],
  )  # fmt: skip
  module = stir(modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, 0), seed=27)
  with torch.no_grad():
    module.A_log.copy_(normal(H, seed=28))
    module.dt_bias.copy_(normal(H, seed=29) - 1)
  # Rows of its first projection: for each head q, k, v, gate.
  joint = module.in_proj_qkvz.weight.T.reshape(D, H, -1)
  q, k, v, gate = joint.split([key_width] * 2 + [value_width] * 2, dim=-1)
  rate, decay = module.in_proj_ba.weight.T.reshape(D, H, 2).unbind(-1)
  params = {
    'query': {'kernel': q}, 'key': {'kernel': k}, 'value': {'kernel': v},
    'gate': {'kernel': gate}, 'rate': {'kernel': rate},
    'step': {'kernel': decay}, 'step_bias': module.dt_bias,
    'log_rate': module.A_log, 'norm': module.norm.weight,
    'conv': module.conv1d.weight[:, 0].flip(-1).T,
    'out': without_bias(heads_out(module.out_proj, H))[0],
  }  # fmt: skip
  record(
    'gated_deltanet', 'gated_deltanet',
    lambda x, lengths: module(x, attention_mask=keep_of(lengths, T)),
    params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'head_width': key_width,
     'value_width': value_width, 'taps': taps},
    lengths=LENGTHS, packages=['transformers'],
    source='transformers Qwen3NextGatedDeltaNet',
  )  # fmt: skip


@maker
def deltanet():
  recurrent = naive('delta_rule').delta_rule_recurrence
  taps = 3
  layers = projections(seed=47, bias=False)
  rate = torch.nn.Linear(D, H, bias=False)
  conv = torch.nn.Conv1d(3 * D, 3 * D, taps, groups=3 * D, bias=False)
  stir(torch.nn.ModuleList([rate, conv]), seed=48)
  scale = 1 + 0.3 * normal(K, seed=49)

  def oracle(x):
    qkv = torch.cat([layer(x) for layer in layers[:3]], dim=-1)
    qkv = F.silu(conv(F.pad(qkv.mT, (taps - 1, 0))).mT)
    q, k, v = (split(y) for y in qkv.split(D, dim=-1))
    q, k = (y * (y.square().sum(-1, True) + 1e-6).rsqrt() for y in (q, k))
    # Rates up to 2, as those of negative eigenvalues.
    o, _ = recurrent(q, k, v, 2 * rate(x).mT.sigmoid())
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * scale
    return layers[3](merge(o))

  params = four(*layers, use_bias=False)
  params |= {
    'rate': {'kernel': rate.weight.T}, 'norm': scale,
    'conv': conv.weight[:, 0].flip(-1).T,
  }  # fmt: skip
  record(
    'gated_deltanet-plain', 'gated_deltanet', rows_alone(oracle), params,
    {'num_heads': H, 'causal': True, 'chunk': 5, 'delta': 'plain',
     'max_rate': 2.0, 'taps': taps},
    lengths=LENGTHS, packages=['fla-core'],
    source='fla-core delta_rule_recurrence, with the layer in torch',
    note='no mask: each row alone, at its length',
  )  # fmt: skip


@maker
def mamba2():
  from transformers import Mamba2Config
  from transformers.models.mamba2 import modeling_mamba2

  state, width, taps = 5, 6, 4
  for file, heads, groups in (('mamba2', 4, 1), ('mamba2-groups', 4, 2)):
    config = Mamba2Config(
      hidden_size=D, num_heads=heads, head_dim=width, state_size=state,
      expand=2, n_groups=groups, conv_kernel=taps, use_conv_bias=True,
      chunk_size=8, layer_norm_epsilon=1e-5, num_hidden_layers=1,
    )  # fmt: skip
    module = stir(modeling_mamba2.Mamba2Mixer(config, 0), seed=30)
    with torch.no_grad():
      module.A_log.copy_(normal(heads, seed=31))
      module.dt_bias.copy_(normal(heads, seed=32) - 1)
    values, keys = heads * width, groups * state
    gate, value, key, query, step = module.in_proj.weight.T.split(
      [values, values, keys, keys, heads], dim=-1
    )

    def in_our_order(channels, values=values, keys=keys):
      value, key, query = channels.split([values, keys, keys], dim=-1)
      return torch.cat([query, key, value], dim=-1)

    params = {
      'query': {'kernel': query.unflatten(-1, (groups, state))},
      'key': {'kernel': key.unflatten(-1, (groups, state))},
      'value': {'kernel': value.unflatten(-1, (heads, width))},
      'gate': {'kernel': gate.unflatten(-1, (groups, -1))},
      'out': without_bias(heads_out(module.out_proj, groups))[0],
      'step': {'kernel': step}, 'step_bias': module.dt_bias,
      'log_rate': module.A_log, 'skip': module.D, 'norm': module.norm.weight,
      'conv': in_our_order(module.conv1d.weight[:, 0].flip(-1).T),
      'conv_bias': in_our_order(module.conv1d.bias),
    }  # fmt: skip
    record(
      file, 'mamba2',
      lambda x, lengths, module=module: module(
        x, attention_mask=keep_of(lengths, T)
      ),
      params,
      {'num_heads': heads, 'num_groups': groups, 'causal': True, 'chunk': 5,
       'head_width': state, 'value_width': width, 'taps': taps},
      lengths=LENGTHS, packages=['transformers'],
      source='transformers Mamba2Mixer',
    )  # fmt: skip


def modeling_mega():
  """The file of transformers 4.40.2, without the library around it."""
  path = pathlib.Path(sys.prefix, 'old/transformers/models/mega')
  around = {
    f'old.{name}': mock.MagicMock()
    for name in (
      'modeling_outputs', 'pytorch_utils', 'utils', 'models.deprecated',
      'models.deprecated._archive_maps', 'models.mega.configuration_mega',
    )
  }  # fmt: skip
  around['old.activations'] = importlib.import_module(
    'transformers.activations'
  )
  around['old.modeling_utils'] = types.SimpleNamespace(
    PreTrainedModel=torch.nn.Module
  )
  name = 'old.models.mega.modeling_mega'
  spec = importlib.util.spec_from_file_location(name, path / 'modeling_mega.py')
  module = importlib.util.module_from_spec(spec)
  with mock.patch.dict(sys.modules, around):
    spec.loader.exec_module(module)
  return module


@maker
def mega():
  oracles = modeling_mega()
  block, averages, key_width, value_width = 6, 3, 5, 10
  for file, causal, function in (
    ('mega', False, 'softmax'), ('mega-causal', True, 'softmax'),
    ('mega-laplace', False, 'laplace'),
    ('mega-causal-laplace', True, 'laplace'),
  ):  # fmt: skip
    config = types.SimpleNamespace(
      hidden_size=D, intermediate_size=value_width, bidirectional=not causal,
      shared_representation_size=key_width, attention_activation=function,
      activation='silu', dropout_prob=0.0, hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0, use_feature_dropout=False,
      normalization_type='layernorm', norm_affine=False, use_chunking=True,
      chunk_size=block, max_positions=block, relative_positional_bias='simple',
      ema_projection_size=averages, truncation=None, is_decoder=causal,
      normalize_before_mega=False,
    )  # fmt: skip
    module = oracles.MegaMovingAverageGatedAttention(config)
    module.norm = torch.nn.Identity()
    with torch.no_grad():
      for number, parameter in enumerate(module.parameters()):
        parameter.copy_(0.6 * normal(*parameter.shape, seed=50 + number))
    module.eval()

    def oracle(x, lengths, module=module, causal=causal):
      mask = torch.ones(block, block).tril() if causal else None
      keep = keep_of(lengths, x.shape[1]).float()
      # Its output has the residual, ours not.
      return module(x.transpose(0, 1), keep, mask)[0].transpose(0, 1) - x

    ema = module.ema_gate
    params = {
      'skip': ema.residual_weight,
      'content': whole_layer(module.v_proj),
      'gates': whole_layer(module.mx_proj), 'out': whole_layer(module.h_proj),
      'scale': module.qk_weight, 'shift': module.qk_bias,
      'relative_bias': module.rel_pos_bias.rel_pos_bias,
    }  # fmt: skip
    for number, side in enumerate(('past', 'future')[: 1 + (not causal)]):
      rows = slice(number * D, (number + 1) * D)
      params |= {
        f'{side}_share': ema.damping_factor[rows, :, 0],
        f'{side}_damping': ema.decay_factor[rows, :, 0],
        f'{side}_drive': ema.ema_expansion_matrix[rows, :, 0],
        f'{side}_read': ema.kernel_projection_matrix[rows],
      }
    record(
      file, 'mega', oracle, params,
      {'block': block, 'function': function, 'num_averages': averages,
       'key_width': key_width, 'value_width': value_width, 'causal': causal,
       'chunk': 5},
      lengths=LENGTHS, packages=['transformers'],
      source='transformers 4.40.2 MegaMovingAverageGatedAttention',
      note='its output less x, as ours has no residual',
    )  # fmt: skip


def whole_layer(linear):
  return {'kernel': linear.weight.T, 'bias': linear.bias}


@maker
def nystromformer():
  from nystrom_attention import nystrom_attention
  from transformers import NystromformerConfig
  from transformers.models.nystromformer import modeling_nystromformer

  landmarks, taps = 6, 5
  config = NystromformerConfig(
    hidden_size=D, num_attention_heads=H, num_landmarks=landmarks,
    segment_means_seq_len=T, conv_kernel_size=taps,
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  module = stir(
    modeling_nystromformer.NystromformerSelfAttention(config), seed=33
  ).double()
  module.init_option = 'exact'
  out = projections(seed=34)[3].double()
  record(
    'nystromformer', 'nystromformer', unmasked(lambda x: out(module(x)[0])),
    four(module.query, module.key, module.value, out)
    | {'conv': module.conv.weight[:, 0, :, 0]},
    {'num_heads': H, 'use_bias': True, 'rank': landmarks, 'iterations': 6,
     'conv_width': taps},
    packages=['transformers'], dtype=torch.float64,
    source='transformers NystromformerSelfAttention',
    note='made with its exact start of the inverse, which its settings cannot '
    'say; otherwise it starts from a maximum over all rows and heads',
  )  # fmt: skip

  module = stir(
    nystrom_attention.NystromAttention(
      D, dim_head=D, heads=1, num_landmarks=landmarks, pinv_iterations=6,
      residual_conv_kernel=taps,
    ), seed=35,
  ).double()  # fmt: skip
  query, key, value = module.to_qkv.weight.T.reshape(D, 3, 1, D).unbind(1)
  record(
    'nystromformer-padded', 'nystromformer', rows_alone(module),
    {
      **{
        name: {'kernel': kernel, 'bias': torch.zeros(1, D)}
        for name, kernel in (('query', query), ('key', key), ('value', value))
      },
      'conv': module.res_conv.weight[:, 0, :, 0],
      'out': heads_out(module.to_out[0], 1),
    },
    {'num_heads': 1, 'use_bias': True, 'rank': landmarks, 'iterations': 6,
     'conv_width': taps},
    lengths=(T, T - landmarks), dtype=torch.float64,
    packages=['nystrom-attention'], source='nystrom-attention NystromAttention',
    note='Its groups are of the padded row, padding on the left where they '
    'are unequal, ours of the real tokens: each row alone, at a length that '
    'its landmarks divide.',
  )  # fmt: skip


@maker
def bigbird():
  from transformers import BigBirdConfig, BigBirdModel
  from transformers.models.big_bird import modeling_big_bird

  block, num_random = 3, 2
  blocks = T // block
  config = BigBirdConfig(
    hidden_size=D, num_attention_heads=H, block_size=block, use_bias=True,
    num_random_blocks=num_random, attention_type='block_sparse',
  )  # fmt: skip
  module = stir(modeling_big_bird.BigBirdBlockSparseAttention(config), seed=36)
  out = projections(seed=37)[3]
  # The random blocks of each block, and their ranks among all it may draw.
  rng = np.random.default_rng(38)
  ranks = np.zeros((H, blocks, num_random), np.int32)
  plan = np.zeros((H, blocks - 2, num_random), np.int32)
  for head in range(H):
    for i in range(1, blocks - 1):
      seen = {0, i - 1, i, i + 1, blocks - 1}
      others = np.array(sorted(set(range(blocks)) - seen))
      drawn = np.sort(rng.permutation(len(others))[:num_random])
      ranks[head, i], plan[head, i - 1] = drawn, others[drawn]
  module._bigbird_block_rand_mask_with_head = lambda **_: list(plan)

  def oracle(x, lengths):
    keep = keep_of(lengths, T).float()
    blocked, band, rows, columns = (
      BigBirdModel.create_masks_for_block_sparse_attn(keep, block)
    )
    return out(module(x, band, rows, columns, blocked, blocked)[0])

  record(
    'bigbird', 'bigbird', oracle,
    four(module.query, module.key, module.value, out),
    {'num_heads': H, 'use_bias': True, 'block': block,
     'num_random': num_random},
    # Padding within the last block, which stays the last.
    lengths=(T, T - block + 1), packages=['transformers'], constant=ranks,
    source='transformers BigBirdBlockSparseAttention',
    note='without training its random blocks are all block 0, which then '
    'counts several times. The constant are ranks of random blocks among those '
    'that a block may draw, which both are given',
  )  # fmt: skip


@maker
def linear():
  from performer_pytorch import performer_pytorch as oracles

  for causal in (False, True):
    layers = projections(seed=39)

    def oracle(x, layers=layers, causal=causal):
      query, key, value, out = layers
      q, k, v = (split(layer(x)) for layer in (query, key, value))
      mix = oracles.linear_attention
      if causal:
        mix = functools.partial(
          oracles.causal_linear_attention_noncuda, eps=0.0, chunk_size=4
        )
      return out(merge(mix(F.elu(q) + 1, F.elu(k) + 1, v)))

    record(
      'linear-causal' if causal else 'linear', 'linear', rows_alone(oracle),
      four(*layers),
      {'num_heads': H, 'use_bias': True, 'causal': causal, 'chunk': 5},
      lengths=LENGTHS, packages=['performer-pytorch'],
      source='performer-pytorch linear_attention, elu + 1 in torch',
      note='no mask: each row alone, at its length',
    )  # fmt: skip


@maker
def nsa():
  oracles = naive('nsa')
  block, num_selected, window, width, group, sources = 3, 4, 4, 4, 2, 2
  heads = group * sources
  names = (
    'key', 'value', 'compress_key', 'compress_value', 'window_key',
    'window_value',
  )  # fmt: skip
  layers = torch.nn.ModuleDict(
    {name: torch.nn.Linear(D, sources * width, bias=False) for name in names}
  )
  layers['query'] = torch.nn.Linear(D, heads * width, bias=False)
  layers['gate'] = torch.nn.Linear(D, heads * 3, bias=False)
  layers['out'] = torch.nn.Linear(heads * width, D, bias=False)
  stir(layers, seed=40)
  networks = {
    name: {
      'place': normal(block, width, seed=41 + number),
      'hidden': normal(block, width, width, seed=43 + number) * 0.5,
      'out': normal(width, width, seed=45 + number),
    }
    for number, name in enumerate(('key', 'value'))
  }

  def compress(x, network):
    """[B, T, H', K] -> one key or value for each block, [B, N, H', K]."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block))
    x = x.unflatten(1, (-1, block)) + network['place'][:, None]
    hidden = torch.einsum('bnchk,ckm->bnhm', x, network['hidden'])
    return F.gelu(hidden, approximate='tanh') @ network['out']

  for file, rotary in (('nsa', False), ('nsa-rotary', True)):
    rotate = rotation(width)

    def turn(x, rotary=rotary, rotate=rotate):
      return rotate(x.transpose(1, 2)).transpose(1, 2) if rotary else x

    def oracle(x, turn=turn):
      q, gate, *sides = (
        layers[name](x).unflatten(-1, (-1, n))
        for name, n in (
          ('query', width), ('gate', 3), *((name, width) for name in names)
        )
      )  # fmt: skip
      k, v, k_rough, v_rough, k_near, v_near = sides
      scale = width**-0.5
      k_rough = compress(k_rough, networks['key'])
      v_rough = compress(v_rough, networks['value'])
      rough, _ = oracles.naive_nsa_compression(
        q, k_rough, v_rough, block, scale
      )
      choice = oracles.naive_nsa_topk(q, k_rough, num_selected, block, scale)
      q, k, k_near = turn(q), turn(k), turn(k_near)
      fine = oracles.naive_nsa_selection(q, k, v, choice, block, scale)
      past = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None]
      near = F.scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in (q, k_near, v_near)),
        attn_mask=(past >= 0) & (past < window), enable_gqa=True,
      ).transpose(1, 2)  # fmt: skip
      branches = torch.stack([rough, fine, near], dim=-2)
      return layers['out'](
        (gate.sigmoid()[..., None] * branches).sum(-2).flatten(-2)
      )

    params = four(
      *(layers[name] for name in ('query', 'key', 'value', 'out')), heads,
      sources, False,
    )  # fmt: skip
    for name in names[2:]:
      params[name] = without_bias(heads_in(layers[name], sources))[0]
    params['gate'] = without_bias(heads_in(layers['gate'], heads))[0]
    for name, network in networks.items():
      params |= {f'phi_{name}_{part}': x for part, x in network.items()}
    record(
      file, 'nsa', rows_alone(oracle), params,
      {'num_heads': heads, 'num_kv_heads': sources, 'head_width': width,
       'causal': True, 'rotary': rotary, 'compress_block': block,
       'compress_stride': block, 'block': block, 'window': window,
       'num_selected': num_selected},
      shape=(B, T + 2, D), lengths=(T + 2, T - 5),
      packages=['fla-core', 'transformers'],
      source='fla-core naive_nsa_compression, naive_nsa_topk and '
      'naive_nsa_selection; window, gates and the network in torch',
      note='Its blocks are all of one size, without overlap. No mask: each row '
      'alone, at its length.',
    )  # fmt: skip


@maker
def s5():
  from s5 import s5_model

  states = 6
  for causal in (True, False):
    module = s5_model.S5(D, states, bidir=not causal, dt_min=0.1, dt_max=1.0)
    gate = torch.nn.Linear(D, D)
    stir(gate, seed=16)
    ssm = module.seq
    with torch.no_grad():
      rate = torch.complex(
        -0.5 - 0.3 * normal(states, seed=17).abs(), 2 * normal(states, seed=18)
      )
      ssm.Lambda.copy_(rate)
      ssm.B.copy_(normal(states, D, 2, seed=19) * D**-0.5)
      ssm.C.copy_(torch.view_as_complex(normal(*ssm.C.shape, 2, seed=20)))
      ssm.D.copy_(normal(D, seed=21))

    def oracle(x, module=module, gate=gate):
      g = F.gelu(module(x), approximate='tanh')
      return g * torch.sigmoid(gate(g))

    # Ours has one of two conjugate states: y = 2 Re(C h).
    outputs = [c.T / 2 for c in ssm.C.chunk(1 if causal else 2, dim=1)]
    params = {
      'rate_real': ssm.Lambda.real, 'rate_turn': ssm.Lambda.imag,
      'log_step': ssm.log_step.reshape(-1), 'through': ssm.D,
      'input_real': ssm.B[..., 0].T, 'input_imaginary': ssm.B[..., 1].T,
      'gate': {'kernel': gate.weight.T, 'bias': gate.bias},
    }  # fmt: skip
    for name, c in zip(('past', 'future'), outputs, strict=False):
      params |= {f'{name}_real': c.real, f'{name}_imaginary': c.imag}
    record(
      's5-causal' if causal else 's5', 's5', rows_alone(oracle), params,
      {'state_width': 2 * states, 'hippo_blocks': 1, 'causal': causal,
       'chunk': 5},
      lengths=LENGTHS, packages=['s5-pytorch'],
      source='s5-pytorch S5, with the gated output of the paper in torch',
      note='its states come without their conjugates: our C is half of its. '
      'It has no mask: each row alone, at its length.',
    )  # fmt: skip


@maker
def positions():
  from transformers import LlamaConfig
  from transformers.models.bloom.modeling_bloom import build_alibi_tensor
  from transformers.models.llama import modeling_llama
  from transformers.models.t5.modeling_t5 import T5Attention

  ahead = torch.arange(-300, 301)
  arrays = {'ahead': ahead}
  for causal in (False, True):
    for buckets, furthest in ((32, 128), (16, 64), (32, 100)):
      arrays[f'buckets-{int(causal)}-{buckets}-{furthest}'] = (
        T5Attention._relative_position_bucket(
          ahead, not causal, buckets, furthest
        ).to(torch.int32)
      )
  for heads in range(1, 17):
    # Slope times position: the second position has the slope itself.
    alibi = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
    arrays[f'slopes-{heads}'] = alibi[:, 0, 1]
  config = LlamaConfig(hidden_size=16, num_attention_heads=2)
  position = torch.tensor([0, 1, 2, 30, 500, 4000])
  x = normal(1, 1, len(position), 8, seed=8)
  cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(x, position[None])
  turned, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)
  arrays |= {'position': position, 'x': x[0, 0], 'turned': turned[0, 0]}
  write(
    'positions', arrays, 'positions', {}, ['transformers'],
    'transformers T5 buckets, Bloom slopes, Llama rotary positions',
  )  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', help='mechanisms; all if none')
  names = parser.parse_args().names
  for name in names or MAKERS:
    torch.manual_seed(0)
    np.random.seed(0)
    MAKERS[name]()
    print(name)
  size = sum(path.stat().st_size for path in HERE.glob('*.npz'))
  print(f'{size / 2**20:.2f} MiB')


if __name__ == '__main__':
  main()
