"""A model of codes, run as it is, against one of the decoded numbers."""

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention, pretrained
from effformer.compress import calibrate, fold, int8, running, smooth, tensors
from effformer.compress.grid import Grid
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.models.predictor import Predictor
from tests import slow
from tests.compress.fold_test import CASES, IDS, LENGTHS, MORE, T, Y, model_of
from tests.models.parameters import random_variables
from tests.pretrained.golden_test import FILES, folder_of, golden

# Many models are compiled.
pytestmark = pytest.mark.slow

GRIDS = (
  Grid(8), Grid(3, 'tile', 5), Grid(4, 'tensor', symmetric=False),
  Grid(8, 'tile', 4, symmetric=False), Grid(3, rule='kmeans'),
  Grid(8, 'tensor', rule='kmeans'),
)  # fmt: skip


def loaded(name, path):
  """A pretrained model, and the arguments of a call."""
  model = pretrained.load(folder_of(name, path))
  arrays = golden(name)[2]
  more = {'types_BT': arrays['types']} if 'types' in arrays else {}
  return model, (arrays['ids'], arrays['lengths']), more


def small(params, grid, factors=None):
  plan = tensors.uniform_plan(params, grid)
  return tensors.quantise(params, plan, factors=factors)


def plain(module, params, args, more):
  """By the module itself, with the numbers."""
  call = jax.jit(lambda p: module.apply({'params': p}, *args, **more))
  return call(tensors.dequantise(params))


def ours(module, params, args, more, activations=None):
  named = activations if isinstance(activations, str) else None
  call = jax.jit(
    lambda p, scales: running.apply(
      module, p, *args, activations=named or scales, **more
    )
  )
  return call(params, None if named else activations)


def by_floats(module, params, args, more, scales=None):
  """With rounded inputs as floats, by the layers themselves, unrolled."""
  numbers = tensors.dequantise(params)
  flat = flax.traverse_util.flatten_dict(params, sep='/')

  def rounded(x, kernel, axes, scale):
    if kernel.inputs.size:
      s_K = kernel.inputs.reshape(x.shape[x.ndim - len(axes) :])
      x = x / s_K[(None,) * (x.ndim - len(axes))]
    if scale is None:
      scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / 127
      scale = jnp.where(scale > 0, scale, 1.0)
    x = jnp.clip(jnp.round(x / scale), -127, 127) * scale
    if kernel.inputs.size:
      x = x * s_K[(None,) * (x.ndim - len(axes))]
    return x

  names, current = encoder.layer_names(module.layers), []

  def answer(call, arguments, keywords, context):
    own, name = context.module, '/'.join(context.module.path)
    if type(own).__name__ == 'Block' and context.method_name == '__call__':
      current.append(names[len(current) % len(names)])
    if context.method_name == 'tied_logits' and isinstance(own, Predictor):
      path = 'embedding/embedding'
      return call(rounded(arguments[0], flat[path], (-1,), None))
    is_dense = isinstance(own, nn.Dense | nn.DenseGeneral)
    if not is_dense or context.method_name != '__call__':
      return call(*arguments, **keywords)
    within = name.startswith(('mixer', 'mlp'))
    path = f'encoder/{current[-1]}/{name}' if within else name
    path = f'{path}/kernel'
    if scales is not None and path not in scales:
      return call(*arguments, **keywords)
    axes = (-2, -1) if name.endswith('mixer/out') else (-1,)
    scale = None if scales is None else scales[path]
    return call(rounded(arguments[0], flat[path], axes, scale))

  def apply(numbers):
    with nn.intercept_methods(answer):
      return module.apply({'params': numbers}, *args, **more)

  return jax.jit(apply)(numbers)


@pytest.mark.parametrize('name', slow.after(4, FILES))
def test_outputs_are_those_of_the_numbers(name, tmp_path):
  model, args, more = loaded(name, tmp_path)
  grid = GRIDS[FILES.index(name) % len(GRIDS)]
  params = small(model.params, grid)
  np.testing.assert_allclose(
    ours(model.module, params, args, more),
    plain(model.module, params, args, more),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ('mechanism', 'settings'), slow.after(3, CASES), ids=str
)
def test_every_mechanism_runs(mechanism, settings):
  _, module, params = model_of(mechanism, settings)
  params = small(params, Grid(8))
  args, more = (IDS, LENGTHS), {'method': 'vectors'}
  expected = plain(module, params, args, more)
  y = ours(module, params, args, more)
  keep_BT = np.arange(T) < LENGTHS[:, None]
  np.testing.assert_allclose(y[keep_BT], expected[keep_BT], atol=1e-4)
  y = ours(module, params, args, more, 'dynamic')
  assert np.isfinite(y[keep_BT]).all()
  has_dense = mechanism != 'fnet'
  assert not has_dense or np.any(np.asarray(y) != expected)


def test_no_mechanism_is_left_out():
  assert set(MORE) == set(attention.TABLE)


@pytest.mark.parametrize(
  ('name', 'grid'),
  [
    ('bert-predictor', Grid(8)),
    ('gpt2-predictor', Grid(4, 'tile', 5, symmetric=False)),
    ('vit-classifier', Grid(8, 'tensor')),
  ],
)
def test_rounded_inputs_are_those_of_a_model_that_rounds_floats(
  name, grid, tmp_path, monkeypatch
):
  model, args, more = loaded(name, tmp_path)
  params = small(model.params, grid)
  y = ours(model.module, params, args, more, 'dynamic')
  # One layer after the other, so that each can be looked at.
  monkeypatch.setattr(encoder, 'SCAN_FROM', 99)
  expected = by_floats(model.module, params, args, more)
  keep = np.ones(y.shape, bool)
  if y.ndim == 3 and 'vit' not in name:
    keep[:] = (np.arange(y.shape[1]) < args[1][:, None])[..., None]
  exact = plain(model.module, params, args, more)
  np.testing.assert_allclose(y[keep], expected[keep], atol=2e-3)
  assert np.abs((y - exact)[keep]).max() > 1e-2


def factors_and_scales(model, args, more):
  batch = [(*args, *more.values())]
  moments = calibrate.collect(model.module, model.params, batch)
  factors = smooth.factors(model.config, model.params, moments)
  folded, left = fold.fold(model.config, model.params, factors)
  return folded, left, int8.static_scales(moments, factors)


def test_static_scales_and_factors(tmp_path, monkeypatch):
  model, args, more = loaded('bert-classifier', tmp_path)
  folded, left, scales = factors_and_scales(model, args, more)
  params = small(folded, Grid(8), left)
  y = ours(model.module, params, args, more, scales)
  exact = plain(model.module, params, args, more)
  assert 1e-3 < np.abs(y - exact).max() < 0.2
  monkeypatch.setattr(encoder, 'SCAN_FROM', 99)
  expected = by_floats(model.module, params, args, more, scales)
  np.testing.assert_allclose(y, expected, atol=2e-3)
  # Those that are not named have their inputs as they are.
  some = {path: scales[path] for path in scales if '/mlp/' in path}
  y = ours(model.module, params, args, more, some)
  expected = by_floats(model.module, params, args, more, some)
  np.testing.assert_allclose(y, expected, atol=2e-3)
  assert np.abs(y - ours(model.module, params, args, more, scales)).max() > 0


@pytest.mark.parametrize('activations', ['dynamic', 'static', None])
def test_scanned_layers_have_their_own_codes_and_scales(
  activations, monkeypatch
):
  _, module, params = model_of('full', {'form': 'dense'}, layers=4)
  params = {
    **params,
    'encoder': {
      name: jax.tree.map(lambda x, n=n: x * (1 + 0.4 * n), layer)
      for n, (name, layer) in enumerate(params['encoder'].items())
    },
  }
  args, more = (IDS, LENGTHS), {'method': 'vectors'}
  moments = calibrate.collect(module, params, [args])
  if activations == 'static':
    activations = int8.static_scales(moments)
    assert len({float(x) for x in activations.values()}) > 4
  codes = small(params, Grid(8))
  scanned = ours(module, codes, args, more, activations)
  monkeypatch.setattr(encoder, 'SCAN_FROM', 99)
  unrolled = ours(module, codes, args, more, activations)
  np.testing.assert_allclose(scanned, unrolled, atol=1e-4)


def test_layers_with_other_grids_are_not_stacked():
  """Grids 8, 8, 8, then tiles, then with factors."""
  _, module, params = model_of('full', {'form': 'dense'}, layers=6)
  plan = tensors.uniform_plan(params, Grid(8))
  plan |= {path: Grid(4, 'tile', 4) for path in plan if 'layer_3' in path}
  ones = {
    path: np.linspace(1, 2, 12) for path in plan if '5/mixer/query' in path
  }
  codes = tensors.quantise(params, plan, factors=ones)
  args, more = (IDS, LENGTHS), {'method': 'vectors'}
  np.testing.assert_allclose(
    ours(module, codes, args, more),
    plain(module, codes, args, more),
    atol=1e-5,
  )
  jaxpr = jax.make_jaxpr(lambda p: running.apply(module, p, *args, **more))(
    codes
  )
  lengths = [
    equation.params['length'] for equation in jaxpr.eqns
    if equation.primitive.name == 'scan'
  ]  # fmt: skip
  assert lengths == [3]


def test_arguments_are_a_quarter():
  """Of the compiled program; what is added is no more than a layer."""
  _, module, params = model_of(
    'full', {}, model__width=48, model__mlp_width=96, data__max_length=32
  )
  codes = small(params, Grid(8))
  args = (IDS, LENGTHS)
  for activations in (None, 'dynamic'):
    sizes = [
      jax.jit(
        lambda p, a=activations: running.apply(module, p, *args, activations=a)
      )
      .lower(tree)
      .compile()
      .memory_analysis()
      .argument_size_in_bytes
      for tree in (params, codes)
    ]
    assert sizes[0] >= 4 * sum(x.size for x in jax.tree.leaves(params))
    assert sizes[1] < 0.32 * sizes[0]
    packed = sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(codes)
    )  # fmt: skip
    assert sizes[1] <= packed + 1024


def test_of_a_table_only_the_rows_are_decoded():
  _, module, params = model_of('full', {}, data__max_length=T)
  module = module.clone(vocabulary_size=5000)
  params['embedding']['embedding'] = np.random.default_rng(0).normal(
    size=(5000, 12)
  )
  codes = small(params, Grid(8))
  jaxpr = jax.make_jaxpr(lambda p: running.apply(module, p, IDS, LENGTHS))(
    codes
  )
  floats = [
    variable.aval.shape
    for equation in jaxpr.eqns
    for variable in equation.outvars
    if jnp.issubdtype(variable.aval.dtype, jnp.floating)
  ]
  assert floats
  assert not any(5000 in shape and 12 in shape for shape in floats)
  args = (IDS + 4000, LENGTHS)
  np.testing.assert_allclose(
    ours(module, codes, args, {}), plain(module, codes, args, {}), atol=1e-5
  )


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_ids_that_are_not_there(grid):
  table = nn.Embed(Y, 6)
  params = {
    'embedding': np.random.default_rng(0).normal(size=(Y, 6)).astype('f4')
  }
  codes = small(params, grid)
  ids = np.array([[0, Y - 1, Y], [-1, -Y - 1, 3]])
  np.testing.assert_allclose(
    running.apply(table, codes, ids), plain(table, codes, (ids,), {}), atol=1e-6
  )
  only = nn.Embed(1, 6)
  codes = small({'embedding': params['embedding'][:1]}, grid)
  np.testing.assert_allclose(
    running.apply(only, codes, ids), plain(only, codes, (ids,), {}), atol=1e-6
  )


@pytest.mark.parametrize(
  'keys',
  [
    {'model__extra_tokens': 2},
    {'model__mlp_chunk': 3},
    {'model__reversible': True},
    {'model__remat': True},
    {'model__position': 'learned', 'model__pooling': 'cls'},
    {'model__layers': {'0': {'share': 'a'}, '2': {'share': 'a'}}},
    {'model__dtype': 'bfloat16'},
  ],
  ids=str,
)
def test_other_forms_of_models(keys):
  _, module, params = model_of('full', {}, layers=3, **keys)
  codes = small(params, Grid(8))
  args = (IDS, LENGTHS)
  y = ours(module, codes, args, {})
  expected = plain(module, codes, args, {})
  assert y.dtype == expected.dtype
  atol = 0.03 if 'model__dtype' in keys else 1e-5
  np.testing.assert_allclose(y, expected, atol=atol)
  y = ours(module, codes, args, {}, 'dynamic')
  assert 1e-6 < np.abs(y - expected).max() < 0.1


@pytest.mark.parametrize('token_head', ['tied', 'transformed'])
@pytest.mark.parametrize('grid', [Grid(8), Grid(4, 'tile', 3)], ids=str)
def test_tied_heads_of_factorised_embeddings(token_head, grid):
  config, _, _ = model_of(
    'full', {}, model__embedding_width=5, model__token_head=token_head,
    model__mlp_rank=3,
  )  # fmt: skip
  module = build.of_kind('predictor', config, Y)
  params = random_variables(module, IDS, LENGTHS)['params']
  plan = tensors.uniform_plan(params, grid)
  assert 'embedding_out/kernel' in plan
  # Factors too, which what reads it backwards has to know.
  ones = {'embedding_out/kernel': np.linspace(1, 3, 5)}
  codes = tensors.quantise(params, plan, factors=ones)
  args = (IDS, LENGTHS)
  expected = plain(module, codes, args, {})
  y = ours(module, codes, args, {})
  np.testing.assert_allclose(y, expected, atol=1e-4)
  if grid.tile:
    return
  rounded = ours(module, codes, args, {}, 'dynamic')
  assert 1e-6 < np.abs(rounded - expected).max() < 0.1 * np.abs(expected).max()


def test_dense_layers_keep_their_type():
  x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(jnp.bfloat16)
  for dense in (
    nn.Dense(3, dtype=jnp.bfloat16),
    nn.DenseGeneral((2, 4)),
    nn.DenseGeneral(4, axis=(-2, -1), name='out', use_bias=False),
  ):
    params = random_variables(dense, x)['params']
    # What joins heads is known by its path.
    place = ('layer', 'mixer', 'out') if dense.name else ('layer', 'at', 'it')
    codes = small(flax.traverse_util.unflatten_dict({place: params}), Grid(8))
    for part in place:
      codes = codes[part]
    y = running.apply(dense, codes, x)
    expected = plain(dense, codes, (x,), {})
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    np.testing.assert_allclose(
      np.float32(y), np.float32(expected), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize('activations', ['dynamic', 'static'])
def test_a_stream_of_codes(activations, tmp_path):
  """Some tokens at a time, with scales that each layer has for itself."""
  model, (ids_BT, lengths_B), _ = loaded('gpt2-predictor', tmp_path)
  module, length = model.module, ids_BT.shape[1]
  if activations == 'static':
    batches = [(ids_BT, lengths_B)]
    moments = calibrate.collect(module, model.params, batches)
    activations = int8.static_scales(moments)
  codes = small(model.params, Grid(8))
  whole = ours(module, codes, (ids_BT, lengths_B), {}, activations)
  stream = module.init_stream(codes, len(ids_BT), length)
  for start in range(0, length, length // 2):
    part_BT = ids_BT[:, start : start + length // 2]
    own_B = np.clip(lengths_B - start, 0, part_BT.shape[1])
    more = {'is_first': start == 0, 'method': 'extend'}
    args = (part_BT, own_B, stream)
    y, stream = ours(module, codes, args, more, activations)
    for row, count in enumerate(own_B):
      np.testing.assert_allclose(
        y[row, :count], whole[row, start : start + count], atol=2e-3
      )


def test_what_cannot_be_run():
  _, module, params = model_of('full', {})
  codes = small(params, Grid(8))
  args = (IDS, LENGTHS)
  with pytest.raises(ConfigError, match="got 'static'"):
    running.apply(module, codes, *args, activations='static')
  for path in ('encoder/layer_9/mlp/in/kernel', 'encoder/norm_out/scale'):
    with pytest.raises(ConfigError, match=path):
      running.apply(module, codes, *args, activations={path: 1.0})
  with pytest.raises(ConfigError, match='no dense layer that is kept'):
    running.apply(
      module, params, *args, activations={'encoder/layer_0/mlp/in/kernel': 1.0}
    )
  # Rows of a matrix that is no joining of heads are its first axis.
  dense = nn.DenseGeneral(4, axis=(-2, -1))
  wrong = small({'kernel': np.ones((5, 6, 4), 'f4')}, Grid(8))
  with pytest.raises(ValueError, match=r'takes axes \(-2, -1\)'):
    running.apply(dense, wrong, np.ones((2, 5, 6)))
