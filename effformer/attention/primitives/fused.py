"""Softmax attention in the one kernel that a device has for it.

`jax.nn.dot_product_attention`: cuDNN's kernel, memory T + S, on an NVIDIA GPU
and for bfloat16 or float16; everywhere else plain XLA with all logits at once,
which is slower than `chunked` and takes memory T S.
"""

import jax
import jax.numpy as jnp

from effformer.shapes import Array

_OF_CUDNN = (jnp.bfloat16, jnp.float16)


def implementation(dtype) -> str:
  """What computes inputs of this type here: 'cudnn' or 'xla'."""
  is_nvidia = 'cuda' in jax.extend.backend.get_backend().platform_version
  return 'cudnn' if is_nvidia and dtype in _OF_CUDNN else 'xla'


def attend(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHV: Array,
  segment_BT: Array,
  segment_BS: Array,
  *,
  causal: bool,
  is_packed: bool,
) -> Array:
  """O = softmax(Q K^T / sqrt(K)) V of all heads -> o_BTHV.

  Segments are not packed and padded on the right only: the kernel is told the
  lengths. Otherwise it takes a mask of T S entries. Which of the two is decided
  when the program runs.

  Args:
    q_BTHK: queries; H is a multiple of the heads of the keys.
    k_BSHK, v_BSHV: keys and values.
    segment_BT, segment_BS: int32, 0 is padding.
    causal: j <= i.
    is_packed: False promises at most one segment a row.

  Returns:
    A query that is padding or has no keys gets 0, and sends no gradient.
  """
  is_real_BT, is_real_BS = segment_BT > 0, segment_BS > 0

  def call(**admissible):
    return jax.nn.dot_product_attention(
      q_BTHK, k_BSHK, v_BSHV, is_causal=causal,
      implementation=implementation(q_BTHK.dtype), **admissible,
    )  # fmt: skip

  def by_mask():
    keep_BTS = segment_BT[:, :, None] == segment_BS[:, None, :]
    return call(mask=keep_BTS[:, None])

  def by_length():
    # Not 0, for which the kernel promises nothing.
    lengths = [
      jnp.maximum(is_real.sum(1, dtype=jnp.int32), 1)
      for is_real in (is_real_BT, is_real_BS)
    ]
    return call(query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1])

  if is_packed:
    o_BTHV = by_mask()
  else:
    is_right = _only_on_the_right(is_real_BT) & _only_on_the_right(is_real_BS)
    o_BTHV = jax.lax.cond(is_right, by_length, by_mask)
  has_keys_BT = is_real_BT & is_real_BS.any(1)[:, None]
  return jnp.where(has_keys_BT[:, :, None, None], o_BTHV, 0.0)


def _only_on_the_right(is_real_BT):
  return (is_real_BT[:, :-1] >= is_real_BT[:, 1:]).all()
