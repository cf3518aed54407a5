"""Products of integers: inputs rounded to 8 bits, and codes of weights.

Inputs are rounded symmetrically, q_K = clip(round(x / a), -127, 127), with one
scale a for each token (dynamic, a = max |x_t| / 127) or one that was found on
calibration texts (static). With weights s (c - z), see `grid`, the output is

    y_n = a s_n (q . c_n - z_n sum_k q_k)

where the parentheses hold whole numbers, int32. Codes from 0 on (uint8) enter
the product as int8, c - 128, and z - 128 takes the place of z. Where weights
have tiles, a sum over the tiles of such products, each with its scales.

|q| <= 127 and |c| <= 127, so sums over 2^17 inputs that share a scale are below
2^31; with zero points |c - z| <= 255, and 2^16 is the limit. More are refused.
Inputs that are divided by factors (`QTensor.inputs`) are divided before they
are rounded.

y is that of the rounded numbers as floats, without the rounding errors of their
sums. Jacob et al. 2018, 1712.05877, section 2.2; scales by token: Yao et al.
2022 (ZeroQuant), 2206.01861.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from effformer.compress.calibrate import Moments
from effformer.compress.tensors import QTensor
from effformer.errors import ConfigError
from effformer.shapes import Array

HIGH = 127
# Inputs that share a scale, without and with a zero point.
MOST_INPUTS, MOST_WITH_ZERO = 2**17, 2**16
_OFFSET = 128


def static_scales(
  moments: Mapping[str, Moments], factors: Mapping[str, Array] | None = None
) -> dict[str, Array]:
  """a of each kernel: the greatest input of the calibration texts on 127.

  Args:
    moments: of `calibrate.collect`, with the parameters before `fold.fold`.
    factors: all factors, folded or not, by which inputs will be divided.
  """
  factors = factors or {}
  return {
    path: _scale(jnp.max(own.largest_K / factors.get(path, 1.0)))
    for path, own in moments.items()
  }


def rounded(x_LK: Array, scale: Array | None = None) -> tuple[Array, Array]:
  """Codes, int8, and their scales: [L, 1], or `scale`.

  Args:
    x_LK: inputs.
    scale: a, float32 []; None for one of each token.
  """
  x_LK = x_LK.astype(jnp.float32)
  if scale is None:
    scale = _scale(jnp.max(jnp.abs(x_LK), axis=1, keepdims=True))
  steps_LK = jnp.round(x_LK / scale)
  return jnp.clip(steps_LK, -HIGH, HIGH).astype(jnp.int8), scale


def product(x_LK: Array, w: QTensor, scale: Array | None = None) -> Array:
  """y_LN of the rounded inputs and the codes of a matrix, float32.

  Args:
    x_LK: inputs.
    w: as `tensors.quantise` makes it.
    scale: a, see `rounded`.

  Raises:
    ConfigError: codes of a codebook, which are no integers times a scale.
    ValueError: so many inputs share a scale that a sum could be too large.
  """
  if w.grid.rule == 'kmeans':
    raise ConfigError(
      "codes of rule='kmeans' stand for values of a codebook, and have no "
      'products as integers.\nTake activations=None, or another rule.'
    )
  inputs, outputs = w.codes.shape
  length = w.grid.tile or inputs
  has_zero = w.codes.dtype == jnp.uint8
  most = MOST_WITH_ZERO if has_zero else MOST_INPUTS
  if min(length, inputs) > most:
    raise ValueError(
      f'{min(length, inputs)} inputs share a scale, and int32 holds the sums '
      f'of {most}; use tiles'
    )
  if w.inputs.size:
    x_LK = x_LK.astype(jnp.float32) / w.inputs[None]
  q_LK, scale = rounded(x_LK, scale)
  codes_KN, zero_GN = w.codes, w.zero.astype(jnp.int32)
  if has_zero:
    codes_KN = (codes_KN.astype(jnp.int16) - _OFFSET).astype(jnp.int8)
    zero_GN -= _OFFSET

  def part(q_LT, codes_TN, scale_N, zero_N):
    whole_LN = jax.lax.dot_general(
      q_LT, codes_TN, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )
    if has_zero:
      sums_L1 = jnp.sum(q_LT, axis=1, keepdims=True, dtype=jnp.int32)
      whole_LN -= sums_L1 * zero_N[None]
    return whole_LN.astype(jnp.float32) * scale_N[None]

  if length >= inputs:
    return scale * part(q_LK, codes_KN, w.scale[0], zero_GN[0])
  # One tile after the other: together their products would be many times what
  # comes out.
  rest = -inputs % length
  q_LK = jnp.pad(q_LK, ((0, 0), (0, rest)))
  codes_KN = jnp.pad(codes_KN, ((0, rest), (0, 0)))
  q_GLT = q_LK.reshape(len(q_LK), -1, length).transpose(1, 0, 2)
  codes_GTN = codes_KN.reshape(-1, length, outputs)
  start_LN = jnp.zeros((len(q_LK), outputs), jnp.float32)
  y_LN, _ = jax.lax.scan(
    lambda total_LN, tile: (total_LN + part(*tile), None),
    start_LN,
    (q_GLT, codes_GTN, w.scale, zero_GN),
  )
  return scale * y_LN


def _scale(largest):
  return jnp.where(largest > 0, largest / HIGH, 1.0)
