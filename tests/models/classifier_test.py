"""Embedding to logits: pooling and positions respect the lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.models import classifier, encoder
from tests.models.parameters import random_variables

B, T, D, Y, C = 2, 7, 12, 11, 5
LENGTHS_B = np.array([7, 4])
IDS_BT = np.where(
  np.arange(T)[None] < LENGTHS_B[:, None],
  np.random.default_rng(0).integers(1, Y, (B, T)),
  0,
)
POOLINGS = ('mean', 'cls')


def build(**fields):
  layer = encoder.LayerConfig(
    'full', (('form', 'dense'), ('num_heads', 3)), mlp_width=10
  )
  return classifier.Classifier(
    vocabulary_size=Y,
    num_classes=C,
    width=D,
    layers=(layer,),
    max_length=9,
    **fields,
  )


@functools.cache
def make(**fields):
  """A model, its parameters, and its jitted logits of (params, ids, lengths).

  Cached, so that tests share what is compiled.
  """
  model = build(**fields)
  return model, random_variables(model, IDS_BT, LENGTHS_B), jax.jit(model.apply)


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('position', ['sinusoidal', 'learned'])
def test_neither_padding_nor_its_amount_matters(pooling, position):
  _, params, apply = make(pooling=pooling, position=position)
  logits_BC = apply(params, IDS_BT, LENGTHS_B)
  assert logits_BC.shape == (B, C)
  assert logits_BC.dtype == jnp.float32
  garbage_BT = np.where(IDS_BT == 0, 3, IDS_BT)
  np.testing.assert_allclose(
    logits_BC, apply(params, garbage_BT, LENGTHS_B), atol=1e-5
  )
  # Two more columns of padding, and a row of which five are.
  longer_BT = np.pad(IDS_BT, ((0, 0), (0, 2)))
  np.testing.assert_allclose(
    logits_BC, apply(params, longer_BT, LENGTHS_B), atol=1e-5
  )


@pytest.mark.parametrize('pooling', POOLINGS)
def test_a_row_alone_and_unpadded_has_the_same_logits(pooling):
  _, params, apply = make(pooling=pooling, position='sinusoidal')
  logits_BC = apply(params, IDS_BT, LENGTHS_B)
  alone_BC = apply(params, IDS_BT[1:, :4], LENGTHS_B[1:])
  np.testing.assert_allclose(logits_BC[1:], alone_BC, atol=1e-5)


@pytest.mark.parametrize('pooling', POOLINGS)
def test_every_kept_token_matters(pooling):
  _, params, apply = make(pooling=pooling, position='sinusoidal')
  logits_BC = apply(params, IDS_BT, LENGTHS_B)
  for t in range(4):
    changed_BT = IDS_BT.copy()
    changed_BT[1, t] = IDS_BT[1, t] % (Y - 1) + 1
    moved_C = apply(params, changed_BT, LENGTHS_B)[1] - logits_BC[1]
    assert np.abs(moved_C).max() > 1e-4


@pytest.mark.parametrize('position', ['none', 'sinusoidal', 'learned'])
def test_positions_tell_orders_apart(position):
  _, params, apply = make(pooling='mean', position=position)
  full_B = np.array([T, T])
  ids_BT = np.maximum(IDS_BT, 1)
  forward_BC = apply(params, ids_BT, full_B)
  backward_BC = apply(params, ids_BT[:, ::-1], full_B)
  distance = np.abs(forward_BC - backward_BC).max()
  assert (distance < 1e-5) == (position == 'none')


def test_quantities_enter_as_numbers_from_minus_one_to_one():
  _, params, apply = make(pooling='mean', front_end='continuous')
  values = params['params']['values']
  assert values['kernel'].shape == (1, D)
  # An embedding of the same vectors is the same model.
  u_Y1 = 2 * (np.arange(Y)[:, None] - 1) / (Y - 2) - 1
  assert u_Y1[1] == -1
  assert u_Y1[-1] == 1
  table_YD = u_Y1 @ values['kernel'] + values['bias']
  same = {k: v for k, v in params['params'].items() if k != 'values'}
  same['embedding'] = {'embedding': table_YD}
  expected_BC = build(pooling='mean').apply({'params': same}, IDS_BT, LENGTHS_B)
  np.testing.assert_allclose(
    apply(params, IDS_BT, LENGTHS_B), expected_BC, atol=1e-5
  )


@pytest.mark.parametrize('pooling', POOLINGS)
def test_an_empty_row_is_finite(pooling):
  model, params, apply = make(pooling=pooling, position='sinusoidal')
  empty_B = np.array([7, 0])
  logits_BC = apply(params, IDS_BT, empty_B)
  # The other row stays as it is; the empty one no longer reads its ids.
  np.testing.assert_allclose(
    logits_BC[0], apply(params, IDS_BT, LENGTHS_B)[0], atol=1e-5
  )
  others_BT = np.concatenate([IDS_BT[:1], IDS_BT[:1]])
  np.testing.assert_allclose(
    logits_BC[1], apply(params, others_BT, empty_B)[1], atol=1e-6
  )
  gradient = jax.jit(jax.grad(lambda p: model.apply(p, IDS_BT, empty_B).sum()))(
    params
  )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_an_empty_row_gives_the_head_at_zero():
  _, params, apply = make(pooling='mean', position='sinusoidal')
  logits_BC = apply(params, IDS_BT, np.array([7, 0]))
  bias_C = params['params']['head_out']['bias']
  np.testing.assert_allclose(logits_BC[1], bias_C, atol=1e-6)


def test_bfloat16_computes_near_float32_with_float32_parameters():
  _, params, apply = make(pooling='mean', position='sinusoidal')
  low = build(pooling='mean', position='sinusoidal', dtype=jnp.bfloat16)
  kinds = jax.eval_shape(low.init, jax.random.key(0), IDS_BT, LENGTHS_B)
  assert {leaf.dtype for leaf in jax.tree.leaves(kinds)} == {
    jnp.dtype('float32')
  }
  exact_BC = apply(params, IDS_BT, LENGTHS_B)
  low_BC = jax.jit(low.apply)(params, IDS_BT, LENGTHS_B)
  assert low_BC.dtype == jnp.float32
  difference = np.abs(exact_BC - low_BC).max()
  assert 0 < difference < 0.05 * np.abs(exact_BC).max()


def test_a_row_longer_than_promised_is_refused():
  model = build()
  ids_BT = jax.ShapeDtypeStruct((B, 10), jnp.int32)
  with pytest.raises(ValueError, match='max_length=9'):
    jax.eval_shape(model.init, jax.random.key(0), ids_BT, LENGTHS_B)


@pytest.mark.parametrize(
  ('head_width', 'kernels'),
  [
    (0, {'head_out': (D, C)}),
    (6, {'head_in': (D, 6), 'head_out': (6, C)}),
  ],
)
def test_head_widths(head_width, kernels):
  model = build(head_width=head_width)
  tree = jax.eval_shape(model.init, jax.random.key(0), IDS_BT, LENGTHS_B)
  heads = {
    name: parameters['kernel'].shape
    for name, parameters in tree['params'].items()
    if name.startswith('head')
  }
  assert heads == kernels


def pair(**fields):
  plain = build(pooling='mean', **fields)
  names = [n for n in plain.__dataclass_fields__ if n not in ('parent', 'name')]
  return classifier.PairClassifier(
    **{n: getattr(plain, n) for n in names}, pair_head='nli'
  )


@functools.cache
def make_pair(pair_head, head_width):
  model = pair(head_width=head_width).clone(pair_head=pair_head)
  arrays = (IDS_BT, LENGTHS_B, IDS_BT[::-1], LENGTHS_B[::-1])
  return random_variables(model, *arrays), jax.jit(model.apply), arrays


@pytest.mark.parametrize('head_width', [0, 6])
@pytest.mark.parametrize('pair_head', ['nli', 'concat'])
def test_pair_is_the_head_of_two_pooled_rows(pair_head, head_width):
  variables, apply, arrays = make_pair(pair_head, head_width)
  params = variables['params']
  # One row alone, through a classifier whose head hands on what is pooled.
  eye = {'kernel': np.eye(D, dtype='f4'), 'bias': np.zeros(D, 'f4')}
  tower = build(pooling='mean').clone(num_classes=D)
  own = {k: v for k, v in params.items() if not k.startswith('head')}

  def pooled(ids_BT, lengths_B):
    return tower.apply({'params': own | {'head_out': eye}}, ids_BT, lengths_B)

  a_BD, b_BD = pooled(*arrays[:2]), pooled(*arrays[2:])
  features = [a_BD, b_BD]
  if pair_head == 'nli':
    features += [a_BD * b_BD, a_BD - b_BD]
  x_BF = np.concatenate(features, axis=-1)
  names = ['head_in', 'head_middle'][: 2 if pair_head == 'concat' else 1]
  for name in names if head_width else []:
    x_BF = np.maximum(x_BF @ params[name]['kernel'] + params[name]['bias'], 0)
  out = params['head_out']
  np.testing.assert_allclose(
    apply(variables, *arrays), x_BF @ out['kernel'] + out['bias'], atol=1e-5
  )


@pytest.mark.parametrize('pooling', POOLINGS)
def test_black_is_padding_where_it_is_asked_for(pooling):
  """As if the black pixels were not there, but for the positions."""
  _, params, apply = make(pooling=pooling, zero_is_padding=True)
  plain = make(pooling=pooling)[2]
  black_BT = np.array([[0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]], bool)
  ids_BT = np.where(IDS_BT == 1, 2, IDS_BT)
  ids_BT = np.where(black_BT, 1, ids_BT)
  logits_BC = apply(params, ids_BT, LENGTHS_B)
  for row, length in enumerate(LENGTHS_B):
    left = [i for i in ids_BT[row, :length] if i != 1]
    alone_BT = np.zeros((1, T), int)
    alone_BT[0, : len(left)] = left
    expected_BC = plain(params, alone_BT, np.array([len(left)]))
    np.testing.assert_allclose(logits_BC[row], expected_BC[0], atol=1e-5)
  # Without the switch black is a colour like others.
  assert np.abs(plain(params, ids_BT, LENGTHS_B) - logits_BC).max() > 1e-3
