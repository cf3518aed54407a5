"""Blocks of tokens that become one key or value each, on one head.

    y_b = gelu(sum_a (x_{b d + a} + place_a) W_a) U,    a = 0 ... l - 1

every d tokens, W_a in R^{K x K}: a network of one hidden layer on the l tokens
of a block. Only blocks with all their tokens exist. Cost: time T (l / d) K^2,
memory T K / d.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.primitives import one_by_one, softmax
from effformer.shapes import Array


def number(length: int, size: int, stride: int) -> int:
  """M, blocks of `size` tokens, one each `stride`; at least one."""
  return max((length - size) // stride + 1, 1)


def compress(x_SK: Array, network: dict[str, Array], stride: int) -> Array:
  """y_MK in the type of x; a block that is not whole is made with zeros.

  Args:
    x_SK: keys or values.
    network: place [l, K], hidden [l, K, K], out [K, K].
    stride: d.
  """
  hidden_CKM = network['hidden']
  size = hidden_CKM.shape[0]
  x_SK = jnp.pad(x_SK, ((0, max(size - x_SK.shape[0], 0)), (0, 0)))
  hidden_1MM = jax.lax.conv_general_dilated(
    x_SK[None],
    hidden_CKM.astype(x_SK.dtype),
    (stride,),
    'VALID',
    dimension_numbers=('NWC', 'WIO', 'NWC'),
    preferred_element_type=jnp.float32,
  )
  # What the places add is the same for all blocks.
  place_M = jnp.einsum('ck,ckm->m', network['place'], hidden_CKM)
  y_MM = jax.nn.gelu(hidden_1MM[0] + place_M[None]).astype(x_SK.dtype)
  out_MK = network['out'].astype(x_SK.dtype)
  return softmax.product('nm,mk->nk', y_MM, out_MK).astype(x_SK.dtype)


def whole(keep_S: Array, size: int, stride: int) -> Array:
  """bool [M], whether all tokens of a block are real."""
  length, num_blocks = keep_S.shape[0], number(keep_S.shape[0], size, stride)
  count_S = jnp.pad(jnp.cumsum(keep_S, dtype=jnp.int32), (1, 0))
  start_M = np.arange(num_blocks) * stride
  end_M = np.minimum(start_M + size, length)
  return count_S[end_M] - count_S[start_M] == size


def attend(
  q_TGK: Array,
  k_MK: Array,
  v_MV: Array,
  where: softmax.Sites,
  is_whole_M: Array,
  end_M: np.ndarray,
  rng_G: Array | None,
  read: Callable[[Array, Array], Any],
  *,
  pattern: softmax.Pattern,
  rows: int = 1,
) -> tuple[Array, Any]:
  """Softmax attention of all heads of a group to the blocks.

  Args:
    q_TGK: queries of the heads.
    k_MK, v_MV: compressed keys and values, which all heads share.
    where: of the queries.
    is_whole_M: bool, blocks that exist.
    end_M: index of the last token of a block; if causal, a query sees it when
      it sees that token.
    rng_G: keys for dropout of the heads, or None.
    read: `read(weight_CM, index_C)` for C queries: the weights of the blocks,
      summed over the heads, before dropout and without gradient; and the
      indices of the queries. Returns arrays [C, ...].
    pattern: causal and dropout.
    rows: under `vmap` over so many heads, fewer queries are in work together.

  Returns:
    o_TGV, float32, 0 where a query sees no block, and what `read` returned.
  """
  length = q_TGK.shape[0]

  def tile(queries):
    number, q_CGK, index_C, segment_C = queries
    seen_CM = is_whole_M[None] & (segment_C > 0)[:, None]
    if pattern.causal:
      seen_CM &= end_M[None] <= index_C[:, None]
    logits_GCM = softmax.product('cgk,mk->gcm', q_CGK, k_MK)
    logits_GCM *= 1.0 / math.sqrt(q_CGK.shape[-1])
    logits_GCM = jnp.where(seen_CM[None], logits_GCM, softmax.MASKED)
    top_GC1 = jnp.maximum(logits_GCM.max(-1, keepdims=True), softmax.FLOOR)
    attn_GCM = jnp.exp(logits_GCM - jax.lax.stop_gradient(top_GC1))
    total_GC1 = attn_GCM.sum(-1, keepdims=True)
    attn_GCM /= jnp.where(total_GC1 > 0, total_GC1, 1.0)
    found = read(jax.lax.stop_gradient(attn_GCM).sum(0), index_C)
    if pattern.dropout:
      here_G = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_G, number)
      attn_GCM *= jax.vmap(
        lambda rng: softmax.survivors(rng, seen_CM.shape, pattern.dropout)
      )(here_G)
    attn_GCM = attn_GCM.astype(v_MV.dtype)
    return softmax.product('gcm,mv->cgv', attn_GCM, v_MV), found

  together = one_by_one.numbers(rows) // k_MK.shape[0]
  size = softmax.even_size(length, min(max(together, 16), 256))
  queries = softmax.in_blocks(size, q_TGK, where.index_T, where.segment_T)
  number_N = jnp.arange(queries[0].shape[0])
  results = jax.lax.map(jax.checkpoint(tile), (number_N, *queries))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], results)


def extend(
  stored_MK: Array,
  tail_CK: Array,
  x_TK: Array,
  count: Array,
  num_new: Array,
  network: dict[str, Array],
  stride: int,
) -> tuple[Array, Array]:
  """Adds the blocks that new tokens make whole, and keeps the last l tokens.

  Args:
    stored_MK: blocks so far, from the first token of the stream.
    tail_CK: the last l tokens.
    x_TK: new tokens, the real ones first.
    count: int32, real tokens before these.
    num_new: int32, real ones among these.
    network, stride: as in `compress`.
  """
  size, length = tail_CK.shape[0], x_TK.shape[0]
  x_SK = jnp.concatenate([tail_CK, x_TK.astype(tail_CK.dtype)])
  # The first block that ends after `count` tokens begins within the tail.
  first = jnp.maximum((count - size) // stride + 1, 0)
  num_blocks = -(-length // stride)
  width = (num_blocks - 1) * stride + size
  part_SK = jax.lax.dynamic_slice_in_dim(
    jnp.pad(x_SK, ((0, width), (0, 0))), first * stride - count + size, width
  )
  y_NK = compress(part_SK, network, stride)
  block_N = first + jnp.arange(num_blocks)
  is_whole_N = block_N * stride + size <= count + num_new
  target_N = jnp.where(is_whole_N, block_N, stored_MK.shape[0])
  stored_MK = stored_MK.at[target_N].set(y_NK, mode='drop')
  return stored_MK, jax.lax.dynamic_slice_in_dim(x_SK, num_new, size)


def shares(
  num_compressed: int, size: int, stride: int, num_blocks: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """How much of each compressed block lies in each block of `block` tokens.

  Returns:
    index_NM: numbers of the compressed blocks that reach into block n, and
      share_NM: their tokens in it, as a share of their size.
  """
  start_N1 = (np.arange(num_blocks) * block)[:, None]
  first_N1 = np.maximum((start_N1 - size) // stride + 1, 0)
  index_NM = first_N1 + np.arange(-(-(block + size) // stride))[None]
  begin_NM = np.maximum(index_NM * stride, start_N1)
  end_NM = np.minimum(index_NM * stride + size, start_N1 + block)
  share_NM = np.maximum(end_NM - begin_NM, 0) / size
  share_NM = np.where(index_NM < num_compressed, share_NM, 0.0)
  index_NM = np.minimum(index_NM, num_compressed - 1)
  return index_NM, share_NM.astype(np.float32)
