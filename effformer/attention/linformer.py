"""Linformer: softmax attention to r mixtures of tokens (Wang et al. 2020,
2006.04768).

    O = softmax(Q (E K)^T / sqrt(K)) (F V),   E, F in R^{r x max_length}

Cost: time T r K, memory T r. Where all heads share E and F, E (X W) is made as
(E X) W: keys and values of tokens are never made, which is cheaper unless few
heads share a large r. Keys and values of padding count as 0, without bias; the
r logits are not masked. Shorter rows use the first columns of E and F, so
padding on the right is harmless, and padding on the left changes the answer. A
row without real tokens returns 0.

`mixing` has further maps from tokens to mixtures; a mixture of no real token is
masked, and with as many mixtures as tokens the first two can be softmax itself:

    pool      means of r groups of neighbours, as equal as can be, of the real
              tokens: no parameters, any length (section 4 of the paper)
    conv      one filter a channel, of max_length / r taps and as large a stride
              (rounded up), from the first token of the row (section 4)
    dynamic   softmax over the real tokens of x W, W in R^{D x r} for each head,
              the same for keys and values (Zhu et al. 2021, 2107.02192, without
              its norms and its window): any length, and order does not matter

Not supported: causal (every mixture holds all tokens), hence streaming;
packing; rotary positions (a mixture has no position). Dropout acts on the
attention probabilities.

Deviation: E and F start with variance 1 / max_length (the paper's theory has
1 / r), so that mixtures of any number of tokens start at the scale of one.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import chunked, pooling, softmax

SHARING = ('none', 'headwise', 'key_value')
MIXING = ('learned', 'pool', 'conv', 'dynamic')


class LinformerAttention(MultiHead):
  """Attention with keys and values projected to a fixed number.

  Attributes:
    rank: r, mixtures of tokens that stand for all keys.
    mixing: how they are made, 'learned' (E and F), 'pool', 'conv' or 'dynamic'.
    sharing: of E and F, or of the filters, within a layer: 'none' (an E and an
      F for every head), 'headwise' (one E and one F for all heads), 'key_value'
      (one E = F for all heads).
    max_length: source tokens that E and F, or the filters, are made for; None
      for the length at initialisation. Longer inputs raise ValueError.
  """

  mechanism: ClassVar[str] = 'linformer'
  supports: ClassVar[Supports] = Supports(
    cross=True,
    grouped=True,
    needs_length=True,
    linear_time=True,
    linear_memory=True,
  )

  rank: int = 64
  mixing: str = 'learned'
  sharing: str = 'key_value'
  max_length: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.at_least('rank', 1)
    if self.max_length is not None:
      self.at_least('max_length', 1)
    self.one_of('mixing', MIXING)
    self.one_of('sharing', SHARING)

  def project(self, x_BTD, context_BSD, tokens, carry):
    """See `MultiHead`; keys and values may be mixed already.

    `more` are the logits of dynamic mixtures.
    """
    if self._mixes_first():
      return self._project_mixtures(x_BTD, context_BSD, tokens), carry
    streams, carry = super().project(x_BTD, context_BSD, tokens, carry)
    if self.mixing == 'dynamic':
      groups = self.num_kv_heads or self.num_heads
      shares = self.projection('shares', (groups, self.rank))(context_BSD)
      streams = (*streams[:3], shares)
    return streams, carry

  @nn.nowrap
  def projects_tokens(self) -> bool:
    """See `Mixer`; keys and values may be made of mixtures."""
    return not self._mixes_first()

  @nn.nowrap
  def _mixes_first(self):
    """Whether the same mixtures serve all heads and channels."""
    is_shared = self.mixing == 'learned' and self.sharing != 'none'
    return is_shared or self.mixing == 'pool'

  @nn.nowrap
  def _project_mixtures(self, x_BTD, context_BSD, tokens):
    """E (X W) as (E X) W, which has r rows to project instead of S."""
    width = self.width_of_head(x_BTD.shape[-1])
    shape = (self.num_kv_heads or self.num_heads, width)
    q_BTHK = self.projection('query', (self.num_heads, width))(x_BTD)
    keep_BS = tokens.keep_BT
    context_BSD = jnp.where(keep_BS[..., None], context_BSD, 0)
    context_BSD = context_BSD.astype(self.dtype)

    def learned(mix_MS):
      mix_MS = mix_MS[:, : context_BSD.shape[1]]
      mixed_BMD = softmax.product(
        'ms,bsd->bmd', mix_MS.astype(self.dtype), context_BSD
      )
      return mixed_BMD, keep_BS.astype(jnp.float32) @ mix_MS.T

    def projected(name, mixture):
      mixed_BMD, weight_BM = mixture
      dense = self.projection(name, shape)
      y_BMHK = dense(mixed_BMD.astype(self.dtype))
      if self.use_bias:
        # A mixture has the bias of each of its tokens.
        bias_HK = dense(jnp.zeros_like(context_BSD[0, 0]))
        y_BMHK += (weight_BM[..., None, None] - 1) * bias_HK[None, None]
      return y_BMHK.astype(self.dtype)

    if self.mixing == 'pool':
      mean = functools.partial(pooling.means, rank=self.rank)
      keys = values = jax.vmap(mean)(context_BSD, tokens.segment_BT)
    else:
      mix_keys, mix_values = self._parameters(context_BSD.shape[1])
      keys = values = learned(mix_keys)
      if mix_values is not mix_keys:
        values = learned(mix_values)
    k_BMHK, v_BMHV = projected('key', keys), projected('value', values)
    return q_BTHK, k_BMHK, v_BMHV, None

  def head_params(self, num_source, step):
    """E and F or the filters, [H, ...], or without H where shared."""
    if self._mixes_first() or self.mixing == 'dynamic':
      return None, False
    return self._parameters(num_source), self.sharing == 'none'

  @nn.nowrap
  def _parameters(self, num_source):
    is_learned = self.mixing == 'learned'
    max_length = self.max_length
    if max_length is None:
      max_length = num_source
      if self.has_variable('params', 'mix_keys'):
        shape = self.get_variable('params', 'mix_keys').shape
        max_length = shape[-1] if is_learned else shape[-2] * self.rank
    if num_source > max_length:
      raise ValueError(
        f'linformer: {num_source} source tokens, but its parameters are made '
        f'for at most {max_length} (max_length)'
      )
    shape, addends = (self.rank, max_length), max_length
    if not is_learned:
      addends = -(-max_length // self.rank)
      width = self.known_head_width()
      shape = (addends, width)
    if self.sharing == 'none':
      shape = (self.num_heads, *shape)
    init = nn.initializers.normal(stddev=addends**-0.5)
    mix_keys = self.param('mix_keys', init, shape)
    mix_values = mix_keys
    if self.sharing != 'key_value':
      mix_values = self.param('mix_values', init, shape)
    return mix_keys, mix_values

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    if self._mixes_first():
      k_MK, v_MV = head.k_SK, head.v_SV
      is_there_M = jnp.ones((self.rank,), jnp.int32)
      if self.mixing == 'pool':
        is_there_M = pooling.is_there(head.segment_S, self.rank)
    else:
      mixtures = getattr(self, f'_{self.mixing}')
      keep_S1 = head.segment_S[:, None] > 0
      sources = [jnp.where(keep_S1, x, 0) for x in (head.k_SK, head.v_SV)]
      (k_MK, v_MV), is_there_M = mixtures(sources, head, params)
    # All mixtures are one segment, which every real query may see.
    where = softmax.sites(jnp.minimum(head.segment_T, 1), is_there_M)
    pattern = softmax.Pattern(dropout=0.0 if head.rng is None else self.dropout)
    return chunked.attend(
      head.q_TK,
      k_MK.astype(head.k_SK.dtype),
      v_MV.astype(head.v_SV.dtype),
      where,
      head.rng,
      pattern=pattern,
      rows=call.rows,
    )[0]

  @nn.nowrap
  def _learned(self, sources, head, params):
    def project(x_SK, mix_MS):
      mix_MS = mix_MS[:, : x_SK.shape[0]].astype(x_SK.dtype)
      return softmax.product('ms,sk->mk', mix_MS, x_SK)

    return map(project, sources, params), jnp.ones((self.rank,), jnp.int32)

  @nn.nowrap
  def _conv(self, sources, head, params):
    def project(x_SK, filter_WK):
      (x_MWK,) = softmax.in_blocks(filter_WK.shape[0], x_SK)
      return softmax.product('mwk,wk->mk', x_MWK, filter_WK.astype(x_SK.dtype))

    (segment_MW,) = softmax.in_blocks(params[0].shape[0], head.segment_S)
    is_there_M = (segment_MW > 0).any(-1).astype(jnp.int32)
    return map(project, sources, params), is_there_M

  @nn.nowrap
  def _dynamic(self, sources, head, params):
    keep_S1 = head.segment_S[:, None] > 0
    shares_SM = jax.nn.softmax(
      jnp.where(keep_S1, head.more.astype(jnp.float32), softmax.MASKED), axis=0
    )
    shares_SM = jnp.where(keep_S1, shares_SM, 0.0)

    def project(x_SK):
      return softmax.product('sm,sk->mk', shares_SM.astype(x_SK.dtype), x_SK)

    return map(project, sources), jnp.ones((self.rank,), jnp.int32)
