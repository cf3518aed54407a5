"""Reformer, by transformers and by reformer-pytorch."""

from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import record, rows_alone, unmasked
from oracles.sizes import B, D, H, K
from reformer_pytorch import reformer_pytorch
from transformers import ReformerConfig
from transformers.models.reformer import modeling_reformer

# Chunks must be full, at the length of each row.
BLOCK = 4


def files():
  for file, causal, rounds, buckets in (
    ('reformer', False, 2, 6), ('reformer-causal', True, 3, 4),
    ('reformer-many-buckets', False, 2, [6, 22]),
  ):  # fmt: skip
    yield by_transformers(file, causal, rounds, buckets)
  for file, causal, same_bucket, count_once in (
    ('reformer-scaled', False, False, False),
    ('reformer-same-bucket', False, True, False),
    ('reformer-count-once', False, False, True),
    ('reformer-both', True, True, True),
  ):  # fmt: skip
    yield by_reformer_pytorch(file, causal, same_bucket, count_once)


def drawn(directions):
  """Has an oracle draw these."""
  return mock.patch.object(torch, 'randn', return_value=directions)


def shared_projections(query_key, value, out):
  return {
    'query_key': common.heads_in(query_key, use_bias=False),
    'value': common.heads_in(value, use_bias=False),
    'out': common.heads_out(out, use_bias=False),
  }


def by_transformers(file, causal, rounds, buckets):
  config = ReformerConfig(
    hidden_size=D, num_attention_heads=H, attention_head_size=K,
    lsh_attn_chunk_length=BLOCK, lsh_num_chunks_before=1,
    lsh_num_chunks_after=0, num_hashes=rounds, num_buckets=buckets,
    is_decoder=causal, attn_layers=['lsh'],
  )  # fmt: skip
  module = modeling_reformer.LSHSelfAttention(config, 0)
  common.stir(module, seed=10).double()
  out = common.projections(seed=10, bias=False)[3].double()
  half = int(np.sum(buckets)) // 2
  directions = common.normal(H, K, rounds, half, seed=11).double()

  def oracle(x):
    with drawn(directions):
      return out(module(x).hidden_states)

  return record(
    file, 'reformer', rows_alone(oracle),
    shared_projections(module.query_key, module.value, out),
    {
      'num_heads': H, 'causal': causal, 'block': BLOCK, 'num_hashes': rounds,
      'num_buckets': int(np.prod(buckets)),
    },
    shape=(B, 28, D), lengths=(28, 20), packages=['transformers'],
    dtype=torch.float64, constant=directions.transpose(1, 2),
    source='transformers LSHSelfAttention',
    note='It sorts padding to the end of each round, ours behind all: each '
    'row alone, at its length. In float64, since float32 knows its -1e5 for '
    'a token itself to 4e-3. The constant are its random directions.',
  )  # fmt: skip


def by_reformer_pytorch(file, causal, same_bucket, count_once):
  lsh = reformer_pytorch.LSHAttention(
    bucket_size=BLOCK, n_hashes=3, causal=causal,
    attend_across_buckets=not same_bucket,
    allow_duplicate_attention=not count_once,
  )  # fmt: skip
  query_key, value, out = common.projections(seed=12, bias=False)[:3].double()
  is_wrong = count_once and not same_bucket
  # Its number of buckets is the number of chunks.
  directions = common.normal(1, K, 3, 3, seed=13).double()

  def oracle(x):
    q, v = (
      common.split(layer(x)).flatten(0, 1) for layer in (query_key, value)
    )
    with drawn(directions):
      if is_wrong:
        o = union_of_windows(q, v, lsh.hash_vectors(6, q))
      else:
        o = lsh(q, v)[0]
    return out(common.merge(o.unflatten(0, (-1, H))))

  source = 'reformer-pytorch LSHAttention'
  note = ''
  if is_wrong:
    source = 'softmax over the union of the windows of all rounds'
    note = (
      'LSHAttention counts pairs by rounds, and so a pair of copies from two '
      'rounds in the first window of a round 0 times: log 1e-9 is taken off '
      'its logit'
    )
  return record(
    file, 'reformer', unmasked(oracle),
    shared_projections(query_key, value, out),
    {
      'num_heads': H, 'causal': causal, 'block': BLOCK, 'num_hashes': 3,
      'num_buckets': 6, 'scaled': True, 'same_bucket': same_bucket,
      'count_once': count_once,
    },
    shape=(B, 24, D), packages=['reformer-pytorch'], dtype=torch.float64,
    constant=directions.transpose(1, 2).expand(H, -1, -1, -1),
    source=source, note=note,
  )  # fmt: skip


def union_of_windows(q, v, bucket):
  """Softmax over all keys that share a window with the query, itself last.

  Where no pair counts more than once, rounds merge to one softmax.

  Args:
    q: queries and keys before their norm, [N, T, K].
    v: values.
    bucket: of all copies, [N, R T], those of a round larger than all before.
  """
  length, copies = q.shape[1], bucket.shape[1]
  order = (bucket * length + torch.arange(copies) % length).argsort(-1)
  chunk = order.argsort(-1) // BLOCK
  num_chunks = copies // BLOCK
  # [N, copies of queries, copies of keys]
  is_own = chunk[:, :, None] == chunk[:, None]
  is_before = (chunk[:, :, None] - 1) % num_chunks == chunk[:, None]
  pairs = (is_own | is_before).unflatten(1, (-1, length))
  seen = pairs.unflatten(-1, (-1, length)).any(1).any(2)
  logits = q @ F.normalize(q, dim=-1).mT * q.shape[-1] ** -0.5
  is_self = torch.eye(length, dtype=torch.bool)
  logits = logits.masked_fill(is_self, -1e5).masked_fill(~seen, -1e9)
  return logits.softmax(-1) @ v
