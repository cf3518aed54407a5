"""The feed-forward part in chunks: the same, with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.models import layers
from tests.models.parameters import random_variables

B, T, D, F = 2, 7, 12, 10
X_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
WHOLE = layers.FeedForward(F)


def output_and_gradients(module, params):
  def loss(params, x_BTD):
    y_BTD = module.apply(params, x_BTD, deterministic=True)
    return (y_BTD**3).sum(), y_BTD

  step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  return jax.jit(step)(params, X_BTD)


def test_patches_are_in_reading_order():
  side, size, channels = 6, 2, 3
  u_BT = np.arange(2 * side * side * channels).reshape(2, -1)
  found_BNC = np.asarray(layers.patches(u_BT, size, channels))
  u_BHWC = u_BT.reshape(2, side, side, channels)
  for number in range(9):
    y, x = divmod(number, 3)
    patch = u_BHWC[:, y * 2 : y * 2 + 2, x * 2 : x * 2 + 2]
    np.testing.assert_array_equal(found_BNC[:, number], patch.reshape(2, -1))


@pytest.mark.parametrize(
  ('count', 'size', 'channels'), [(35, 1, 1), (36, 4, 1), (36, 2, 3)]
)
def test_what_has_no_patches_is_refused(count, size, channels):
  with pytest.raises(ValueError, match='no square image'):
    layers.patches(np.zeros((1, count)), size, channels)


def test_activations():
  x = np.array([-1.0, 0.5, 2.0])
  # x Phi(x), and its tanh form.
  exact = [-0.15865525, 0.34573123, 1.95449974]
  near = [-0.15880801, 0.34571401, 1.95459769]
  # x / (1 + exp(-1.702 x)).
  quick = [-0.15420423, 0.35038844, 1.93565862]
  for name, expected in (
    ('gelu_exact', exact),
    ('gelu', near),
    ('quick_gelu', quick),
    ('relu2', [0.0, 0.25, 4.0]),
  ):
    y = layers.ACTIVATIONS[name](x.astype(np.float32))
    np.testing.assert_allclose(y, expected, atol=1e-6)


# The last part may be short, and one part may be more than all.
@pytest.mark.parametrize('chunk', [1, 3, 7, 99])
def test_chunks_change_nothing(chunk):
  module = layers.FeedForward(F, chunk=chunk)
  params = random_variables(WHOLE, X_BTD, deterministic=True)
  chunked = random_variables(module, X_BTD, deterministic=True)
  jax.tree.map(np.testing.assert_array_equal, chunked, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    output_and_gradients(module, params),
    output_and_gradients(WHOLE, params),
  )


def test_chunks_start_with_the_same_parameters():
  first, second = (
    jax.jit(lambda key, module=module: module.init(
      key, X_BTD, deterministic=True
    ))(jax.random.key(0))
    for module in (WHOLE, layers.FeedForward(F, chunk=3))
  )  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_chunks_drop_different_things():
  module = layers.FeedForward(F, chunk=1, dropout=0.5)
  params = random_variables(WHOLE, X_BTD, deterministic=True)
  y_BTD = module.apply(
    params, np.ones_like(X_BTD), deterministic=False,
    rngs={'dropout': jax.random.key(0)},
  )  # fmt: skip
  assert np.unique(np.asarray(y_BTD)[0, :, 0].round(4)).size > 4


def test_the_hidden_layer_is_never_there_as_a_whole():
  length, width = 4096, 256
  x_BTD = jax.ShapeDtypeStruct((1, length, 4), jnp.float32)

  def memory(chunk):
    module = layers.FeedForward(width, chunk=chunk)
    params = jax.eval_shape(
      lambda x: module.init(jax.random.key(0), x, deterministic=True), x_BTD
    )

    def loss(params, x_BTD):
      return (module.apply(params, x_BTD, deterministic=True) ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, x_BTD).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  hidden = 4 * length * width
  assert memory(64) < hidden / 4
  assert memory(0) > hidden
