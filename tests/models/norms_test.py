"""The norms of a model: definitions, and where they stand."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.compress import inside
from effformer.models import encoder, norms, predictor
from tests.models.parameters import random_variables

B, T, D, F, Y, EPSILON = 2, 7, 12, 10, 11, 0.3
RNG = np.random.default_rng(0)
X_BTD = RNG.normal(2, 3, size=(B, T, D)).astype('f4')
SCALE_D, BIAS_D = RNG.normal(size=(2, D)).astype('f4')
IDS_BT = RNG.integers(1, Y, (B, T))
LENGTHS_B = np.array([7, 4])
# Places that have a norm, of each order.
PLACES = {
  'pre': ('norm_in', 'head_norm', 'encoder/norm_out'),
  'post': ('norm_in', 'head_norm'),
}


def defined(kind, x_BTD, scale_D, bias_D=None):
  """By the formulas, float64."""
  x_BTD = np.asarray(x_BTD, 'f8')
  if kind == 'layer':
    x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
  if kind != 'affine':
    square_BT1 = (x_BTD**2).mean(-1, keepdims=True)
    x_BTD = x_BTD / np.sqrt(square_BT1 + EPSILON)
  return x_BTD * scale_D + (0 if kind == 'rms' else bias_D)


def parameters(kind):
  return {'scale': SCALE_D} | ({} if kind == 'rms' else {'bias': BIAS_D})


@pytest.mark.parametrize('kind', norms.KINDS)
def test_definitions(kind):
  module, params = norms.norm(kind, EPSILON), parameters(kind)
  shapes = jax.eval_shape(module.init, jax.random.key(0), X_BTD)['params']
  assert {name: x.shape for name, x in shapes.items()} == {
    name: (D,) for name in params
  }
  expected = defined(kind, X_BTD, SCALE_D, BIAS_D)
  y_BTD = module.apply({'params': params}, X_BTD)
  assert y_BTD.dtype == jnp.float32
  np.testing.assert_allclose(y_BTD, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', norms.KINDS)
def test_norms_start_as_the_identity_of_their_kind(kind):
  module = norms.norm(kind, EPSILON)
  y_BTD, _ = module.init_with_output(jax.random.key(0), X_BTD)
  expected = defined(kind, X_BTD, np.ones(D), np.zeros(D))
  np.testing.assert_allclose(y_BTD, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', norms.KINDS)
def test_statistics_are_float32(kind):
  """Only the result is rounded to bfloat16: 1 part in 256."""
  x_BTD = jnp.asarray(X_BTD + 20, jnp.bfloat16)
  module = norms.norm(kind, EPSILON, dtype=jnp.bfloat16)
  y_BTD = module.apply({'params': parameters(kind)}, x_BTD)
  assert y_BTD.dtype == jnp.bfloat16
  expected = defined(kind, np.asarray(x_BTD, 'f4'), SCALE_D, BIAS_D)
  np.testing.assert_allclose(
    np.asarray(y_BTD, 'f8'), expected, rtol=2**-8, atol=2e-4
  )


def test_what_is_no_norm():
  with pytest.raises(ValueError, match="no norm 'batch'; there are layer"):
    norms.norm('batch', EPSILON)


def is_norm(path):
  place = path.rpartition('/')[0].rpartition('/')[2]
  return place.startswith('norm_') or place == 'head_norm'


def model_of(kind, norm_order, num_layers=2, **fields):
  """A predictor with all the norms that there are, and a mixer with its own."""
  own = (('head_width', 4), ('num_heads', 3))
  layer = encoder.LayerConfig('gla', own, F)
  model = predictor.Predictor(
    vocabulary_size=Y, width=D, layers=(layer,) * num_layers, max_length=9,
    norm=kind, norm_order=norm_order, norm_epsilon=EPSILON,
    embedding_norm=True, token_head='transformed', **fields,
  )  # fmt: skip
  params = random_variables(model, IDS_BT, LENGTHS_B)['params']
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  rng = np.random.default_rng(1)
  for path in sorted(flat):
    if is_norm(path):
      flat[path] = rng.normal(size=D).astype('f4')
  return model, flat


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
@pytest.mark.parametrize('kind', norms.KINDS)
def test_every_norm_is_of_the_kind(kind, norm_order):
  _, flat = model_of(kind, norm_order)
  places = {
    *PLACES[norm_order],
    *(f'encoder/layer_{i}/norm_{x}' for i in (0, 1) for x in ('mixer', 'mlp')),
  }
  parts = ('scale',) if kind == 'rms' else ('scale', 'bias')
  found = {path for path in flat if is_norm(path) or path.endswith('/scale')}
  assert found == {f'{place}/{part}' for place in places for part in parts}
  # The norm of the heads of GLA is its own.
  assert flat['encoder/layer_0/mixer/norm'].ndim == 1


@pytest.mark.parametrize('norm_order', ['pre', 'post'])
@pytest.mark.parametrize('kind', ['rms', 'affine'])
def test_norms_of_blocks(kind, norm_order):
  model, flat = model_of(kind, norm_order)
  params = flax.traverse_util.unflatten_dict(flat, sep='/')
  seen = {}

  def see(call):
    if call.module.path in (('norm_mixer',), ('norm_mlp',)):
      place = f'encoder/layer_{call.layer}/{call.module.name}'
      seen[place] = call.arguments[0], call.output

  inside.apply(model, params, see, IDS_BT, LENGTHS_B, method='vectors')
  assert len(seen) == 4
  for place, (x_BTD, y_BTD) in seen.items():
    bias_D = flat.get(f'{place}/bias')
    expected = defined(kind, x_BTD, flat[f'{place}/scale'], bias_D)
    np.testing.assert_allclose(y_BTD, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', norms.KINDS)
def test_norms_outside_of_blocks(kind):
  """Without blocks the whole model is that of embedding and head."""
  model, flat = model_of(kind, 'pre', num_layers=0)
  params = flax.traverse_util.unflatten_dict(flat, sep='/')

  def norm(place, x_BTD):
    bias_D = flat.get(f'{place}/bias')
    return defined(kind, x_BTD, flat[f'{place}/scale'], bias_D)

  table_YD = flat['embedding/embedding'].astype('f8')
  y_BTD = norm('encoder/norm_out', norm('norm_in', table_YD[IDS_BT]))
  y_BTD = y_BTD @ flat['head_in/kernel'] + flat['head_in/bias']
  y_BTD *= 0.5 * (
    1 + np.tanh(np.sqrt(2 / np.pi) * (y_BTD + 0.044715 * y_BTD**3))
  )
  expected = norm('head_norm', y_BTD) @ table_YD.T + flat['head_bias']
  actual = model.apply({'params': params}, IDS_BT, LENGTHS_B)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
