"""Schedules by hand, AdamW against its paper and against optax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer import attention, shapes
from effformer.models import build
from effformer.train import optimiser
from tests.train.tiny_run import tiny_config

NUM_STEPS = 10
# Float32 Adam divides by a root of a small second moment.
RTOL = 1e-5


def train_config(**keys):
  keys = {'num_steps': NUM_STEPS, **keys}
  return tiny_config(**{f'train__{k}': v for k, v in keys.items()}).train


@pytest.mark.parametrize(
  ('schedule', 'warmup', 'expected'),
  [
    ('constant', 4, {0: 0.0, 1: 0.2, 2: 0.4, 4: 0.8, 5: 0.8, 10: 0.8}),
    ('constant', 0, {0: 0.8, 1: 0.8, 10: 0.8}),
    # Not renormalised: the peak is 0.8 / sqrt(4).
    ('rsqrt', 4, {0: 0.0, 1: 0.1, 2: 0.2, 4: 0.4, 9: 0.8 / 3, 16: 0.2}),
    ('rsqrt', 0, {0: 0.8, 1: 0.8, 4: 0.4, 16: 0.2}),
    (
      'cosine',
      4,
      {0: 0.0, 2: 0.4, 4: 0.8, 6: 0.6, 7: 0.4, 8: 0.2, 10: 0.0, 12: 0.0},
    ),
    ('cosine', 0, {0: 0.8, 5: 0.4, 10: 0.0}),
    ('cosine', 10, {5: 0.4, 10: 0.8}),
  ],
)
def test_schedules_at_points_computed_by_hand(schedule, warmup, expected):
  rate = optimiser.learning_rate(
    train_config(schedule=schedule, warmup_steps=warmup, learning_rate=0.8)
  )
  steps = jnp.asarray(list(expected), jnp.int32)
  rates = jax.jit(jax.vmap(rate))(steps)
  assert rates.dtype == jnp.float32
  np.testing.assert_allclose(rates, list(expected.values()), atol=1e-7)


SHAPES = {
  'embedding': {'embedding': (5, 3)},
  'positions': (4, 3),
  'cls': (3,),
  'conv': {'filter': (5, 3)},
  'dense': {'kernel': (3, 2), 'bias': (2,)},
  'norm': {'scale': (3,)},
}
DECAYED = {('conv', 'filter'), ('dense', 'kernel')}


def random_tree(seed, size=1.0):
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: (size * generator.normal(size=shape)).astype(np.float32),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def flat(tree):
  return {
    tuple(key.key for key in path): np.asarray(leaf, np.float64)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


# The second gradient is shorter than every clipping norm but 0.
GRADIENTS = [random_tree(1), random_tree(2, 1e-2), random_tree(3)]


def by_hand(params, gradients, train, rates):
  """Loshchilov and Hutter 2019, Algorithm 2, in float64."""
  p = flat(params)
  m = {name: np.zeros_like(value) for name, value in p.items()}
  v = {name: np.zeros_like(value) for name, value in p.items()}
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    g = flat(gradient)
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in g.values()))
    shrink = min(1.0, train.clip_norm / norm) if train.clip_norm else 1.0
    for name in p:
      g_name = shrink * g[name]
      m[name] = train.beta1 * m[name] + (1 - train.beta1) * g_name
      v[name] = train.beta2 * v[name] + (1 - train.beta2) * g_name**2
      m_hat = m[name] / (1 - train.beta1**t)
      v_hat = v[name] / (1 - train.beta2**t)
      decays = train.decay == 'all' or name in DECAYED
      direction = m_hat / (np.sqrt(v_hat) + train.epsilon)
      direction += train.weight_decay * p[name] * decays
      p[name] = p[name] - rate * direction
  return p


def run(transform, params, gradients, rates):
  """Parameters after `p <- p - rate * direction` at each rate."""

  @jax.jit
  def update(params, opt_state, gradient, rate):
    direction, opt_state = transform.update(gradient, opt_state, params)
    return jax.tree.map(lambda p, d: p - rate * d, params, direction), opt_state

  opt_state = transform.init(params)
  for gradient, rate in zip(gradients, rates, strict=True):
    params, opt_state = update(params, opt_state, gradient, rate)
  return params


@pytest.mark.parametrize(
  ('decay', 'weight_decay', 'clip_norm'),
  [
    ('all', 0.3, 0.0),
    ('matrices', 0.3, 0.0),
    ('all', 0.3, 0.5),
    ('matrices', 0.0, 2.0),
  ],
)
def test_three_steps_equal_the_paper_and_optax(decay, weight_decay, clip_norm):
  train = train_config(
    decay=decay,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    # Large enough to be seen beside the root of the second moment.
    epsilon=1e-2,
    beta1=0.8,
    beta2=0.95,
    learning_rate=0.1,
  )
  params = random_tree(0)
  rate = optimiser.learning_rate(train)
  rates = [float(rate(step)) for step in (1, 2, 3)]
  ours = flat(run(optimiser.build(train), params, GRADIENTS, rates))
  expected = by_hand(params, GRADIENTS, train, rates)
  theirs = optax.adamw(
    lambda count: rate(count + 1),
    train.beta1,
    train.beta2,
    train.epsilon,
    weight_decay=weight_decay,
    mask=optimiser.decay_mask if decay == 'matrices' else None,
  )
  if clip_norm:
    theirs = optax.chain(optax.clip_by_global_norm(clip_norm), theirs)
  # The updates of optax hold its rate and are added.
  optax_params = flat(run(theirs, params, GRADIENTS, [-1.0] * 3))
  for name, value in ours.items():
    np.testing.assert_allclose(value, expected[name], rtol=RTOL, atol=1e-6)
    moved = np.abs(value - flat(params)[name]).max()
    assert moved > 1e-2, name
    np.testing.assert_allclose(value, optax_params[name], rtol=1e-6, atol=1e-7)


def test_clipping_keeps_the_direction_and_bounds_the_norm():
  train = train_config(clip_norm=0.5, weight_decay=0.0, beta1=0.0, beta2=0.0)
  with train.unlocked():
    # So large that the direction is the clipped gradient over epsilon.
    train.epsilon = 1e4
  transform = optimiser.build(train)
  params = random_tree(0)
  for gradient, norm in zip(GRADIENTS, (0.5, None, 0.5), strict=True):
    direction, _ = transform.update(gradient, transform.init(params), params)
    clipped = {k: 1e4 * d for k, d in flat(direction).items()}
    total = math.sqrt(sum(float((d**2).sum()) for d in clipped.values()))
    whole = float(optax.global_norm(gradient))
    assert total == pytest.approx(norm or whole, rel=1e-3)
    for name, g in flat(gradient).items():
      np.testing.assert_allclose(clipped[name], g * total / whole, rtol=1e-2)


def test_matrices_are_what_multiplies_in_a_whole_model():
  config = tiny_config(
    model__pooling='cls',
    model__extra_tokens=2,
    model__position='learned',
    model__conv_width=3,
    model__head_width=6,
  )
  model = build.sequence_classifier(config, 257, 2)
  ids_BT, lengths_B = jnp.ones((1, 16), jnp.int32), jnp.full((1,), 16)
  params = jax.eval_shape(model.init, jax.random.key(0), ids_BT, lengths_B)
  mask = flat(optimiser.decay_mask(params['params']))
  layer = ('encoder', 'layer_0')
  projections = ('query', 'key', 'value', 'out')
  expected = {
    *((*layer, 'mixer', name, 'kernel') for name in projections),
    *((*layer, 'mlp', name, 'kernel') for name in ('in', 'out')),
    (*layer, 'conv', 'filter'),
    ('head_in', 'kernel'),
    ('head_out', 'kernel'),
  }
  assert {name for name, is_decayed in mask.items() if is_decayed} == expected
  kept = {name[-1] for name in mask.keys() - expected}
  assert kept == {
    *('embedding', 'positions', 'cls', 'extra_tokens', 'bias', 'scale')
  }


def test_biases_of_heads_are_not_matrices():
  mixer = attention.build('full', num_heads=3, use_bias=True)
  x_BTD = jnp.ones((1, 4, 12))
  tokens = shapes.Tokens.from_lengths(jnp.full((1,), 4), 4)
  params = jax.eval_shape(
    lambda: mixer.init(jax.random.key(0), x_BTD, tokens=tokens)
  )
  mask = flat(optimiser.decay_mask(params['params']))
  assert {name[-1] for name, is_decayed in mask.items() if is_decayed} == {
    'kernel'
  }
  assert {name[-1] for name in mask} == {'kernel', 'bias'}
