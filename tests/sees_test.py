"""The maps of what each mechanism sees are its Jacobian."""

import jax
import numpy as np
import pytest

from effformer import shapes
from experiments import sees


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retnet', 'gla'])
def test_a_column_is_what_forward_mode_says(name):
  J_TS = sees.sees(name)
  module = sees.build(name)
  tokens = shapes.Tokens.from_lengths(np.array([sees.T]), sees.T)
  x_BTD = jax.random.normal(jax.random.key(0), (1, sees.T, sees.D))
  variables = module.init(jax.random.key(1), x_BTD, tokens=tokens)

  @jax.jit
  def along(d_TD):
    return jax.jvp(
      lambda x_TD: module.apply(variables, x_TD[None], tokens=tokens)[0],
      (x_BTD[0],),
      (d_TD,),
    )[1]

  for s in (3, sees.T // 2):
    column_T = np.zeros(sees.T)
    for d in range(sees.D):
      d_TD = np.zeros((sees.T, sees.D), np.float32)
      d_TD[s, d] = 1
      column_T += (np.asarray(along(d_TD)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(J_TS[:, s], np.sqrt(column_T), atol=1e-5)
