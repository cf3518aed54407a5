"""Linformer: softmax attention to r mixtures of tokens (Wang et al. 2020,
2006.04768).

    O = softmax(Q (E K)^T / sqrt(K)) (F V),   E, F in R^{r x max_length}

Cost: time T r K, memory T r. Keys and values of padding are zeroed after their
bias and before E and F; the r logits are not masked. Shorter rows use the first
columns of E and F, so padding on the right is harmless, and padding on the left
changes the answer. A row without real tokens returns 0.

Not supported: causal (every mixture holds all tokens), hence streaming;
packing; rotary positions (a mixture has no position). Dropout acts on the
attention probabilities.

Deviation: E and F start with variance 1 / max_length (the paper's theory has
1 / r), so that mixtures of any number of tokens start at the scale of one.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from effformer.attention.contract import Supports
from effformer.attention.multihead import Call, Head, MultiHead
from effformer.attention.primitives import chunked, softmax

SHARING = ('none', 'headwise', 'key_value')


class LinformerAttention(MultiHead):
  """Attention with keys and values projected to a fixed number.

  Attributes:
    rank: r, mixtures of tokens that stand for all keys.
    sharing: within a layer, 'none' (E and F for every head), 'headwise' (one E
      and one F for all heads), 'key_value' (one E = F for all heads).
    max_length: source tokens that E and F are made for; None for the length
      at initialisation. Longer inputs raise ValueError.
  """

  mechanism: ClassVar[str] = 'linformer'
  supports: ClassVar[Supports] = Supports(
    cross=True, grouped=True, needs_length=True, linear_memory=True
  )

  rank: int = 64
  sharing: str = 'key_value'
  max_length: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.at_least('rank', 1)
    if self.max_length is not None:
      self.at_least('max_length', 1)
    self.one_of('sharing', SHARING)

  def head_params(self, num_source):
    """E and F, [H, r, max_length], or [r, max_length] where shared."""
    max_length = self.max_length
    if max_length is None:
      max_length = num_source
      if self.has_variable('params', 'mix_keys'):
        max_length = self.get_variable('params', 'mix_keys').shape[-1]
    if num_source > max_length:
      raise ValueError(
        f'linformer: {num_source} source tokens, but its parameters are made '
        f'for at most {max_length} (max_length)'
      )
    shape = (self.rank, max_length)
    if self.sharing == 'none':
      shape = (self.num_heads, *shape)
    init = nn.initializers.normal(stddev=max_length**-0.5)
    mix_keys = self.param('mix_keys', init, shape)
    mix_values = mix_keys
    if self.sharing != 'key_value':
      mix_values = self.param('mix_values', init, shape)
    return (mix_keys, mix_values), self.sharing == 'none'

  @nn.nowrap
  def mix(self, head: Head, params, call: Call):
    """See `MultiHead`."""
    keep_S1 = head.segment_S[:, None] > 0

    def project(mix_MS, x_SK):
      x_SK = jnp.where(keep_S1, x_SK, 0)
      mix_MS = mix_MS[:, : x_SK.shape[0]].astype(x_SK.dtype)
      return jnp.einsum(
        'ms,sk->mk', mix_MS, x_SK, preferred_element_type=jnp.float32
      ).astype(x_SK.dtype)

    mix_keys_MS, mix_values_MS = params
    k_MK = project(mix_keys_MS, head.k_SK)
    v_MV = project(mix_values_MS, head.v_SV)
    # All mixtures are one segment, which every real query may see.
    where = softmax.sites(
      jnp.minimum(head.segment_T, 1), jnp.ones((self.rank,), jnp.int32)
    )
    pattern = softmax.Pattern(dropout=0.0 if head.rng is None else self.dropout)
    return chunked.attend(
      head.q_TK,
      k_MK,
      v_MV,
      where,
      head.rng,
      pattern=pattern,
      block=chunked.side(call.rows),
    )[0]
