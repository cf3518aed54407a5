"""Predictors of tokens: hidden, causal, and streams that equal the call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.models import encoder, predictor
from tests import slow
from tests.models.parameters import random_variables

B, T, D, F, Y = 2, 7, 12, 10, 11
LENGTHS_B = np.array([7, 4])
IDS_BT = np.where(
  np.arange(T)[None] < LENGTHS_B[:, None],
  np.random.default_rng(0).integers(1, Y, (B, T)),
  0,
)


def layer(mixer, causal=True, **settings):
  settings = {'num_heads': 3, 'head_width': 4, 'causal': causal, **settings}
  if mixer == 'mega':
    settings = {'causal': causal, 'num_averages': 3, 'key_width': 4}
  if mixer == 's5':
    settings = {'causal': causal, 'state_width': 8, 'hippo_blocks': 2}
  return encoder.LayerConfig(
    mixer, tuple(sorted(settings.items())), F, conv_width=5, causal=causal
  )


STACKS = {
  'scanned': (layer('linear'),) * 3,
  'mixed': (layer('local', window=2), *(layer('full'),) * 3, layer('retnet')),
  'model_width': (layer('mega'), layer('s5')),
}
STACKS['shared'] = (
  *(encoder.LayerConfig(**{**vars(layer('linear')), 'share': 'a'}),) * 3,
  layer('mamba2'),
)


@functools.cache
def model_of(stack, **fields):
  model = predictor.Predictor(
    vocabulary_size=Y,
    width=D,
    layers=STACKS[stack],
    max_length=9,
    **fields,
  )
  params = random_variables(model, IDS_BT, LENGTHS_B, IDS_BT == 1)['params']
  return (
    model,
    params,
    jax.jit(lambda p, *args: model.apply({'params': p}, *args)),
  )


CASES = [
  ('scanned', {'pooling': 'cls'}),
  ('mixed', {'pooling': 'cls', 'position': 'learned'}),
  ('mixed', {'norm_order': 'post', 'position': 'sinusoidal'}),
  ('model_width', {'pooling': 'cls'}),
  ('shared', {'reversible': True, 'pooling': 'cls'}),
  ('scanned', {'reversible': True}),
  ('mixed', {'token_head': 'tied', 'token_types': 2, 'norm_epsilon': 1e-5}),
  ('scanned', {'token_head': 'transformed', 'embedding_norm': True}),
]


@pytest.mark.parametrize(('stack', 'fields'), slow.after(1, CASES))
def test_a_stream_gives_what_the_call_gives(stack, fields):
  model, params, apply = model_of(stack, **fields)
  front = model.has_front
  expected_BTY = np.asarray(apply(params, IDS_BT, LENGTHS_B))
  assert expected_BTY.shape == (B, T + front, Y)
  assert expected_BTY.dtype == np.float32

  @functools.partial(jax.jit, static_argnums=4)
  def extend(params, ids_BT, lengths_B, stream, is_first):
    return model.apply(
      {'params': params}, ids_BT, lengths_B, stream, is_first=is_first,
      method='extend',
    )  # fmt: skip

  for cuts in ([3], [1, 2, 4], *([[0]] if front else [])):
    stream = model.init_stream(params, B, T)
    pieces = []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
      lengths_B = np.clip(LENGTHS_B - start, 0, stop - start)
      logits_BTY, stream = extend(
        params, IDS_BT[:, start:stop], lengths_B, stream, not pieces
      )
      pieces.append(logits_BTY)
    actual_BTY = np.concatenate(pieces, axis=1)
    for row, length in enumerate(LENGTHS_B + front):
      np.testing.assert_allclose(
        actual_BTY[row, :length], expected_BTY[row, :length], atol=2e-5
      )
    np.testing.assert_array_equal(stream.count_B, LENGTHS_B + front)


@pytest.mark.parametrize('stack', ['scanned', 'mixed', 'model_width'])
def test_no_output_depends_on_what_comes_after_it(stack):
  _, params, apply = model_of(stack, pooling='cls')
  before_BTY = apply(params, IDS_BT, LENGTHS_B)
  for t in range(T):
    changed_BT = IDS_BT.copy()
    changed_BT[0, t] = IDS_BT[0, t] % (Y - 1) + 1
    after_BTY = apply(params, changed_BT, LENGTHS_B)
    moved_T = np.abs(after_BTY - before_BTY)[0].max(axis=-1)
    # Output 0 is that of the front vector.
    assert moved_T[: t + 1].max() < 1e-6
    assert moved_T[t + 1] > 1e-3


def masked_model(**fields):
  """Hidden positions, parameters and the call of a bidirectional model."""
  layers = (layer('full', causal=False),)
  model = predictor.Predictor(Y, D, layers, max_length=9, **fields)
  hidden_BT = np.zeros((B, T), bool)
  hidden_BT[:, 2] = True
  params = random_variables(model, IDS_BT, LENGTHS_B, hidden_BT)
  return hidden_BT, params, jax.jit(model.apply)


def test_hidden_tokens_are_not_seen_and_others_are():
  hidden_BT, params, apply = masked_model()
  first_BTY = apply(params, IDS_BT, LENGTHS_B, hidden_BT)
  changed_BT = IDS_BT.copy()
  changed_BT[:, 2] = IDS_BT[:, 2] % (Y - 1) + 1
  same_BTY = apply(params, changed_BT, LENGTHS_B, hidden_BT)
  np.testing.assert_array_equal(first_BTY, same_BTY)
  other_BTY = apply(params, changed_BT, LENGTHS_B, jnp.zeros((B, T), bool))
  assert np.abs(other_BTY - first_BTY)[:, 0].max() > 1e-3


def test_hidden_black_is_not_told_by_being_left_out():
  hidden_BT, params, apply = masked_model(zero_is_padding=True)
  found = []
  for value in (1, 5):
    ids_BT = np.where(hidden_BT, value, IDS_BT)
    found.append(apply(params, ids_BT, LENGTHS_B, hidden_BT))
  np.testing.assert_array_equal(*found)


def test_extra_tokens_have_no_stream():
  model = predictor.Predictor(
    vocabulary_size=Y, width=D, layers=STACKS['scanned'], max_length=9,
    extra_tokens=2,
  )  # fmt: skip
  variables = random_variables(model, IDS_BT, LENGTHS_B)
  stream = model.init_stream(variables['params'], B, T)
  with pytest.raises(NotImplementedError, match='extra_tokens=2'):
    model.apply(
      variables, IDS_BT, LENGTHS_B, stream, is_first=True, method='extend'
    )
