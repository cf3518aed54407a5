"""S5, one state space for all channels (Smith et al. 2023, 2208.04933).

    h_i = exp(Lambda Delta) h_{i-1} + Lambda^{-1} (exp(Lambda Delta) - 1) B x_i
    g_i = gelu(2 Re(C h_i) + d x_i)        y_i = g_i sigmoid(W g_i + b)

with h in C^{P/2}: one of each pair of conjugate states. Lambda starts with the
eigenvalues of HiPPO-N; B and C are complex; Delta is a step for each state.
Bidirectionally a second recurrence reads the tokens in reverse order, with
columns of C of its own, and the token itself is in both, as published.

Cost: time T P D + T D^2, memory T (P + D). The state of a stream is P numbers.
Not supported: a context, and everything that needs queries and keys (heads,
rotary positions, biases of the logits). Padding does not move the state.

Re Lambda is at most -1e-4, an option of the authors' code that keeps every
state from growing. Parameters are real and trained like all others (the paper
has a smaller rate for Lambda, B and Delta). Parameters of the recurrence and
states are float32 in any compute dtype. There are no attention probabilities,
so dropout acts on the output.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer.attention.contract import Supports, repeated
from effformer.attention.model_width import ModelWidth
from effformer.attention.primitives import diagonal
from effformer.shapes import DTypeLike

# Of the steps Delta at the start.
STEPS = (1e-3, 1e-1)
LARGEST_REAL = -1e-4


class S5Mixer(ModelWidth):
  """The layer of S5 without norm and residual.

  Attributes:
    state_width: P, real numbers of state; even multiple of `hippo_blocks`.
    hippo_blocks: J, equal blocks of states that each start as a HiPPO-N.
    causal: a token sees itself and earlier ones only.
    chunk: tokens, length of a chunk of the parallel form.
    dropout: probability, in [0, 1), on the output.
    dtype: compute dtype; parameters are float32.
  """

  mechanism: ClassVar[str] = 's5'
  supports: ClassVar[Supports] = Supports(
    causal=True,
    streaming=True,
    packing=True,
    linear_time=True,
    linear_memory=True,
  )

  state_width: int = 128
  hippo_blocks: int = 8
  causal: bool = False
  chunk: int = 64

  def __post_init__(self):
    super().__post_init__()
    for setting in ('state_width', 'hippo_blocks', 'chunk'):
      self.at_least(setting, 1)
    if self.state_width % (2 * self.hippo_blocks):
      raise ValueError(
        's5: state_width must be a multiple of 2 hippo_blocks, here '
        f'{2 * self.hippo_blocks}, got {self.state_width}'
      )

  def init_state(
    self, batch_size: int, max_length: int, dtype: DTypeLike = jnp.float32
  ) -> diagonal.Memory:
    """See `Mixer`; holds any number of tokens, always in complex64."""
    self.check_streaming()
    start = diagonal.empty(self.state_width // 2, jnp.complex64)
    return repeated(start, batch_size)

  @nn.compact
  def mix(self, x_BTD, tokens, memory, deterministic):
    """See `ModelWidth`."""
    width, num_states = x_BTD.shape[-1], self.state_width // 2
    keep_BT1 = tokens.keep_BT[..., None]
    x_BTD = jnp.where(keep_BT1, x_BTD, 0).astype(self.dtype)
    rate_M, input_DM, outputs_MD = self._space(width)
    drive_BTM = self._drive(x_BTD, input_DM)
    axis = 0
    if memory is None:
      axis, memory = None, diagonal.empty(num_states, jnp.complex64)
    scan = jax.vmap(
      functools.partial(diagonal.scan, rate_M, chunk=self.chunk),
      in_axes=(0, 0, axis),
    )
    segment_BT = tokens.segment_BT
    h_BTM, after = scan(drive_BTM, segment_BT, memory)
    y_BTD = self._read(h_BTM, outputs_MD[0])
    if not self.causal:
      h_BTM, _ = scan(drive_BTM[:, ::-1], segment_BT[:, ::-1], memory)
      y_BTD += self._read(h_BTM[:, ::-1], outputs_MD[1])
    through_D = self.param('through', nn.initializers.normal(1.0), (width,))
    y_BTD += through_D[None, None] * x_BTD.astype(jnp.float32)
    g_BTD = nn.gelu(jnp.where(keep_BT1, y_BTD, 0)).astype(self.dtype)
    gate_BTD = nn.Dense(width, dtype=self.dtype, name='gate')(g_BTD)
    y_BTD = g_BTD * nn.sigmoid(gate_BTD)
    return nn.Dropout(self.dropout)(y_BTD, deterministic), after

  @nn.nowrap
  def _space(self, width):
    """exp(Lambda Delta), the discrete B, and C for each direction."""
    block_M = hippo_rates(self.state_width // self.hippo_blocks)
    lambda_M = np.tile(block_M, self.hippo_blocks)
    num_states = lambda_M.shape[0]
    real_M = self.param('rate_real', lambda _: jnp.asarray(lambda_M.real))
    turn_M = self.param('rate_turn', lambda _: jnp.asarray(lambda_M.imag))
    log_step_M = self.param('log_step', _log_steps, (num_states,))
    lambda_M = jax.lax.complex(jnp.minimum(real_M, LARGEST_REAL), turn_M)
    exponent_M = lambda_M * jnp.exp(log_step_M)
    gain_M = jnp.expm1(exponent_M) / lambda_M

    def matrix(name, fan_in, *shape):
      # A normal matrix has normal coordinates in the eigenvectors, half of its
      # variance in either part.
      init = nn.initializers.normal((2 * fan_in) ** -0.5)
      return jax.lax.complex(
        self.param(f'{name}_real', init, shape),
        self.param(f'{name}_imaginary', init, shape),
      )

    input_DM = matrix('input', width, width, num_states)
    directions = ('past',) if self.causal else ('past', 'future')
    outputs_MD = [
      matrix(name, self.state_width, num_states, width) for name in directions
    ]
    return jnp.exp(exponent_M), input_DM * gain_M[None], outputs_MD

  @nn.nowrap
  def _drive(self, x_BTD, input_DM):
    both_BTM = self._product(x_BTD, (input_DM.real, input_DM.imag), axis=1)
    return jax.lax.complex(*jnp.split(both_BTM, 2, axis=-1))

  @nn.nowrap
  def _read(self, h_BTM, output_MD):
    """2 Re(C h), float32."""
    h_BTM = jnp.concatenate([h_BTM.real, h_BTM.imag], axis=-1)
    parts = (2 * output_MD.real, -2 * output_MD.imag)
    return self._product(h_BTM, parts, axis=0)

  @nn.nowrap
  def _product(self, x, parts, axis):
    kernel = jnp.concatenate(parts, axis=axis).astype(self.dtype)
    return jnp.einsum(
      'btd,dm->btm', x.astype(self.dtype), kernel,
      preferred_element_type=jnp.float32,
    )  # fmt: skip


def hippo_rates(num_states: int) -> np.ndarray:
  """Eigenvalues of HiPPO-N of even size, complex64, one of each conjugate pair.

  The normal part of HiPPO-LegS is -1/2 plus a skew matrix (section 3.2),
  S_nk = sqrt(2n + 1) sqrt(2k + 1) / 2 above the diagonal.
  """
  root_M = np.sqrt(2.0 * np.arange(num_states) + 1.0)
  upper_MM = np.triu(0.5 * root_M[:, None] * root_M[None, :], 1)
  turn_M = np.linalg.eigvalsh(1j * (upper_MM - upper_MM.T))
  return (-0.5 + 1j * turn_M[num_states // 2 :]).astype(np.complex64)


def _log_steps(rng, shape):
  low, high = np.log(STEPS)
  return jax.random.uniform(rng, shape, jnp.float32, low, high)
