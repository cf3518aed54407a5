"""Training for rounding: what is rounded, its gradients, and what is stored."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer.compress import grid as grids
from effformer.compress import lsq, qat, tensors
from effformer.compress.grid import Grid
from effformer.errors import ConfigError
from tests import slow
from tests.compress.tensors_test import OUT, QUERY, H, K, params

# Many models are compiled.
pytestmark = pytest.mark.slow

# Of each rule, of each group; the last tile of 4 is shorter.
GRIDS = (
  Grid(8), Grid(3, 'tensor', symmetric=False), Grid(4, 'tile', 4, rule='clip'),
  Grid(2, 'tile', 4, rule='ternary'), Grid(2, 'tensor', rule='ternary'),
  Grid(2, 'tile', 4, rule='absmean'), Grid(1, rule='sign'),
  Grid(2, rule='kmeans'), Grid(3, 'tensor', rule='kmeans'),
  Grid(8, keep=2, of=4), Grid(2, 'tile', 4, rule='ternary', keep=2, of=4),
)  # fmt: skip

MLP = 'encoder/layer_0/mlp/in/kernel'


def flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep='/')


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(
      np.asarray(x).view('u4'), np.asarray(y).view('u4')
    ),
    a,
    b,
  )


def gradients(rounded, tree, seed=5):
  """Of a sum of everything that is rounded, each with another weight."""
  rng = np.random.default_rng(seed)
  weights = jax.tree.map(lambda x: rng.normal(size=x.shape).astype('f4'), tree)

  def loss(tree):
    products = jax.tree.map(lambda x, w: (x * w).sum(), rounded(tree), weights)
    return sum(jax.tree.leaves(products))

  return jax.jit(jax.grad(loss))(tree), weights


@pytest.mark.parametrize('grid', slow.after(3, GRIDS), ids=str)
def test_what_is_stored_are_the_numbers_of_training(grid):
  plan = tensors.uniform_plan(params(), grid)
  stored = tensors.dequantise(tensors.quantise(params(), plan))
  assert_same_bits(qat.fake(params(), plan), stored)
  assert_same_bits(jax.jit(lambda p: qat.fake(p, plan))(params()), stored)
  # Beside other work on the same numbers.
  seen = jax.jit(
    lambda p: (qat.fake(p, plan), jax.tree.map(lambda x: 3 * x.T + 1, p))
  )
  assert_same_bits(seen(params())[0], stored)


@pytest.mark.parametrize('rule', ['sign', 'absmean', 'ternary'])
def test_means_do_not_depend_on_how_a_table_lies_in_memory(rule):
  """Of sums of this length compilers change the order, and so the bits."""
  table = np.random.default_rng(0).normal(size=(16, 768)).astype('f4')
  grid = Grid(1 if rule == 'sign' else 2, rule=rule)
  plan = {'positions': grid}
  fake = jax.jit(lambda p: qat.fake(p, plan))({'positions': table})
  stored = tensors.quantise({'positions': table}, plan)
  assert_same_bits(fake, tensors.dequantise(stored))


@pytest.mark.parametrize(
  'grid',
  slow.after(1, [Grid(3), Grid(2, 'tile', 4), Grid(4, 'tensor')]),
  ids=str,
)
def test_what_is_stored_are_the_numbers_of_learned_steps(grid):
  plan = tensors.uniform_plan(params(), grid)
  steps = jax.tree.map(lambda x: 0.73 * x, qat.initial_steps(params(), plan))
  stored = tensors.quantise(params(), plan, found=qat.scales(steps))
  fake = jax.jit(lambda p, s: qat.fake(p, plan, s))(params(), steps)
  assert_same_bits(fake, tensors.dequantise(stored))
  own = tensors.dequantise(tensors.quantise(params(), plan))
  assert np.any(fake['positions'] != own['positions'])


def test_gradients_go_through_to_the_numbers():
  # 8 bits clip nothing; what is not in the plan stays as it is.
  plan = {QUERY: Grid(8), 'positions': Grid(2)}
  found, weights = gradients(lambda p: qat.fake(p, plan), params())
  jax.tree.map(np.testing.assert_array_equal, found, weights)
  fake = flat(qat.fake(params(), plan))
  for path, x in flat(params()).items():
    assert np.any(fake[path] != x) == (path in plan)


def test_gradients_of_steps_are_those_of_the_matrix():
  plan = {QUERY: Grid(2), OUT: Grid(3)}
  steps = {QUERY: qat.initial_steps(params(), plan)[QUERY]}
  _, weights = gradients(lambda p: p, params())

  def loss(steps):
    fake = qat.fake(params(), plan, steps)
    return jax.tree.reduce(
      jnp.add, jax.tree.map(lambda x, w: (x * w).sum(), fake, weights)
    )

  found = jax.grad(loss)(steps)[QUERY]
  x, w = (flat(tree)[QUERY].reshape(-1, H * K) for tree in (params(), weights))
  expected = jax.grad(lambda s: (lsq.lsq(x, s, Grid(2)) * w).sum())(
    steps[QUERY]
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


# Quant-Noise.


def drawn(share, block=(1, 1), seed=0):
  """Of a kernel of which rounding changes all, which are rounded."""
  x = np.random.default_rng(9).uniform(0.1, 0.4, (60, 50)).astype('f4')
  plan = {'in/kernel': Grid(1, rule='sign')}
  noisy = qat.noisy(
    {'in': {'kernel': x}}, plan, jax.random.key(seed), share, block=block
  )
  y = np.asarray(noisy['in']['kernel'])
  z = np.asarray(grids.fake_quantise(x, plan['in/kernel']))
  assert (x != z).all()
  np.testing.assert_array_equal(y, np.where(y == z, z, x))
  return y == z


def is_whole(block):
  return block.all() or not block.any()


def test_a_share_is_rounded_and_the_rest_is_as_it_was():
  mask = drawn(0.3)
  assert abs(mask.mean() - 0.3) < 0.04
  # Neither rows nor columns go together.
  assert mask.mean(0).min() > 0.1
  assert mask.mean(1).max() < 0.6
  assert np.any(mask != drawn(0.3, seed=1))
  np.testing.assert_array_equal(mask, drawn(0.3))
  assert not drawn(0).any()
  assert drawn(1).all()


def test_blocks_are_drawn_together():
  mask = drawn(0.5, (1, 0))
  assert (mask.all(1) | ~mask.any(1)).all()
  assert 0.3 < mask.mean() < 0.7
  mask = drawn(0.5, (0, 1))
  assert (mask.all(0) | ~mask.any(0)).all()
  assert 0.3 < mask.mean() < 0.7
  # The last ones are 4 x 7, 8 x 1 and 4 x 1.
  mask = drawn(0.5, (8, 7))
  starts = range(0, 60, 8), range(0, 50, 7)
  blocks = [mask[i : i + 8, j : j + 7] for i in starts[0] for j in starts[1]]
  assert all(is_whole(block) for block in blocks)
  assert 0.3 < np.mean([block.all() for block in blocks]) < 0.7


def test_what_is_drawn_depends_on_the_key_and_the_path_alone():
  key, grid = jax.random.key(3), Grid(2)
  alone = qat.noisy(params(), {MLP: grid}, key, 0.5)
  all_plan = tensors.uniform_plan(params(), grid)
  among = flat(qat.noisy(params(), all_plan, key, 0.5))
  np.testing.assert_array_equal(flat(alone)[MLP], among[MLP])
  # Two parameters of the same size are drawn apart.
  same = {
    name: {'kernel': np.linspace(1, 2, 40).reshape(8, 5)} for name in 'ab'
  }
  noisy = qat.noisy(same, tensors.uniform_plan(same, grid), key, 0.5)
  assert np.any(noisy['a']['kernel'] != noisy['b']['kernel'])


def test_gradients_are_exact_where_nothing_is_rounded():
  # Of one bit, those beyond the scale are outside.
  plan = {MLP: Grid(1, rule='sign')}
  key = jax.random.key(1)
  noisy = flat(jax.jit(lambda p: qat.noisy(p, plan, key, 0.5))(params()))
  found, weights = gradients(lambda p: qat.noisy(p, plan, key, 0.5), params())
  x, d, w = (flat(tree)[MLP] for tree in (params(), found, weights))
  is_rounded = noisy[MLP] != x
  is_inside = np.abs(x) <= np.abs(x).mean(0)
  assert {(a, b) for a, b in zip(is_rounded.ravel().tolist(),
          is_inside.ravel().tolist(), strict=True)} == {
    (True, True), (True, False), (False, True), (False, False),
  }  # fmt: skip
  np.testing.assert_array_equal(d, np.where(is_rounded & ~is_inside, 0, w))


# Training.

SPARSE = Grid(8, keep=2, of=4)


@pytest.mark.parametrize(
  'grid',
  [Grid(2), Grid(2, rule='ternary'), Grid(2, rule='absmean'), SPARSE],
  ids=str,
)
def test_training_for_rounding_beats_rounding_after_training(grid):
  """A layer whose inputs depend on each other; steps with the first grid."""
  rng = np.random.default_rng(0)
  mix = np.eye(32) + 0.3 * rng.normal(size=(32, 32))
  x_BK = (rng.normal(size=(256, 32)) @ mix).astype('f4')
  w_KN = rng.normal(size=(32, 16)).astype('f4')
  plan = {'out/kernel': grid}
  start = {'params': {'out': {'kernel': w_KN}}, 'steps': {}}
  if grid.rule == 'extremes' and not grid.keep:
    start['steps'] = qat.initial_steps(start['params'], plan)
  optimiser = optax.adam(optax.cosine_decay_schedule(0.002, 400))

  def error(params):
    return jnp.mean((x_BK @ params['out']['kernel'] - x_BK @ w_KN) ** 2)

  def loss(state):
    return error(qat.fake(state['params'], plan, state['steps']))

  def step(carry, _):
    state, opt_state = carry
    updates, opt_state = optimiser.update(jax.grad(loss)(state), opt_state)
    return (optax.apply_updates(state, updates), opt_state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=400)[0][0])
  state = run((start, optimiser.init(start)))
  after, trained = (
    error(tensors.dequantise(tensors.quantise(params, plan, found=found)))
    for params, found in (
      (start['params'], None),
      (state['params'], qat.scales(state['steps'])),
    )
  )
  np.testing.assert_allclose(trained, loss(state), rtol=1e-6)
  assert trained < 0.85 * after


def test_what_is_refused():
  with pytest.raises(ConfigError, match='which the model does not have'):
    qat.fake(params(), {'other/kernel': Grid(2)})
  steps = {QUERY: np.ones((1, H * K), 'f4')}
  with pytest.raises(ValueError, match='which the plan lacks'):
    qat.fake(params(), {OUT: Grid(2)}, steps)
  for grid in (
    Grid(1, rule='sign'),
    Grid(4, symmetric=False),
    Grid(8, keep=2, of=4),
  ):
    with pytest.raises(ConfigError, match=f'learned for {QUERY}'):
      qat.initial_steps(params(), {QUERY: grid})
  for share, block in ((1.5, (1, 1)), (-0.5, (1, 1)), (0.5, (-1, 0))):
    with pytest.raises(ValueError, match='has to be 0'):
      qat.noisy(params(), {OUT: Grid(2)}, jax.random.key(0), share, block=block)
