"""Sparse Sinkhorn attention: each block attends to itself and to a mixture of
blocks (Tay et al. 2020, 2002.11296).

    R = mean(K_n) W                   S = sinkhorn((R + Gumbel noise) / tau)
    K'_n = sum_m S_nm K_m, same of V  O = softmax(Q_n [K'_n; K_n]^T) [V'_n; V_n]

S is nearly doubly stochastic, a soft permutation: so many `iterations` times
its columns and then its rows are divided by their sums. Cost: time
T (C + T / C) K for blocks of C tokens, memory T (K + C) + (T / C)^2. `combine`
'sum' adds two softmaxes instead of one over both; `sortcut` c lets every query
see the first c sorted blocks and nothing else.

Causal: R comes from the mean of the keys before the block, a block takes from
earlier ones only, and a column is divided by its sum so far; the first block
sees only itself. Noise is drawn in training only, from the key of the dropout,
which acts on the attention probabilities. A slot of a sorted block is the mean
of the real tokens in its place and counts as many as they weigh, so padding
has no part in it.

Not supported: a context (it has no blocks that belong to those of the queries),
packing (blocks are counted from the start of the row), streaming. Rotary
positions and relative biases act within the block: a mixture has no position.
Deviations: W acts on means of keys where the paper has sums of inputs, and rows
are normalised last, so that weights add up to one.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import (
  blocks,
  one_by_one,
  positions,
  softmax,
)
from effformer.shapes import Array

COMBINE = ('concat', 'sum')
# Slots of sorted blocks with fewer real tokens than that are empty.
LEAST_MASS = 1e-9


class SinkhornAttention(MultiHead):
  """Attention to the own block and to a soft permutation of blocks.

  Attributes:
    block: C, tokens; 0 for 64.
    combine: 'concat', one softmax over sorted and own block, or 'sum' of two.
    sortcut: c, sorted blocks that all queries see, instead of the sorted and
      the own one; 0 for those. Not where causal.
    iterations: of normalising the columns and the rows of S.
    temperature: tau; lower is harder.
    gumbel: noise on R in training.
    max_length: source tokens that W is made for; None for the length at
      initialisation. Longer inputs raise ValueError.
  """

  mechanism: ClassVar[str] = 'sinkhorn'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    rotary=True,
    relative_bias=True,
    needs_length=True,
    row_normalised=True,
    linear_memory=True,
  )
  rotates_itself: ClassVar[bool] = True

  block: int = 0
  combine: str = 'concat'
  sortcut: int = 0
  iterations: int = 8
  temperature: float = 0.75
  gumbel: bool = True
  max_length: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.one_of('combine', COMBINE)
    for setting, least in (('block', 0), ('sortcut', 0), ('iterations', 1)):
      self.at_least(setting, least)
    if self.max_length is not None:
      self.at_least('max_length', 1)
    if self.temperature <= 0:
      raise ValueError(
        f'sinkhorn: temperature must be above 0, got {self.temperature}'
      )
    asked = {
      'causal': self.causal,
      'rotary': self.rotary,
      'relative_bias': self.relative_bias != 'none',
    }
    for capability, is_asked in asked.items():
      if self.sortcut and is_asked:
        raise NotImplementedError(
          self.refusal(capability, f'when sortcut={self.sortcut}')
        )

  @nn.nowrap
  def is_random(self):
    """See `MultiHead`."""
    return self.gumbel or super().is_random()

  def head_params(self, num_source, step):
    """W, [H, K, largest number of blocks]."""
    max_length = self.max_length or num_source
    size = self.block or 64
    if self.max_length is None and self.has_variable('params', 'sort'):
      max_length = self.get_variable('params', 'sort').shape[-1] * size
    if num_source > max_length:
      raise ValueError(
        f'sinkhorn: {num_source} source tokens, but its parameters are made '
        f'for at most {max_length} (max_length)'
      )
    width = self.get_variable('params', 'key')['kernel'].shape[-1]
    init = nn.initializers.normal(stddev=width**-0.5)
    shape = (self.num_heads, width, -(-max_length // size))
    return self.param('sort', init, shape), True

  @nn.nowrap
  def mix(self, head: Head, sort_KN, call: Call):
    """See `MultiHead`."""
    length = head.q_TK.shape[0]
    block = min(self.block or 64, length)
    segment_NC, position_NC, k_NCK, v_NCV = softmax.in_blocks(
      block, head.segment_T, head.position_T, head.k_SK, head.v_SV
    )
    keep_NC = segment_NC > 0
    noise_rng, rng = None, None
    if head.rng is not None:
      noise_rng, rng = jax.random.split(head.rng)
    sort_NN = self._sort(k_NCK, keep_NC, sort_KN, noise_rng)
    sorted_ = _mix_blocks(sort_NN, keep_NC, k_NCK, v_NCV)
    if self.sortcut:
      # The same few blocks for all queries.
      sorted_ = tuple(
        x[: self.sortcut].reshape(-1, *x.shape[2:]) for x in sorted_
      )
    (plain_NCK,) = softmax.in_blocks(block, head.q_TK)
    turned = head.q_TK, head.k_SK
    if self.rotary:
      turned = (positions.rotate(x, head.position_T) for x in turned)
    turned = softmax.in_blocks(block, *turned)

    @jax.checkpoint
    def one(tile):
      number, q_CK, keep_C, theirs, own = tile
      k_SK, v_SV, mass_S = sorted_ if self.sortcut else theirs
      parts = [(_logits(q_CK, keep_C, k_SK, mass_S), v_SV)]
      if not self.sortcut:
        parts.append((self._own_logits(own, head.bias), own[-1]))
      here_rng = None if rng is None else jax.random.fold_in(rng, number)
      return self._weigh(parts, here_rng)

    num_blocks = keep_NC.shape[0]
    theirs = () if self.sortcut else sorted_
    own = () if self.sortcut else (*turned, segment_NC, position_NC, v_NCV)
    tiles = (jnp.arange(num_blocks), plain_NCK, keep_NC, theirs, own)
    together = one_by_one.numbers(call.rows) // (
      block**2 * max(2, self.sortcut)
    )
    o_NCV = jax.lax.map(
      one, tiles, batch_size=blocks.divisor(num_blocks, together)
    )
    return o_NCV.reshape(-1, o_NCV.shape[-1])[:length]

  @nn.nowrap
  def _sort(self, k_NCK, keep_NC, sort_KN, rng):
    """S, [N, N] float32; 0 where a block has nothing to give or to take."""
    num_blocks = keep_NC.shape[0]
    real_NCK = jnp.where(keep_NC[..., None], k_NCK.astype(jnp.float32), 0.0)
    sum_NK = real_NCK.sum(1)
    count_N1 = keep_NC.sum(1, keepdims=True).astype(jnp.float32)
    is_real_N = count_N1[:, 0] > 0
    keep_NN = is_real_N[:, None] & is_real_N[None, :]
    if self.causal:
      sum_NK, count_N1 = (jnp.cumsum(x, axis=0) - x for x in (sum_NK, count_N1))
      keep_NN &= jnp.tri(num_blocks, k=-1, dtype=bool)
    mean_NK = sum_NK / jnp.maximum(count_N1, 1.0)
    logits_NN = mean_NK @ sort_KN[:, :num_blocks]
    if self.gumbel and rng is not None:
      logits_NN += jax.random.gumbel(rng, logits_NN.shape)
    return normalise(
      logits_NN / self.temperature, keep_NN, self.iterations, self.causal
    )

  @nn.nowrap
  def _own_logits(self, own, bias):
    q_CK, k_CK, segment_C, position_C, _ = own
    index_C = jnp.arange(segment_C.shape[0], dtype=jnp.int32)
    pairs = (segment_C, segment_C, index_C, index_C, position_C, position_C)
    pattern = softmax.Pattern(causal=self.causal, bias=self.bias_rule())
    return softmax.logits(q_CK, k_CK, softmax.Sites(*pairs), pattern, bias)

  @nn.nowrap
  def _weigh(self, parts, rng):
    """Softmax over all parts together, or the sum over those of each."""
    dropout = 0.0 if rng is None else self.dropout
    if self.combine == 'concat':
      logits_CS = jnp.concatenate([part[0] for part in parts], axis=1)
      v_SV = jnp.concatenate([part[1] for part in parts])
      return softmax.weigh(logits_CS, v_SV, rng, dropout)[0]
    rngs = [None] * len(parts)
    if rng is not None:
      rngs = jax.random.split(rng, len(parts))
    return sum(
      softmax.weigh(*part, part_rng, dropout)[0]
      for part, part_rng in zip(parts, rngs, strict=True)
    )


def normalise(
  logits_NN: Array, keep_NN: Array, iterations: int, causal: bool
) -> Array:
  """exp(logits) with rows and nearly also columns that sum to one.

  Where causal, an entry of a column is divided by the sum of the column so far,
  for no row to know later ones. Rows without `keep` are 0.
  """

  def scale(log_NN, axis):
    is_so_far = causal and axis == 0
    if is_so_far:
      lse_NN = jax.lax.cumlogsumexp(log_NN, axis=0)
      has_any_NN = jnp.cumsum(keep_NN, axis=0) > 0
    else:
      lse_NN = jax.nn.logsumexp(log_NN, axis=axis, keepdims=True)
      has_any_NN = keep_NN.any(axis, keepdims=True)
    # The sum over nothing is far below: taken off, it would be something.
    return log_NN - jnp.where(has_any_NN, lse_NN, 0.0)

  def step(log_NN, _):
    return scale(scale(log_NN, 0), 1), None

  log_NN = jnp.where(keep_NN, logits_NN, softmax.MASKED)
  log_NN, _ = jax.lax.scan(step, log_NN, length=iterations)
  return jnp.where(keep_NN, jnp.exp(log_NN), 0.0)


def _mix_blocks(sort_NN, keep_NC, k_NCK, v_NCV):
  """Keys and values of sorted blocks, and how much of a token each slot is."""
  mass_NC = sort_NN @ keep_NC.astype(jnp.float32)
  divisor_NC1 = jnp.where(mass_NC > LEAST_MASS, mass_NC, 1.0)[..., None]

  def mix(x_NCK):
    x_NCK = jnp.where(keep_NC[..., None], x_NCK, 0)
    mixed_NCK = softmax.product(
      'nm,mck->nck', sort_NN.astype(x_NCK.dtype), x_NCK
    )
    return (mixed_NCK / divisor_NC1).astype(x_NCK.dtype)

  return mix(k_NCK), mix(v_NCV), mass_NC


def _logits(q_CK, keep_C, k_SK, mass_S):
  """Logits of sorted slots, each with the logarithm of its mass."""
  is_there_S = mass_S > LEAST_MASS
  log_mass_S = jnp.log(jnp.where(is_there_S, mass_S, 1.0))
  logits_CS = softmax.product('ck,sk->cs', q_CK, k_SK)
  logits_CS = logits_CS / math.sqrt(q_CK.shape[-1]) + log_mass_S[None]
  is_there_CS = keep_C[:, None] & is_there_S[None]
  return jnp.where(is_there_CS, logits_CS, softmax.MASKED)
