"""S5, token by token, in complex arithmetic."""

import jax
import jax.numpy as jnp

SMALL = [
  {'state_width': 8, 'hippo_blocks': 2, 'chunk': 2},
  {'state_width': 2, 'hippo_blocks': 1, 'chunk': 3},
]


def read(params, name, segment_T, x_TD):
  """2 Re(C h) of the tokens in the order given."""
  step_M = jnp.exp(params['log_step'])
  lambda_M = params['rate_real'] + 1j * params['rate_turn']
  b_DM = params['input_real'] + 1j * params['input_imaginary']
  c_MD = params[f'{name}_real'] + 1j * params[f'{name}_imaginary']
  outputs, h_M, segment = [], jnp.zeros_like(lambda_M), 0
  for t in range(x_TD.shape[0]):
    # Held for a step, the input moves h by the integral of its decay.
    fade_M = jnp.exp(lambda_M * step_M)
    new_M = (fade_M - 1) / lambda_M * (x_TD[t] @ b_DM)
    is_real, is_same = segment_T[t] > 0, segment_T[t] == segment
    next_M = jnp.where(is_same, fade_M * h_M, 0) + new_M
    h_M = jnp.where(is_real, next_M, h_M)
    segment = jnp.where(is_real, segment_T[t], segment)
    outputs.append(2 * (h_M @ c_MD).real)
  return jnp.stack(outputs)


def definition(case, variables, x_BTD, tokens):
  params = variables['params']

  def row(segment_T, x_TD):
    y_TD = read(params, 'past', segment_T, x_TD)
    if not case.is_causal:
      y_TD += read(params, 'future', segment_T[::-1], x_TD[::-1])[::-1]
    y_TD += params['through'][None] * x_TD
    g_TD = jax.nn.gelu(y_TD, approximate=True)
    gate = params['gate']
    return g_TD / (1 + jnp.exp(-g_TD @ gate['kernel'] - gate['bias'][None]))

  return jax.vmap(row)(tokens.segment_BT, x_BTD)
