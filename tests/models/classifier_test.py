"""Embedding to logits: pooling and positions respect the lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.models import classifier, encoder

B, T, D, Y, C = 2, 7, 12, 11, 5
LENGTHS_B = jnp.array([7, 4])
IDS_BT = jnp.where(
  jnp.arange(T)[None] < LENGTHS_B[:, None],
  jax.random.randint(jax.random.key(0), (B, T), 1, Y),
  0,
)


def make(mixer='full', **fields):
  layer = encoder.LayerConfig(mixer, (('num_heads', 3),), mlp_width=10)
  model = classifier.Classifier(
    vocabulary_size=Y,
    num_classes=C,
    width=D,
    layers=(layer,) * 2,
    max_length=9,
    **fields,
  )
  return model, model.init(jax.random.key(1), IDS_BT, LENGTHS_B)


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
@pytest.mark.parametrize('position', ['sinusoidal', 'learned'])
def test_neither_padding_nor_its_amount_matters(pooling, position):
  model, params = make(pooling=pooling, position=position)
  logits_BC = model.apply(params, IDS_BT, LENGTHS_B)
  assert logits_BC.shape == (B, C)
  assert logits_BC.dtype == jnp.float32
  garbage_BT = jnp.where(IDS_BT == 0, 3, IDS_BT)
  np.testing.assert_allclose(
    logits_BC, model.apply(params, garbage_BT, LENGTHS_B), atol=1e-5
  )
  longer_BT = jnp.pad(IDS_BT, ((0, 0), (0, 2)))
  np.testing.assert_allclose(
    logits_BC, model.apply(params, longer_BT, LENGTHS_B), atol=1e-5
  )
  alone_BC = model.apply(params, IDS_BT[1:, :4], LENGTHS_B[1:])
  np.testing.assert_allclose(logits_BC[1:], alone_BC, atol=1e-5)


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_every_kept_token_matters(pooling):
  model, params = make(pooling=pooling)
  logits_BC = model.apply(params, IDS_BT, LENGTHS_B)
  for t in range(4):
    changed_BT = IDS_BT.at[1, t].set(IDS_BT[1, t] % (Y - 1) + 1)
    moved_C = model.apply(params, changed_BT, LENGTHS_B)[1] - logits_BC[1]
    assert np.abs(moved_C).max() > 1e-4


def test_positions_tell_orders_apart():
  swapped_BT = IDS_BT[:, ::-1]
  full_B = jnp.array([T, T])
  ids_BT = jnp.maximum(IDS_BT, 1)
  swapped_BT = ids_BT[:, ::-1]
  for position in ('none', 'sinusoidal', 'learned'):
    model, params = make(position=position)
    distance = np.abs(
      model.apply(params, ids_BT, full_B)
      - model.apply(params, swapped_BT, full_B)
    ).max()
    assert (distance < 1e-5) == (position == 'none'), position


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_an_empty_row_is_finite(pooling):
  model, params = make(pooling=pooling)
  empty_B = jnp.array([7, 0])
  gradient = jax.grad(lambda p: model.apply(p, IDS_BT, empty_B).sum())(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_bfloat16_computes_near_float32_with_float32_parameters():
  model, params = make()
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype('float32')
  }
  low = model.clone(dtype=jnp.bfloat16)
  exact_BC = model.apply(params, IDS_BT, LENGTHS_B)
  low_BC = low.apply(params, IDS_BT, LENGTHS_B)
  assert low_BC.dtype == jnp.float32
  difference = np.abs(exact_BC - low_BC).max()
  assert 0 < difference < 0.05 * np.abs(exact_BC).max()


def test_a_row_longer_than_promised_is_refused():
  model, params = make()
  with pytest.raises(ValueError, match='max_length=9'):
    model.apply(params, jnp.ones((B, 10), jnp.int32), LENGTHS_B)


def test_head_widths():
  for head_width, names in ((0, ['head_out']), (6, ['head_in', 'head_out'])):
    _, params = make(head_width=head_width)
    heads = [n for n in sorted(params['params']) if n.startswith('head')]
    assert heads == names
