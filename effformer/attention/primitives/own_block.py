"""Attention among the tokens of a block, one head of one example.

    o_i = sum_j f(<q_i, k_j>)_ij v_j    over the block of C tokens of token i

Blocks are counted from the start of each segment. f is softmax with 1 / sqrt(K)
or the Laplace function (Ma et al. 2023, 2209.10655), the normal distribution
function with mean sqrt(1/2) and variance 1 / (4 pi) of <q, k> over the number
of visible keys; a bias for each distance is added to the argument of f. Cost:
time T C (K + V), memory T (K + V).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.primitives import band, one_by_one, softmax
from effformer.shapes import Array

FUNCTIONS = ('softmax', 'laplace')
# Of the Laplace function, with which it is close to squared ReLU.
MEAN, DEVIATION = math.sqrt(0.5), math.sqrt(0.25 / math.pi)


class Keys(NamedTuple):
  """Keys and values of one row, and where they stand."""

  k_SK: Array
  v_SV: Array
  segment_S: Array
  position_S: Array


class Rule(NamedTuple):
  """How attention works; static."""

  block: int
  function: str
  causal: bool
  dropout: float


def attend(
  q_TK: Array,
  keys: Keys,
  ring: Keys | None,
  bias_W: Array,
  rng: Array | None,
  *,
  rule: Rule,
  rows: int,
  is_aligned: bool,
) -> tuple[Array, Keys | None]:
  """Attention of one row, whose real tokens come first.

  Args:
    q_TK: queries.
    keys: of the same tokens.
    ring: the block of tokens before these, in a stream.
    bias_W: of the logits, for the distances 1 - C ... C - 1.
    rng: key for dropout, or None.
    rule: static.
    rows: under `vmap` over so many, fewer blocks are in work together.
    is_aligned: blocks begin at multiples of their size in the row. Else they
      begin anywhere, so their tokens are sought in the neighbours as well.

  Returns:
    o_TV, float32, 0 where nothing is seen; and the ring after these tokens.
  """
  size, length = rule.block, q_TK.shape[0]
  before = 0 if is_aligned else 1
  reach = before + 1 + (0 if is_aligned or rule.causal else 1)
  q_NCK, segment_NC, position_NC = softmax.in_blocks(
    size, q_TK, keys.segment_S, keys.position_S
  )
  num_blocks = q_NCK.shape[0]

  olds = ring or Keys(None, None, None, None)
  near_keys = Keys(
    *(
      _around(x, old, size, num_blocks, before, reach)
      for x, old in zip(keys, olds, strict=True)
    )
  )
  index_CS = np.arange(reach * size)[None] - np.arange(size)[:, None]
  index_CS = np.clip(index_CS - before * size + size - 1, 0, 2 * size - 2)
  bias_CS = bias_W[index_CS]

  def tile(block):
    number, q_CK, segment_C, position_C, keys = block
    keep_CS = visible(segment_C, position_C, keys, rule)
    attn_CS = weights(
      softmax.product('ck,sk->cs', q_CK, keys.k_SK), bias_CS, keep_CS,
      q_CK.shape[-1], rule.function,
    )  # fmt: skip
    if rule.dropout:
      here = jax.random.fold_in(rng, number)
      attn_CS *= softmax.survivors(here, attn_CS.shape, rule.dropout)
    return softmax.product(
      'cs,sv->cv', attn_CS.astype(keys.v_SV.dtype), keys.v_SV
    )

  blocks = (
    jnp.arange(num_blocks), q_NCK, segment_NC, position_NC, near_keys
  )  # fmt: skip
  together = one_by_one.numbers(rows) // (size**2 * reach)
  o_NCV = band.in_turn(jax.checkpoint(tile), blocks, together)
  o_TV = o_NCV.reshape(-1, o_NCV.shape[-1])[:length]
  if ring is None:
    return o_TV, None
  num_real = (keys.segment_S > 0).sum()

  def last(x, old):
    x = jnp.concatenate([old, x.astype(old.dtype)])
    return jax.lax.dynamic_slice_in_dim(x, num_real, size)

  return o_TV, Keys(*map(last, keys, ring))


def _around(x, old, size, num_blocks, before, reach):
  """[N, reach C, ...]: the block of each block of queries and those around it.

  `old` is the block before the first, if there is one; else that is zeros.
  """
  rest = (num_blocks + reach - 1 - before) * size - x.shape[0]
  ends = ((before * size if old is None else 0, rest),)
  x = jnp.pad(x, ends + ((0, 0),) * (x.ndim - 1))
  if old is not None:
    x = jnp.concatenate([old.astype(x.dtype), x])
  x = x.reshape(-1, size, *x.shape[1:])
  views = [x[n : n + num_blocks] for n in range(reach)]
  return jnp.concatenate(views, axis=1)


def visible(
  segment_C: Array, position_C: Array, keys: Keys, rule: Rule
) -> Array:
  """bool [C, S]: tokens of the same block of the same segment."""
  segment_C = jnp.where(segment_C > 0, segment_C, -1)
  keep_CS = segment_C[:, None] == keys.segment_S[None]
  block_C, block_S = (x // rule.block for x in (position_C, keys.position_S))
  keep_CS &= block_C[:, None] == block_S[None]
  if rule.causal:
    keep_CS &= keys.position_S[None] <= position_C[:, None]
  return keep_CS


def weights(
  product_CS: Array, bias_CS: Array, keep_CS: Array, width: int, function: str
) -> Array:
  """f of the products <q, k> of width K, float32, 0 where not visible."""
  if function == 'softmax':
    logits_CS = product_CS / math.sqrt(width) + bias_CS
    logits_CS = jnp.where(keep_CS, logits_CS, softmax.MASKED)
    top_C1 = jnp.maximum(logits_CS.max(-1, keepdims=True), softmax.FLOOR)
    attn_CS = jnp.exp(logits_CS - jax.lax.stop_gradient(top_C1))
    total_C1 = attn_CS.sum(-1, keepdims=True)
    return attn_CS / jnp.where(total_C1 > 0, total_C1, 1.0)
  count_C1 = jnp.maximum(keep_CS.sum(-1, keepdims=True), 1)
  logits_CS = product_CS / count_C1 + bias_CS
  standard_CS = (logits_CS - MEAN) / (DEVIATION * math.sqrt(2.0))
  return jnp.where(keep_CS, 0.5 * (1.0 + jax.lax.erf(standard_CS)), 0.0)
