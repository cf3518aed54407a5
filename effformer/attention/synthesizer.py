"""Synthesizer: attention whose logits are not products of queries and keys
(Tay et al. 2020, 2005.00743).

    O = softmax(B) V,   B_ij one of, with j the position of the source token:

    dense               (max(x_i W_1 + b_1, 0) W_2 + b_2)_j
    random              R_ij, trained
    random_fixed        R_ij, drawn from N(0, 1) and not trained
    factorized_dense    f_A(x_i)_p f_B(x_i)_r,  j = p b + r
    factorized_random   (R_1 R_2^T)_ij, R_1, R_2 of `factor_width` columns

`mix_dot_product` takes a_1 B + a_2 Q K^T / sqrt(K) in the same softmax, with
learned a_1 + a_2 = 1 for each head (the paper's mixtures). f_A and f_B are two
layers as in `dense`, of which the first is common; b is sqrt(max_length),
rounded up, and a the least number with a b >= max_length. B is not divided by
sqrt(K). Biases of the second layers come with `use_bias`.

Cost: time T^2 V, and T^2 K for the dense forms; memory T (K + V), since logits
exist for one block of queries at a time, and are made again in the backward
pass. A head of the form 'random' has max_length^2 parameters, 'random_fixed'
draws T^2 numbers in each call.

Positions are those within the segment. Without packing a token's position is
its index in the row, so padding on the left changes the answer. A stream keeps
the values (and the keys of a mixture) of all tokens, of which there can be no
more than `max_length`.

Not supported: rotary positions and relative biases (R has positions of its
own); causal with a context; grouped queries. Dropout acts on the attention
probabilities.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import cache, one_by_one, softmax
from effformer.shapes import Array

VARIANTS = (
  'dense', 'random', 'random_fixed', 'factorized_dense', 'factorized_random',
)  # fmt: skip


class SynthesizerAttention(MultiHead):
  """Attention with logits from positions, or from the query alone.

  In a stream, tokens beyond the `max_length` of the state have no room: from
  then on the output of that row is NaN.

  Attributes:
    variant: 'dense', 'random', 'random_fixed', 'factorized_dense' or
      'factorized_random'.
    mix_dot_product: whether products of queries and keys have a share.
    factor_width: columns of R_1 and R_2.
    seed: of the fixed R, from 0 to 2^32 - 1.
    block: tokens, queries whose logits exist at a time; 0 chooses.
    max_length: source tokens that parameters are made for, and queries where
      these have random logits; None for the sources at initialisation. More
      raise ValueError.
  """

  mechanism: ClassVar[str] = 'synthesizer'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    cross=True,
    streaming=True,
    packing=True,
    needs_length=True,
    row_normalised=True,
    linear_memory=True,
  )

  variant: str = 'factorized_random'
  mix_dot_product: bool = False
  factor_width: int = 8
  seed: int = 0
  block: int = 0
  max_length: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.one_of('variant', VARIANTS)
    self.at_least('factor_width', 1)
    self.at_least('seed', 0)
    self.at_least('block', 0)
    if self.max_length is not None:
      self.at_least('max_length', 1)

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; queries are followed by the hidden layer."""
    heads = self.num_heads, self.width_of_head(x_BTD.shape[-1])
    v_BSHV = self.projection('value', heads)(context_BSD)
    k_BSHK, streams = v_BSHV[..., :0], []
    if self.mix_dot_product:
      k_BSHK = self.projection('key', heads)(context_BSD)
      streams.append(self.projection('query', heads)(x_BTD))
    if self._is_dense:
      streams.append(nn.relu(self.projection('hidden', heads)(x_BTD)))
    nothing = jnp.zeros((*x_BTD.shape[:2], self.num_heads, 0), self.dtype)
    q_BTHK = jnp.concatenate([*streams, nothing], axis=-1)
    return (q_BTHK, k_BSHK, v_BSHV, None), carry

  def head_params(self, num_source, step):
    """What makes B, with the axis of the heads in front."""
    length = self._length(num_source)
    self._check_length(num_source, 'source tokens', length)
    params = {}
    if self.variant == 'random_fixed':
      number_H = jnp.arange(self.num_heads)
      fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
      params['rng'] = fold(jax.random.key(self.seed), number_H)
    for name, (shape, stddev) in self._shapes(length).items():
      params[name] = self.param(
        f'logits_{name}',
        nn.initializers.normal(stddev) if stddev else nn.initializers.zeros,
        (self.num_heads, *shape),
      )
    return params, True

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    if call.is_cross and 'rows' in params:
      length = params['rows'].shape[0]
      self._check_length(head.q_TK.shape[0], 'queries', length)
    where = softmax.sites(*head[-4:])
    if not call.is_packed:
      where = where._replace(position_T=where.index_T, position_S=where.index_S)
    return self._attend(head, where, params, call.rows, call.is_packed)

  @nn.nowrap
  def head_state(self, max_length, head_width, dtype):
    """See `MultiHead`."""
    self._check_length(max_length, 'tokens of a stream', self._length(None))
    key_width = head_width if self.mix_dot_product else 0
    return cache.empty(max_length, key_width, head_width, dtype)

  @nn.nowrap
  def step(self, head: Head, state: cache.Cache, params, call: Call):
    """See `MultiHead`."""
    state, head, where = cache.append(state, head)
    o_TV = self._attend(head, where, params, call.rows, True)
    return jnp.where(state.is_full, jnp.nan, o_TV), state

  @nn.nowrap
  def known_head_width(self) -> int:
    """See `MultiHead`; there may be no queries."""
    if self.head_width is not None or self.scope is None:
      return super().known_head_width()
    return self.get_variable('params', 'value')['kernel'].shape[-1]

  @property
  def _is_dense(self):
    return self.variant in ('dense', 'factorized_dense')

  @nn.nowrap
  def _length(self, num_source: int | None) -> int | None:
    """The length that parameters have, or else are made for."""
    name = 'logits_rows' if self.variant == 'random' else 'logits_columns'
    if self.max_length is not None:
      return self.max_length
    if self.scope is None or not self.has_variable('params', name):
      return num_source
    length = self.get_variable('params', name).shape[-1]
    if self.variant == 'factorized_dense':
      length *= self.get_variable('params', 'logits_rows').shape[-1]
    return length

  @nn.nowrap
  def _check_length(self, number: int, what: str, length: int | None) -> None:
    if length is not None and number > length:
      raise ValueError(
        f'synthesizer: {number} {what}, but its parameters are made for at '
        f'most {length} (max_length)'
      )

  @nn.nowrap
  def _shapes(self, length: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Parameters of a head: shape, and deviation at the start."""
    width, shapes = self.factor_width, {}
    if self._is_dense:
      width = self.get_variable('params', 'hidden')['kernel'].shape[-1]
      sizes = {'columns': length}
      if self.variant == 'factorized_dense':
        sizes['columns'] = math.isqrt(length - 1) + 1
        sizes['rows'] = -(-length // sizes['columns'])
      for name, size in sizes.items():
        # Half of the hidden layer is 0.
        shapes[name] = (width, size), (2.0 / width) ** 0.5
        if self.use_bias:
          shapes[f'{name}_bias'] = (size,), 0.0
    elif self.variant == 'random':
      shapes['rows'] = (length, length), 1.0
    elif self.variant == 'factorized_random':
      shapes['rows'] = (length, width), width**-0.25
      shapes['columns'] = (width, length), width**-0.25
    if self.mix_dot_product:
      shapes['share'] = (2,), 0.0
    return shapes

  @nn.nowrap
  def _attend(self, head, where, params, rows, is_gathering):
    """Softmax over the logits of one block of queries after the other."""
    length, num_source = head.q_TK.shape[0], head.v_SV.shape[0]

    def pick(x_KL):
      """Columns of positions -> columns of sources."""
      if is_gathering:
        return x_KL[..., where.position_S]
      return x_KL[..., :num_source]

    is_late = self.variant not in ('dense', 'factorized_random')
    if not is_late:
      params = {
        name: pick(x) if name.startswith('columns') else x
        for name, x in params.items()
      }
    is_dropping = head.rng is not None
    pattern = softmax.Pattern(causal=self.causal)

    @jax.checkpoint
    def attend(_, block):
      number, q_CK, segment_C, index_C, position_C = block
      q_CK, hidden_CK = jnp.split(q_CK, [head.k_SK.shape[-1]], axis=-1)
      logits_CS = self._logits(params, hidden_CK, position_C, num_source)
      if is_late:
        logits_CS = pick(logits_CS)
      if self.mix_dot_product:
        share_2 = jax.nn.softmax(params['share'])
        dots_CS = softmax.product('ck,sk->cs', q_CK, head.k_SK)
        dots_CS /= math.sqrt(q_CK.shape[-1])
        logits_CS = share_2[0] * logits_CS + share_2[1] * dots_CS
      here = where._replace(segment_T=segment_C, index_T=index_C)
      logits_CS = jnp.where(
        softmax.admissible(here, pattern), logits_CS, softmax.MASKED
      )
      if not is_dropping:
        return None, softmax.weigh(logits_CS, head.v_SV)[0]
      rng = jax.random.fold_in(head.rng, number)
      return None, softmax.weigh(logits_CS, head.v_SV, rng, self.dropout)[0]

    most = self.block or one_by_one.numbers(rows) // num_source
    size = softmax.even_size(length, max(most, 1))
    blocks = softmax.in_blocks(
      size, head.q_TK, where.segment_T, where.index_T, where.position_T
    )
    numbered = (jnp.arange(blocks[0].shape[0]), *blocks)
    o_NCV = jax.lax.scan(attend, None, numbered)[1]
    return o_NCV.reshape(-1, o_NCV.shape[-1])[:length]

  @nn.nowrap
  def _logits(self, params, hidden_CK, position_C, num_source):
    """B of some queries, float32; columns as in the parameters."""

    def layer(name):
      weights_KL = params[name].astype(hidden_CK.dtype)
      logits_CL = softmax.product('ck,kl->cl', hidden_CK, weights_KL)
      if self.use_bias:
        logits_CL += params[f'{name}_bias'][None]
      return logits_CL

    if self.variant == 'dense':
      return layer('columns')
    if self.variant == 'factorized_dense':
      rows_CA, columns_CB = layer('rows'), layer('columns')
      logits_CAB = rows_CA[:, :, None] * columns_CB[:, None, :]
      return logits_CAB.reshape(rows_CA.shape[0], -1)
    if self.variant == 'random_fixed':
      return fixed(params['rng'], position_C, num_source)
    logits_CL = params['rows'][position_C]
    if self.variant == 'factorized_random':
      logits_CL = logits_CL @ params['columns']
    return logits_CL


def fixed(rng: Array, position_C: Array, size: int) -> Array:
  """Rows of the fixed R [C, size]; more columns leave these as they are."""

  def row(position):
    return jax.random.normal(jax.random.fold_in(rng, position), (size,))

  return jax.vmap(row)(position_C)
