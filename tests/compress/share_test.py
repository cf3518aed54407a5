"""Sharing: the order of units, which layers are alike, and what is stored."""

import itertools

import jax
import numpy as np
import pytest

from configs import common
from effformer import config_check, pretrained
from effformer.compress import artefact, calibrate, gptq, share, tensors
from effformer.compress.grid import Grid
from effformer.errors import ConfigError
from effformer.models import build
from tests import slow
from tests.compress.prune.models import VOCABULARY, classifier, published
from tests.pretrained.golden_test import folder_of, golden, outputs

TOLERANCE = 1e-5
D, H, F = 12, 3, 10
# Six heads of queries, two of keys and values.
GROUPED = (('num_heads', 6), ('num_kv_heads', 2), ('head_width', 3))
GROUPED_ROWS = tuple((str(index), GROUPED) for index in range(3))


def permuted(block, seed, heads=None):
  """A block with its columns in another order, and its heads if given one.

  Written down here once more: kernels of queries, keys and values have heads in
  the middle, that of the output has them first.
  """
  columns = np.random.default_rng(seed).permutation(F)
  block = jax.tree.map(np.array, block)
  mlp, mixer = block['mlp'], block['mixer']
  mlp['in']['kernel'] = mlp['in']['kernel'][:, columns]
  mlp['in']['bias'] = mlp['in']['bias'][columns]
  mlp['out']['kernel'] = mlp['out']['kernel'][columns]
  if heads is None:
    return block
  heads, sources = (list(order) for order in heads)
  for name, order in (('query', heads), ('key', sources), ('value', sources)):
    mixer[name]['kernel'] = mixer[name]['kernel'][:, order]
    mixer[name]['bias'] = mixer[name]['bias'][order]
  mixer['out']['kernel'] = mixer['out']['kernel'][heads]
  return block


def orders(seed, is_grouped=False):
  """A random order of the heads of queries, and of keys and values."""
  rng = np.random.default_rng(seed)
  if not is_grouped:
    order = rng.permutation(H)
    return order, order
  sources = rng.permutation(2)
  return np.concatenate(
    [3 * group + rng.permutation(3) for group in sources]
  ), sources


def with_copies(model, noise=0.0, is_grouped=False, others=(1, 2)):
  """Parameters in which layers are permuted copies of layer 0."""
  params = {**model.params, 'encoder': dict(model.params['encoder'])}
  rng = np.random.default_rng(9)
  for index in others:
    block = jax.tree.map(
      lambda x: x + noise * rng.normal(size=x.shape).astype(x.dtype),
      params['encoder']['layer_0'],
    )
    order = orders(index, is_grouped)
    params['encoder'][f'layer_{index}'] = permuted(block, index, order)
  return params


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


# The order of units.


@pytest.mark.parametrize(
  ('rows', 'is_grouped'), [((), False), (GROUPED_ROWS, True)]
)
def test_a_permuted_copy_is_aligned_back(rows, is_grouped):
  model = classifier(rows=rows, model__conv_width=3)
  params = with_copies(model, is_grouped=is_grouped)
  for index in (1, 2):
    found = share.align(model.config, params, index, 0)
    first = params['encoder']['layer_0']
    assert_same(found['encoder'][f'layer_{index}'], first)
    # Of the others nothing is touched.
    rest = set(params['encoder']) - {f'layer_{index}'}
    for name in rest:
      assert_same(found['encoder'][name], params['encoder'][name])


CASES = (
  ('full', {}, ()),
  ('full', {'model__norm_order': 'post'}, GROUPED_ROWS),
  ('full', {}, tuple((i, (('relative_bias', 't5'),)) for i in '012')),
  ('longformer',
   {'mixer__attention_window': 4, 'mixer__global_tokens': 2}, ()),
  ('linformer', {'mixer__rank': 4, 'mixer__sharing': 'none'}, ()),
  ('nystromformer', {'mixer__rank': 4, 'mixer__conv_width': 3}, ()),
  ('performer', {}, ()), ('fnet', {}, ()),
)  # fmt: skip


@pytest.mark.parametrize(
  ('mechanism', 'keys', 'rows'), slow.after(2, CASES), ids=str
)
def test_the_function_stays_the_same(mechanism, keys, rows):
  model = classifier(mechanism, rows=rows, model__conv_width=3, **keys)
  params = share.align(model.config, model.params, 0, 2)
  params = share.align(model.config, params, 1, 2)
  own, before = (tensors.flatten(x) for x in (params, model.params))
  moved = [path for path in own if np.any(own[path] != before[path])]
  for index in (0, 1):
    assert f'encoder/layer_{index}/mlp/in/kernel' in moved
  # Random features belong to heads by their number.
  has_order = mechanism not in ('performer', 'fnet')
  assert any('/mixer/' in path for path in moved) == has_order
  assert not [path for path in moved if '/layer_2/' in path]
  np.testing.assert_allclose(
    model.outputs(params=params), model.outputs(), atol=TOLERANCE, rtol=0
  )


def all_orders(is_grouped):
  """Every order of heads, with that of their groups."""
  if not is_grouped:
    return [(order, order) for order in itertools.permutations(range(H))]
  return [
    (np.concatenate([3 * groups[0] + one, 3 * groups[1] + other]), groups)
    for groups in itertools.permutations(range(2))
    for one in np.array([*itertools.permutations(range(3))])
    for other in np.array([*itertools.permutations(range(3))])
  ]


@pytest.mark.parametrize(
  ('rows', 'is_grouped'), [((), False), (GROUPED_ROWS, True)]
)
def test_no_order_of_heads_is_nearer(rows, is_grouped):
  """Against all of them; columns do not touch what heads add."""
  model = classifier(rows=rows)
  found = share.align(model.config, model.params, 0, 1)['encoder']
  own, other = model.params['encoder']['layer_0'], found['layer_1']

  def near(block):
    products = jax.tree.map(
      lambda x, y: np.vdot(x.astype('f8'), y), block['mixer'], other['mixer']
    )
    return sum(jax.tree.leaves(products))

  every = [near(permuted(own, 0, order)) for order in all_orders(is_grouped)]
  assert len(every) == (72 if is_grouped else 6)
  np.testing.assert_allclose(near(found['layer_0']), max(every), rtol=1e-9)
  assert max(every) > near(own)


# How alike layers are.


def cosine(a, b):
  a, b = (
    np.concatenate([np.ravel(x).astype('f8') for x in jax.tree.leaves(tree)])
    for tree in (a, b)
  )
  return a @ b / np.sqrt((a @ a) * (b @ b))


def test_similarity_is_the_cosine_of_all_parameters():
  model = classifier(rows=(('2', (('mlp_width', 7),)),), model__num_layers=4)
  blocks = model.params['encoder']
  plain = share.similarity(model.config, model.params, align=False)
  aligned = share.similarity(model.config, model.params)
  for i, j in itertools.product((0, 1, 3), repeat=2):
    expected = cosine(blocks[f'layer_{i}'], blocks[f'layer_{j}'])
    np.testing.assert_allclose(plain[i, j], expected, rtol=1e-6)
    if i != j:
      near = share.align(model.config, model.params, i, j)['encoder']
      expected = cosine(near[f'layer_{i}'], blocks[f'layer_{j}'])
      np.testing.assert_allclose(aligned[i, j], expected, rtol=1e-6)
      assert aligned[i, j] > plain[i, j] + 0.01
  for matrix in (plain, aligned):
    assert np.isnan(matrix[2, [0, 1, 3]]).all()
    assert np.isnan(matrix[[0, 1, 3], 2]).all()
    np.testing.assert_allclose(matrix.diagonal(), 1, rtol=1e-12)


def test_layers_that_are_one_are_alike():
  rows = tuple((index, (('share', 'a'),)) for index in ('0', '2'))
  model = classifier(rows=rows)
  found = share.similarity(model.config, model.params)
  assert found[0, 2] == found[2, 0] == 1
  # One is aligned to the other here, and the other to the one there.
  np.testing.assert_allclose(found[0], found[2], rtol=1e-12)
  assert found[0, 1] < 0.9
  # To be in another order than oneself is to be in none.
  assert share.align(model.config, model.params, 0, 2) is model.params


def test_groups_of_a_planted_model():
  """0, 3 and 5 are alike, and 1 and 4; 2 is a little like the latter."""
  similarity = np.full((6, 6), 0.1)
  for own, value in (((0, 3, 5), 0.9), ((1, 4), 0.8)):
    similarity[np.ix_(own, own)] = value
  similarity[2, [1, 4]] = similarity[[1, 4], 2] = 0.5
  np.fill_diagonal(similarity, 1)
  # The first pair, then the third of it, as their mean is the greatest.
  expected = {
    6: {}, 4: {'g0': (0, 3, 5)}, 3: {'g0': (0, 3, 5), 'g1': (1, 4)},
    2: {'g0': (0, 3, 5), 'g1': (1, 2, 4)}, 1: {'g0': (0, 1, 2, 3, 4, 5)},
  }  # fmt: skip
  for number, groups in expected.items():
    assert share.groups_of(similarity, number) == groups
  (pair,) = share.groups_of(similarity, 5).values()
  assert len(pair) == 2
  assert set(pair) < {0, 3, 5}


@pytest.mark.parametrize(
  ('to_third', 'to_fourth', 'joined'),
  # Neither the nearest pair counts alone, nor the farthest.
  [((0.1, 0.7), (0.6, 0.5), 3), ((0.25, 0.85), (0.45, 0.4), 2)],
)
def test_the_mean_of_all_pairs_counts(to_third, to_fourth, joined):
  similarity = np.eye(4)
  similarity[0, 1] = 0.9
  similarity[:2, 2], similarity[:2, 3] = to_third, to_fourth
  similarity = np.maximum(similarity, similarity.T)
  assert share.groups_of(similarity, 2) == {'g0': (0, 1, joined)}


def test_layers_that_cannot_share_are_never_joined():
  similarity = np.full((4, 4), np.nan)
  similarity[np.ix_([0, 2], [0, 2])] = -0.9
  similarity[np.ix_([1, 3], [1, 3])] = -1.0
  np.fill_diagonal(similarity, 1)
  assert share.groups_of(similarity, 2) == {'g0': (0, 2), 'g1': (1, 3)}
  with pytest.raises(ConfigError, match='layers of 2 kinds'):
    share.groups_of(similarity, 1)


def test_groups_that_are_none():
  for number in (0, 3):
    with pytest.raises(ConfigError, match='name 1 to 2'):
      share.groups_of(np.eye(2), number)
  with pytest.raises(ValueError, match=r'\[L, L\]'):
    share.groups_of(np.ones((2, 3)), 1)
  assert share.groups_of(np.eye(1), 1) == {}


# Tied layers.


def test_copies_are_found_and_tied_without_a_loss():
  model = classifier(model__num_layers=4)
  params = with_copies(model, others=(1, 3))
  groups = share.groups_of(share.similarity(model.config, params), 2)
  assert groups == {'g0': (0, 1, 3)}
  config, tied = share.tie(model.config, params, groups)
  assert set(tied['encoder']) == {'layer_2', 'shared_g0', 'norm_out'}
  # A run would obey it.
  config_check.check(config, common)
  np.testing.assert_allclose(
    model.outputs(config, tied),
    model.outputs(params=params),
    atol=TOLERANCE,
    rtol=0,
  )
  assert model.config.model.layers.to_dict() == {}


@pytest.mark.parametrize(
  ('rows', 'is_grouped'), [((), False), (GROUPED_ROWS, True)]
)
def test_aligned_means_lose_far_less_than_plain_ones(rows, is_grouped):
  model = classifier(rows=rows)
  params = with_copies(model, noise=0.02, is_grouped=is_grouped)
  whole = model.outputs(params=params)
  lost = [
    np.abs(
      model.outputs(
        *share.tie(model.config, params, {'all': range(3)}, align=align)
      )
      - whole
    ).max()
    for align in (True, False)
  ]
  assert 0 < lost[0] < lost[1] / 5


def test_the_mean_is_weighted():
  model = classifier()
  _, tied = share.tie(
    model.config, model.params, {'b': (2, 0)}, weights=(1, 5, 3), align=False
  )
  own = model.params['encoder']
  expected = jax.tree.map(
    lambda x, y: (x.astype('f8') + 3 * y) / 4, own['layer_0'], own['layer_2']
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
    tied['encoder']['shared_b'],
    expected,
  )
  leaf = tied['encoder']['shared_b']['mlp']['in']['kernel']
  assert leaf.dtype == np.float32
  assert set(tied['encoder']) == {'layer_1', 'shared_b', 'norm_out'}
  # All the weight on the first one of a group leaves it as it is.
  _, tied = share.tie(
    model.config, model.params, {'b': (2, 0)}, weights=(0, 1, 1)
  )
  assert_same(tied['encoder']['shared_b'], own['layer_2'])


def test_layers_are_aligned_to_the_first_of_their_group():
  model = classifier()
  _, tied = share.tie(model.config, model.params, {'b': (1, 0)})
  near = share.align(model.config, model.params, 0, 1)['encoder']
  expected = jax.tree.map(lambda x, y: (x + y) / 2,
                          near['layer_0'], near['layer_1'])  # fmt: skip
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
    tied['encoder']['shared_b'],
    expected,
  )


def test_groups_that_there_are():
  """One that goes on without a layer, and one that is tied anew."""
  rows = tuple((index, (('share', 'a'),)) for index in ('0', '1', '3'))
  model = classifier(rows=rows, model__num_layers=4)
  config, tied = share.tie(model.config, model.params, {'b': (1, 2)})
  assert set(tied['encoder']) == {'shared_a', 'shared_b', 'norm_out'}
  assert_same(tied['encoder']['shared_a'], model.params['encoder']['shared_a'])
  assert [x.share for x in build.layer_configs(config)] == ['a', 'b', 'b', 'a']
  config, tied = share.tie(model.config, model.params, {'a': range(4)})
  assert set(tied['encoder']) == {'shared_a', 'norm_out'}
  with pytest.raises(ConfigError, match='layer 3 is of a share group'):
    share.tie(model.config, model.params, {'a': (0, 1, 2)})


def test_facts_that_are_told_of_one_layer_alone():
  """The same facts, once in the layer's row and once of the whole model."""
  rows = (
    ('0', (('mlp_width', F),)), ('2', (('num_heads', H), ('head_width', 4))),
  )  # fmt: skip
  model = classifier(rows=rows)
  config, _ = share.tie(model.config, model.params, {'a': (0, 1, 2)})
  row = {'mlp_width': F, 'num_heads': H, 'head_width': 4, 'share': 'a'}
  assert config.model.layers.to_dict() == dict.fromkeys('012', row)
  config_check.check(config, common)
  assert len(set(build.layer_configs(config))) == 1


def test_layers_of_hybrids_are_tied_by_what_they_are():
  model = classifier(
    'local+full', model__num_layers=4, mixer__form='dense', mixer__window=3
  )
  config, tied = share.tie(
    model.config, model.params, {'low': (0, 1), 'high': (2, 3)}
  )
  config_check.check(config, common)
  assert np.isfinite(model.outputs(config, tied)).all()
  with pytest.raises(ConfigError, match='differ in mixer, settings'):
    share.tie(model.config, model.params, {'a': (1, 2)})


SMALLER = (('2', (('mlp_width', 7),)),)


@pytest.mark.parametrize(
  ('groups', 'weights', 'words'),
  [
    ({'a': (0, 3)}, None, 'no layer 3.*layers 0 to 2'),
    ({'a': (-1, 0)}, None, 'no layer -1'),
    ({'a': (0, 1), 'b': (1, 2)}, None, "layer 1 is in group 'b' and in 'a'"),
    ({'a': (0, 0)}, None, "layer 0 is in group 'a' and in 'a'"),
    ({'a': (1, 2)}, None, 'layers 1 and 2 .*differ in mlp_width'),
    ({'a': (1,)}, None, 'has 1 layers'),
    ({'a': ()}, None, 'has 0 layers'),
    ({'a/b': (0, 1)}, None, "'a/b' is no name"),
    ({'': (0, 1)}, None, "'' is no name"),
    ({'a': (0, 1)}, (1, 1), 'have to be 3 numbers'),
    ({'a': (0, 1)}, (1, -0.5, 1), 'from 0 on'),
    ({'a': (0, 1)}, (0, 0, 1), 'not all 0'),
    ({'a': (0, 1)}, (1, np.nan, 1), 'from 0 on'),
  ],
)
def test_groups_that_cannot_be(groups, weights, words):
  model = classifier(rows=SMALLER)
  with pytest.raises(ConfigError, match=words) as caught:
    share.tie(model.config, model.params, groups, weights=weights)
  assert len(str(caught.value).splitlines()) <= 5


def test_layers_that_cannot_be_aligned():
  model = classifier(rows=SMALLER)
  with pytest.raises(ConfigError, match='differ in mlp_width'):
    share.align(model.config, model.params, 0, 2)
  with pytest.raises(ConfigError, match='no layer 5'):
    share.align(model.config, model.params, 5, 0)
  plan = {'encoder/layer_1/mlp/in/kernel': Grid(8)}
  codes = tensors.quantise(model.params, plan)
  with pytest.raises(ConfigError, match='layer_1/mlp/in/kernel is codes'):
    share.tie(model.config, codes, {'a': (0, 1)})


# With what comes after.


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['bert-classifier', 'gpt2-predictor', 'vit-classifier']
)
def test_published_models_are_aligned(name, tmp_path):
  model = published(name, tmp_path / 'model')
  params = share.align(model.config, model.params, 1, 0)
  own, before = (x['encoder']['layer_1'] for x in (params, model.params))
  assert np.any(own['mlp']['in']['kernel'] != before['mlp']['in']['kernel'])
  np.testing.assert_allclose(
    model.outputs(params=params), model.outputs(), atol=TOLERANCE, rtol=0
  )


def test_one_copy_is_stored(tmp_path):
  model = pretrained.load(folder_of('bert-classifier', tmp_path / 'bert'))
  config, params = share.tie(model.config, model.params, {'all': (0, 1)})
  small = model._replace(config=config, params=params)
  sizes = []
  for name, own in (('whole', model), ('small', small)):
    artefact.save(artefact.make(own, own.params), tmp_path / name)
    sizes.append((tmp_path / name / artefact.WEIGHTS).stat().st_size)
  block = jax.tree.leaves(model.params['encoder']['layer_0'])
  num_bytes = sum(x.nbytes for x in block)
  # But for the names in the file.
  names = 160 * len(block)
  assert num_bytes < sizes[0] - sizes[1] < num_bytes + names
  again = artefact.load(tmp_path / 'small')
  assert again.config.to_dict() == config.to_dict()
  arrays = golden('bert-classifier')[2]
  found = outputs(again._replace(params=again.numbers), arrays)
  np.testing.assert_array_equal(found, outputs(small, arrays))
  assert np.abs(found - outputs(model, arrays)).max() > 1e-3


def test_tied_models_are_rounded_once(tmp_path):
  """Shared layers have one set of moments, of codes and of bytes."""
  model = classifier()
  config, params = share.tie(model.config, model.params, {'a': (0, 2)})
  plan = tensors.uniform_plan(params, Grid(4))
  assert 'encoder/shared_a/mlp/in/kernel' in plan
  assert not [path for path in plan if 'layer_0' in path or 'layer_2' in path]
  module = build.sequence_classifier(config, VOCABULARY, model.num_classes)
  moments = calibrate.collect(module, params, [model.inputs])
  count = model.inputs[1].sum()
  assert moments['encoder/shared_a/mlp/in/kernel'].count == 2 * count
  assert moments['encoder/layer_1/mlp/in/kernel'].count == count
  codes = gptq.quantise(params, plan, moments)
  plain = tensors.dequantise(tensors.quantise(params, plan))
  own = tensors.dequantise(codes)
  assert np.any(
    own['encoder']['shared_a']['mlp']['in']['kernel']
    != plain['encoder']['shared_a']['mlp']['in']['kernel']
  )
  whole = model.outputs(config, params)
  lost = np.abs(model.outputs(config, own) - whole).max()
  assert 0 < lost < 0.5 * np.abs(whole).max()
