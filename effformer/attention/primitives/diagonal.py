"""The recurrence with constant diagonal coefficients, on one example.

    h_i = rate h_{i-1} + drive_i,   rate in C^M or R^M, one number a state

over the tokens of a segment; each segment starts from h = 0, and padding leaves
h as it was. Rates may be complex (S5, Smith et al. 2023, 2208.04933) or real
(exponential moving averages).

Rows are cut into N chunks of C tokens. All chunks run at once from h = 0 to
know what each adds, a scan over chunks makes the states between them, and all
chunks run again from these: C + N + C steps, all exact, without powers of the
rate. The backward pass is the same recurrence in reverse order,

    g_i = dh_i + rate g_{i+1}      ddrive_i = g_i      drate = sum_i g_i h_{i-1}

so nothing but h is kept for it. Cost: time T M; memory T M.

`average` and `convolve` sum many states of each channel without keeping them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.primitives import softmax
from effformer.shapes import Array, DTypeLike

# What happens to the state before a token is added.
STAYS, FADES, STARTS = 0, 1, 2
# Smaller ones are 0 after one token, and have no logarithm.
LEAST_RATE = 1e-30


class Memory(NamedTuple):
  """State of the segment that is under way.

  Attributes:
    state_M: float32 or complex64, h.
    segment: int32 scalar, id of that segment; 0 before the first token.
  """

  state_M: Array
  segment: Array


def empty(num_states: int, dtype: DTypeLike) -> Memory:
  """The state before the first token."""
  return Memory(jnp.zeros((num_states,), dtype), jnp.zeros((), jnp.int32))


def scan(
  rate_M: Array,
  drive_TM: Array,
  segment_T: Array,
  memory: Memory,
  *,
  chunk: int = 64,
) -> tuple[Array, Memory]:
  """All states h_TM, at padding that of the last token, and the last memory.

  Args:
    rate_M: float32 or complex64, at most 1 in size.
    drive_TM: of the same type.
    segment_T: int32, 0 is padding, which is not added. A segment does not come
      back after another one.
    memory: of all tokens before these.
    chunk: C, tokens, at most so many in a chunk; need not divide T.
  """
  keep_T = segment_T > 0
  drive_TM = jnp.where(keep_T[:, None], drive_TM, 0)
  # The segment that is under way at each token, padding or not.
  index_T = jnp.arange(segment_T.shape[0])
  last_T = jax.lax.cummax(jnp.where(keep_T, index_T, -1), axis=0)
  live_T = segment_T[jnp.maximum(last_T, 0)]
  live_T = jnp.where(last_T >= 0, live_T, memory.segment)
  before_T = jnp.concatenate([memory.segment[None], live_T[:-1]])
  fate_T = jnp.where(live_T == before_T, FADES, STARTS)
  fate_T = jnp.where(keep_T, fate_T, STAYS)
  size = softmax.even_size(segment_T.shape[0], chunk)
  h_TM = _scan(size, rate_M, drive_TM, fate_T, memory.state_M)
  return h_TM, Memory(h_TM[-1], live_T[-1])


class Coefficients(NamedTuple):
  """Of M states of each channel, which are only summed, all float32.

    y_td = sum_m read_dm h_tdm,    h_i = rate h_{i-1} + drive x_i

  Attributes:
    rate_DM: from 0 to 1.
    drive_DM: what drives the states.
    read_DM: what reads them.
  """

  rate_DM: Array
  drive_DM: Array
  read_DM: Array


def average(
  x_TD: Array,
  segment_T: Array,
  memory: Memory,
  *,
  coefficients: Coefficients,
  chunk: int = 64,
) -> tuple[Array, Memory]:
  """y_TD of all states, float32, and the last memory; see `scan`.

  The states of a chunk are made when they are read: memory T D (1 + M / C).
  """
  rate_DM, drive_DM, read_DM = coefficients
  size = softmax.even_size(segment_T.shape[0], chunk)

  def step(memory, tokens):
    x_CD, segment_C = tokens
    drive_CDM = x_CD[..., None] * drive_DM[None]
    h_CM, memory = scan(
      rate_DM.reshape(-1), drive_CDM.reshape(size, -1), segment_C, memory,
      chunk=size,
    )  # fmt: skip
    y_CD = (h_CM.reshape(size, *read_DM.shape) * read_DM[None]).sum(-1)
    return memory, y_CD

  blocks = softmax.in_blocks(size, x_TD.astype(jnp.float32), segment_T)
  memory, y_NCD = jax.lax.scan(jax.checkpoint(step), memory, blocks)
  return y_NCD.reshape(-1, x_TD.shape[1])[: x_TD.shape[0]], memory


def convolve(
  x_TD: Array, *, coefficients: Coefficients, chunk: int = 64
) -> Array:
  """`average` of one segment, whose padding is 0, without its states.

  Within chunks of C tokens this is a product with C x C numbers a channel, and
  states stand between chunks. Cost: time T D (C + M), memory T D (1 + M / C).

  Args:
    x_TD: inputs; zeros at the end for padding, or at the start.
    coefficients: of the states.
    chunk: C, tokens, at most so many in a chunk; need not divide T.
  """
  rate_DM, drive_DM, read_DM = coefficients
  gain_DM = drive_DM * read_DM
  size = softmax.even_size(x_TD.shape[0], chunk)
  (x_NCD,) = softmax.in_blocks(size, x_TD.astype(jnp.float32))
  log_rate_DM = jnp.log(jnp.maximum(rate_DM, LEAST_RATE))
  age_C = np.arange(size, dtype=np.float32)
  power_CDM = jnp.exp(age_C[:, None, None] * log_rate_DM[None])
  kernel_CD = (gain_DM[None] * power_CDM).sum(-1)
  age_CC = np.arange(size)[:, None] - np.arange(size)[None]
  kernel_CCD = kernel_CD[np.maximum(age_CC, 0)]
  kernel_CCD = jnp.where((age_CC >= 0)[..., None], kernel_CCD, 0.0)
  y_NCD = jnp.einsum('ijd,njd->nid', kernel_CCD, x_NCD)
  if x_NCD.shape[0] > 1:
    end_NDM = jnp.einsum('jdm,njd->ndm', power_CDM[::-1], x_NCD)
    fade_DM = jnp.exp(size * log_rate_DM)

    def between(state_DM, end_DM):
      return fade_DM * state_DM + end_DM, state_DM

    zeros_DM = jnp.zeros_like(fade_DM)
    _, start_NDM = jax.lax.scan(between, zeros_DM, end_NDM)
    weight_CDM = (gain_DM * rate_DM)[None] * power_CDM
    y_NCD += jnp.einsum('idm,ndm->nid', weight_CDM, start_NDM)
  return y_NCD.reshape(-1, x_TD.shape[1])[: x_TD.shape[0]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(size, rate_M, drive_TM, fate_T, start_M):
  return _states(size, rate_M, drive_TM, fate_T, start_M)


def _states(size, rate_M, drive_TM, fate_T, start_M):
  """h_TM by chunks of `size` tokens."""

  def factor_NM(fate_N):
    fate_N1 = fate_N[:, None]
    fades_NM = jnp.where(fate_N1 == FADES, rate_M[None], 0)
    return jnp.where(fate_N1 == STAYS, 1, fades_NM)

  def add(carry, token):
    sum_NM, product_NM = carry
    drive_NM, fate_N = token
    fade_NM = factor_NM(fate_N)
    return (fade_NM * sum_NM + drive_NM, fade_NM * product_NM), None

  def between(state_M, chunk):
    sum_M, product_M = chunk
    return product_M * state_M + sum_M, state_M

  def step(state_NM, token):
    drive_NM, fate_N = token
    state_NM = factor_NM(fate_N) * state_NM + drive_NM
    return state_NM, state_NM

  length = drive_TM.shape[0]
  drive_NCM, fate_NC = softmax.in_blocks(size, drive_TM, fate_T)
  tokens = drive_NCM.swapaxes(0, 1), fate_NC.T
  start_NM = start_M[None]
  if fate_NC.shape[0] > 1:
    zeros_NM = jnp.zeros_like(drive_NCM[:, 0])
    chunks, _ = jax.lax.scan(add, (zeros_NM, zeros_NM + 1), tokens)
    _, start_NM = jax.lax.scan(between, start_M, chunks)
  _, h_CNM = jax.lax.scan(step, start_NM, tokens)
  return h_CNM.swapaxes(0, 1).reshape(-1, h_CNM.shape[-1])[:length]


def _forward(size, rate_M, drive_TM, fate_T, start_M):
  h_TM = _states(size, rate_M, drive_TM, fate_T, start_M)
  return h_TM, (rate_M, fate_T, start_M, h_TM)


def _backward(size, saved, dh_TM):
  rate_M, fate_T, start_M, h_TM = saved
  # Token i gets from i + 1 what token i + 1 has kept of it.
  next_T = jnp.pad(fate_T[1:], (0, 1), constant_values=STAYS)
  zeros_M = jnp.zeros_like(start_M)
  g_TM = _states(size, rate_M, dh_TM[::-1], next_T[::-1], zeros_M)[::-1]
  before_TM = jnp.concatenate([start_M[None], h_TM[:-1]])
  fades_T1 = (fate_T == FADES)[:, None]
  drate_M = jnp.where(fades_T1, g_TM * before_TM, 0).sum(0)
  dstart_M = jnp.where(fate_T[0] == FADES, rate_M, 0)
  dstart_M = jnp.where(fate_T[0] == STAYS, 1, dstart_M) * g_TM[0]
  return drate_M, g_TM, None, dstart_M


_scan.defvjp(_forward, _backward)
