"""Extra tokens: rows behind learned vectors, which no head sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lra_text
from effformer import attention, shapes
from effformer.models import build, classifier, encoder
from tests.models.parameters import random_variables

B, T, D, H, F, M = 2, 7, 12, 3, 10, 2
LENGTHS_B = np.array([7, 4])
TOKENS = shapes.Tokens.from_lengths(LENGTHS_B, T)
X_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
IDS_BT = np.random.default_rng(1).integers(1, 11, (B, T))


def layer(mixer='full', settings=(('form', 'dense'),), **facts):
  return encoder.LayerConfig(
    mixer=mixer, settings=(*settings, ('num_heads', H)), mlp_width=F, **facts
  )


ETC = layer('bigbird', (('block', 2), ('global_tokens', M), ('num_random', 1)))
LONGFORMER = layer(
  'longformer', (('attention_window', 2), ('global_tokens', M))
)
CAUSAL = layer('full', (('causal', True), ('form', 'dense'), ('rotary', True)))


def parameters_of(module):
  return random_variables(module, X_BTD, tokens=TOKENS)


@pytest.mark.parametrize('reversible', [False, True])
def test_parameters_are_the_vectors_and_those_without(reversible):
  kinds = (layer(), layer('local', ()))
  plain, extra = (
    encoder.Encoder(kinds, reversible=reversible, extra_tokens=number)
    for number in (0, M)
  )
  params = jax.tree.map(jnp.shape, parameters_of(extra)['params'])
  assert params.pop('extra_tokens') == (M, D)
  assert params == jax.tree.map(jnp.shape, parameters_of(plain)['params'])


def test_vectors_start_apart_and_as_large_as_tokens():
  module = encoder.Encoder((), extra_tokens=100)
  params = jax.jit(functools.partial(module.init, tokens=TOKENS))(
    jax.random.key(0), X_BTD
  )['params']
  assert np.std(params['extra_tokens'], axis=1).mean() == pytest.approx(1, 0.1)
  assert np.std(params['extra_tokens'], axis=0).mean() == pytest.approx(1, 0.1)


@pytest.mark.parametrize(
  ('kinds', 'fields'),
  [
    ((layer(conv_width=3), ETC), {}),
    ((LONGFORMER,), {'norm_order': 'post'}),
    ((layer(),) * 3, {'remat': True}),
    ((CAUSAL, layer(mlp_chunk=4)), {'reversible': True}),
  ],
  ids=['plain', 'post', 'scanned-remat', 'reversible'],
)
def test_equals_vectors_put_before_the_row_by_hand(kinds, fields):
  ours = encoder.Encoder(kinds, extra_tokens=M, **fields)
  plain = encoder.Encoder(kinds, **fields)
  params = parameters_of(ours)['params']

  def by_hand(params, x_BTD):
    params = dict(params)
    extra_BMD = jnp.stack([params.pop('extra_tokens')] * B)
    y_BTD = plain.apply(
      {'params': params},
      jnp.concatenate([extra_BMD, x_BTD], axis=1),
      tokens=shapes.Tokens.from_lengths(LENGTHS_B + M, T + M),
    )
    return y_BTD[:, M:]

  def with_gradients(apply):
    def loss(params, x_BTD):
      y_BTD = jnp.where(TOKENS.keep_BT[..., None], apply(params, x_BTD), 0.0)
      return (y_BTD**3).mean(), y_BTD

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(step)(params, X_BTD)

  results = with_gradients(
    lambda params, x_BTD: ours.apply({'params': params}, x_BTD, tokens=TOKENS)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    results,
    with_gradients(by_hand),
  )
  (_, y_BTD), (gradients, _) = results
  assert y_BTD.shape == X_BTD.shape
  assert np.abs(gradients['extra_tokens']).max(-1).min() > 1e-4


@functools.cache
def model_of(kinds=(ETC,), **fields):
  model = classifier.Classifier(
    vocabulary_size=11,
    num_classes=5,
    width=D,
    layers=kinds,
    max_length=9,
    extra_tokens=M,
    **fields,
  )
  params = random_variables(model, IDS_BT, LENGTHS_B)['params']
  return params, jax.jit(lambda p, *inputs: model.apply({'params': p}, *inputs))


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_neither_padding_nor_its_amount_matters(pooling):
  params, apply = model_of(pooling=pooling, position='learned')
  logits_BC = apply(params, IDS_BT, LENGTHS_B)
  longer_BT = np.pad(IDS_BT, ((0, 0), (0, 2)), constant_values=3)
  longer_BC = apply(params, longer_BT, LENGTHS_B)
  np.testing.assert_allclose(logits_BC, longer_BC, atol=1e-5)


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_heads_see_the_row_and_its_own_positions(pooling):
  """Without layers, extra tokens change nothing."""
  params, apply = model_of((), pooling=pooling, position='learned')
  assert params['positions'].shape == (9 + (pooling == 'cls'), D)
  plain = classifier.Classifier(
    vocabulary_size=11,
    num_classes=5,
    width=D,
    layers=(),
    max_length=9,
    pooling=pooling,
    position='learned',
  )
  logits_BC = apply(params, IDS_BT, LENGTHS_B)
  own = {**params, 'encoder': {'norm_out': params['encoder']['norm_out']}}
  expected_BC = jax.jit(plain.apply)({'params': own}, IDS_BT, LENGTHS_B)
  np.testing.assert_allclose(logits_BC, expected_BC, atol=1e-6)


def test_an_empty_row_stays_empty():
  # The padding of FNet would show what else there is in the row.
  fnet = encoder.LayerConfig('fnet', (), mlp_width=F)
  kinds = (fnet, layer())
  module = encoder.Encoder(kinds, extra_tokens=M)
  params = parameters_of(module)['params']
  tokens = shapes.Tokens.from_lengths(np.array([7, 0]), T)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def of_row(params, b):
    y_BTD = module.apply({'params': params}, X_BTD, tokens=tokens)
    y_TD = y_BTD[b]
    return (y_TD * jnp.asarray(X_BTD)[b]).sum(), y_TD

  (_, y_TD), gradients = of_row(params, 1)
  own = {name: params[name] for name in params if name != 'extra_tokens'}
  expected_BTD = jax.jit(
    functools.partial(encoder.Encoder(kinds).apply, tokens=tokens)
  )({'params': own}, X_BTD)
  np.testing.assert_allclose(y_TD, expected_BTD[1], atol=1e-6)
  np.testing.assert_array_equal(gradients['extra_tokens'], 0.0)
  _, gradients = of_row(params, 0)
  assert np.abs(gradients['extra_tokens']).max(-1).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('name', attention.TABLE)
def test_every_mechanism_reads_them(name):
  config = lra_text.get_config(f'{name},quick')
  config.update_from_flattened_dict(
    {
      'model.num_layers': 1,
      'model.extra_tokens': 3,
      'data.max_length': 16,
    }
  )
  if 'global_tokens' in config.mixer:
    config.mixer.global_tokens = 3
  model = build.sequence_classifier(config, 20, 3)
  # As long as the parameters are for.
  inputs = np.tile(np.arange(1, 17), (2, 1)), np.array([16, 9])
  params = random_variables(model, *inputs)['params']

  @jax.jit
  @jax.grad
  def gradient(params):
    return (model.apply({'params': params}, *inputs) ** 2).sum()

  vectors_MD = gradient(params)['encoder']['extra_tokens']
  assert np.isfinite(vectors_MD).all()
  assert np.abs(vectors_MD).max(-1).min() > 0


def test_packing_is_refused():
  module = encoder.Encoder((layer(),), extra_tokens=M)
  packed = shapes.Tokens.from_segments([[1, 1, 2, 2, 2, 3, 0]] * B)
  with pytest.raises(NotImplementedError, match=r'extra_tokens=2.*packing'):
    jax.eval_shape(
      functools.partial(module.init, tokens=packed), jax.random.key(0), X_BTD
    )


def test_wrong_number_is_refused():
  with pytest.raises(ValueError, match=r'extra_tokens.*0.*-1'):
    encoder.Encoder((), extra_tokens=-1)
