"""Feed-forward parts and embeddings that are products of two matrices."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest

from effformer.models import classifier, encoder, layers, predictor
from tests.models.build_test import make_config, shapes_of
from tests.models.parameters import random_variables

B, T, D, F, R, E, Y = 2, 7, 12, 10, 3, 5, 11
X_BTD = np.random.default_rng(0).normal(size=(B, T, D)).astype('f4')
IDS_BT = np.random.default_rng(1).integers(1, Y, (B, T))
LENGTHS_B = np.array([7, 4])


def feed_forward(**fields):
  module = layers.FeedForward(F, **fields)
  return module, random_variables(module, X_BTD, deterministic=True)['params']


def merged(params, name):
  """The full matrix."""
  return params[f'{name}_low']['kernel'] @ params[name]['kernel']


def test_a_feed_forward_part_of_low_rank_is_that_of_the_products():
  low, params = feed_forward(rank=R)
  shapes = {
    path: x.shape
    for path, x in flax.traverse_util.flatten_dict(params, sep='/').items()
  }
  assert shapes == {
    'in_low/kernel': (D, R), 'in/kernel': (R, F), 'in/bias': (F,),
    'out_low/kernel': (F, R), 'out/kernel': (R, D), 'out/bias': (D,),
  }  # fmt: skip
  full = {
    name: {**params[name], 'kernel': merged(params, name)}
    for name in ('in', 'out')
  }
  apply = functools.partial(low.apply, deterministic=True)
  whole = layers.FeedForward(F).apply(
    {'params': full}, X_BTD, deterministic=True
  )
  y_BTD = apply({'params': params}, X_BTD)
  np.testing.assert_allclose(y_BTD, whole, rtol=1e-5, atol=1e-5)
  chunked, _ = feed_forward(rank=R, chunk=3)
  parts_BTD = chunked.apply({'params': params}, X_BTD, deterministic=True)
  np.testing.assert_allclose(parts_BTD, y_BTD, rtol=1e-5, atol=1e-5)


def test_ranks_are_facts_of_layers():
  config = make_config(layers={'1': {'mlp_rank': 0}}, model__mlp_rank=R)
  tree = shapes_of(config)['encoder']
  assert [
    tree[f'layer_{i}']['mlp']['in']['kernel'].shape for i in range(3)
  ] == [(R, F), (D, F), (R, F)]
  assert 'in_low' not in tree['layer_1']['mlp']
  assert tree['layer_2']['mlp']['out_low']['kernel'].shape == (F, R)


def test_a_factorised_embedding_starts_as_large_as_a_full_one():
  """A table of variance 1, and a matrix that keeps it."""
  model = classifier.Classifier(
    vocabulary_size=400, width=64, layers=(), max_length=9, embedding_width=32
  )
  ids = np.arange(1, 9)[None]
  params = model.init(jax.random.key(0), ids, np.array([8]))
  x_BTD, _ = model.apply(params, ids, np.array([8]), method='embedded')
  assert 0.7 < np.std(x_BTD) < 1.4


def layer(causal):
  own = {'num_heads': 3, 'head_width': 4, 'causal': causal}
  return encoder.LayerConfig('linear', tuple(sorted(own.items())), F)


@pytest.mark.parametrize('head', ['dense', 'tied', 'transformed'])
def test_a_factorised_embedding_is_that_of_the_product(head):
  fields = dict(
    vocabulary_size=Y, width=D, layers=(layer(True),), max_length=9,
    token_head=head, token_types=2, position='learned',
  )  # fmt: skip
  low = predictor.Predictor(embedding_width=E, **fields)
  params = random_variables(low, IDS_BT, LENGTHS_B)['params']
  table_YE, up_ED = (
    params['embedding']['embedding'], params['embedding_out']['kernel']
  )  # fmt: skip
  assert (table_YE.shape, up_ED.shape) == ((Y, E), (E, D))
  assert set(params['embedding_out']) == {'kernel'}
  # What is added to it has the width of the model.
  assert params['types']['embedding'].shape == (2, D)
  full = {k: x for k, x in params.items() if k != 'embedding_out'}
  full['embedding'] = {'embedding': table_YE @ up_ED}
  expected = predictor.Predictor(**fields).apply(
    {'params': full}, IDS_BT, LENGTHS_B
  )
  logits = low.apply({'params': params}, IDS_BT, LENGTHS_B)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  # Also some tokens at a time.
  stream = low.init_stream(params, B, T)
  first, stream = low.apply(
    {'params': params}, IDS_BT[:, :3], np.array([3, 3]), stream,
    is_first=True, method='extend',
  )  # fmt: skip
  np.testing.assert_allclose(first, logits[:, :3], rtol=1e-4, atol=1e-4)


def test_quantities_have_no_table():
  with pytest.raises(
    ValueError, match="embedding_width=5 needs front_end='emb"
  ):
    classifier.Classifier(
      vocabulary_size=Y, width=D, layers=(), max_length=9,
      embedding_width=E, front_end='continuous',
    )  # fmt: skip


def test_defaults_have_the_parameters_they_had():
  tree = shapes_of(make_config())
  assert set(tree) == {'embedding', 'encoder', 'head_out'}
  block = tree['encoder']['layer_0']
  assert set(block['mlp']) == {'in', 'out'}
  assert set(block['norm_mlp']) == {'scale', 'bias'}
