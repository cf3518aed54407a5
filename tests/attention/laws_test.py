"""Laws L1-L4 and L7-L9, each where the mechanism declares the capability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.shapes import Tokens
from tests.attention.cases import (
  CASES,
  LONGER,
  PACKED,
  PLAIN,
  TOLERANCE,
  B,
  Case,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  cross_of,
  each,
  extend_of,
  module_of,
  normal,
  run,
  start_of,
  variables_of,
)

# L1: padding.


@pytest.mark.parametrize('garbage', ['huge', 'random'])
@each(CASES)
def test_content_of_padding_is_ignored(case, garbage):
  x_BTD = normal(B, T, D)
  lengths = np.array([T - 1, 4])
  other = 1e3 if garbage == 'huge' else normal(B, T, D, seed=1)
  tokens = Tokens.from_lengths(lengths, T)
  keep_BT = np.asarray(tokens.keep_BT)
  soiled_BTD = np.where(keep_BT[..., None], x_BTD, other).astype('f4')
  clean_BTD = run(case, x_BTD, tokens)
  soiled_BTD = run(case, soiled_BTD, tokens)
  np.testing.assert_array_equal(soiled_BTD[keep_BT], clean_BTD[keep_BT])


@each(CASES, any_padding=True)
def test_more_padding_changes_nothing(case):
  x_BTD = normal(B, T, D)
  lengths = np.array([T, 4])
  y_BTD = run(case, x_BTD, Tokens.from_lengths(lengths, T))
  wider_BTD = np.pad(x_BTD, ((0, 0), (0, LONGER - T), (0, 0)), mode='edge')
  wider_BTD = run(case, wider_BTD, Tokens.from_lengths(lengths, LONGER))
  keep_BT = np.arange(T)[None] < lengths[:, None]
  assert_close(wider_BTD[:, :T][keep_BT], y_BTD[keep_BT])


# L2: causality, by perturbing each token in its own row.


@each(CASES, is_causal=True, choice_leaks=False)
def test_no_token_sees_the_future(case):
  x_TD = normal(T, D)
  x_BTD = np.repeat(x_TD[None], T + 1, axis=0)
  for t in range(T):
    x_BTD[t, t] = -5.0 * x_BTD[t, t] + 40.0
  y_BTD = run(case, x_BTD, Tokens.from_lengths(np.full(T + 1, T), T))
  for t in range(T):
    np.testing.assert_array_equal(y_BTD[t, :t], y_BTD[T, :t])
    assert np.abs(y_BTD[t, t] - y_BTD[T, t]).max() > 1e-3


# L3: packing.


@each(CASES, packing=True)
def test_segments_are_isolated(case):
  x_BTD = normal(B, T, D)
  packed_BT = np.array(PACKED)
  y_BTD = run(case, x_BTD, case.tokens(packed_BT))
  for segment in (1, 2, 3):
    here_BT = packed_BT == segment
    alone_BTD, alone_BT = np.zeros_like(x_BTD), np.zeros((B, T), int)
    for b in range(B):
      size = here_BT[b].sum()
      alone_BTD[b, :size] = x_BTD[b, here_BT[b]]
      alone_BT[b, :size] = 1
    alone_BTD = run(case, alone_BTD, case.tokens(alone_BT))
    assert_close(alone_BTD[alone_BT > 0], y_BTD[here_BT])


@each(CASES, packing=True)
def test_promise_of_one_segment_changes_nothing(case):
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  packed = tokens.replace(is_packed=True)
  keep_BT = np.asarray(tokens.keep_BT)
  assert_close(
    run(case, x_BTD, packed)[keep_BT], run(case, x_BTD, tokens)[keep_BT]
  )


# L4: the causal call is `extend` from the initial state.


@functools.cache
def masked_splits_of(case):
  """Two calls for each split t; padding stands for the other part."""

  def both(variables, x_BTD, tokens, state, t):
    outputs = []
    is_first_T = jnp.arange(T) < t
    for part_T in (is_first_T, ~is_first_T):
      segment_BT = jnp.where(part_T[None], tokens.segment_BT, 0)
      y_BTD, state = module_of(case).apply(
        variables, x_BTD, state, tokens=tokens.replace(segment_BT=segment_BT),
        method='extend',
      )  # fmt: skip
      outputs.append(y_BTD)
    return jnp.where(is_first_T[None, :, None], *outputs)

  return jax.jit(jax.vmap(both, in_axes=(None, None, None, None, 0)))


@each(CASES, is_causal=True, streaming=True)
def test_stream_equals_call_for_every_split(case):
  x_BTD, tokens = normal(B, T, D), case.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = run(case, x_BTD, tokens)
  split_NBTD = masked_splits_of(case)(
    variables_of(case), x_BTD, tokens, start_of(case), jnp.arange(T + 1)
  )
  for t in range(T + 1):
    assert_close(split_NBTD[t][keep_BT], y_BTD[keep_BT])


@each(CASES, is_causal=True, streaming=True)
def test_stream_by_single_tokens_and_by_parts(case):
  x_BTD, tokens = normal(B, T, D), case.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = run(case, x_BTD, tokens)
  variables, extend = variables_of(case), extend_of(case)

  def cut(first, last):
    part = jax.tree.map(lambda leaf: leaf[:, first:last], tokens)
    return x_BTD[:, first:last], part

  for sizes in ([1] * T, [2, 2, 2, 1]):
    outputs, state, first = [], start_of(case), 0
    for size in sizes:
      piece_BTD, part = cut(first, first + size)
      z_BTD, state = extend(variables, piece_BTD, state, part)
      outputs.append(z_BTD)
      first += size
    z_BTD = np.concatenate(outputs, axis=1)
    assert_close(z_BTD[keep_BT], y_BTD[keep_BT])


@each(CASES, is_causal=True, streaming=True)
def test_padding_leaves_the_state_as_it_was(case):
  _, state = extend_of(case)(
    variables_of(case), normal(B, T, D), start_of(case), case.tokens(PACKED)
  )
  _, after = extend_of(case)(
    variables_of(case),
    normal(B, T, D, seed=1),
    state,
    case.tokens(np.zeros((B, T), int)),
  )
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_tokens_beyond_the_room_of_a_state_are_not_lost_silently():
  case = Case('full').having(num_heads=H, block=2, causal=True)
  tokens = Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD, _ = extend_of(case)(
    variables_of(case), normal(B, T, D), start_of(case, max_length=5), tokens
  )
  assert np.isnan(y_BTD[0]).all()
  assert np.isfinite(y_BTD[1]).all()


# L7: nothing to attend to.


@each(CASES)
def test_row_without_tokens_gives_zero_and_no_gradient(case):
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([0, 4]), T)

  @jax.jit
  def output_and_gradient(variables, x_BTD):
    def loss(variables, x_BTD):
      y_BTD = module_of(case).apply(variables, x_BTD, tokens=tokens)
      return (y_BTD**2).sum() + y_BTD.sum(), y_BTD

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x_BTD)

  gradients, y_BTD = output_and_gradient(variables_of(case), x_BTD)
  np.testing.assert_array_equal(y_BTD[0], 0.0)
  np.testing.assert_array_equal(gradients[1][0], 0.0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  assert np.abs(gradients[1][1]).max() > 0


@each(PLAIN, cross=True)
def test_empty_context_gives_zero(case):
  y_BTD = cross_of(case)(
    variables_of(case), normal(B, 5, D), normal(B, T, D),
    Tokens.from_lengths(np.array([5, 3]), 5),
    Tokens.from_lengths(np.array([0, 4]), T),
  )  # fmt: skip
  np.testing.assert_array_equal(y_BTD[0], 0.0)
  assert np.abs(y_BTD[1, :3]).min() > 0


# L8, L9: sets, and constant values; in both directions.


@each(PLAIN, cross=True)
def test_order_of_sources_matters_only_where_declared(case):
  order = np.random.default_rng(3).permutation(T)
  context_BSD = normal(B, T, D, seed=1)
  inputs = variables_of(case), normal(B, 5, D)
  tokens = Tokens.from_lengths(np.array([5, 3]), 5)
  sources = Tokens.from_lengths(np.full(B, T), T)
  y_BTD = cross_of(case)(*inputs, context_BSD, tokens, sources)
  z_BTD = cross_of(case)(*inputs, context_BSD[:, order], tokens, sources)
  keep_BT = np.asarray(tokens.keep_BT)
  difference = np.abs(y_BTD - z_BTD)[keep_BT].max()
  assert (difference < TOLERANCE) == case.supports.permutation


@each(
  [
    case
    for case in CASES
    # A further form may have what the mechanism does not declare.
    if (case in PLAIN or case.supports.row_normalised)
    and not case.settings.get('rotary')
  ]
)
def test_constant_values_come_back_only_where_declared(case):
  x_BTD = normal(B, T, D)
  x_BTD[..., 0] = 1.0
  params = dict(variables_of(case).get('params', {}))
  if 'value' not in params:
    assert not case.supports.row_normalised
    return
  # Some tokens may have projections of their own.
  for name in [name for name in params if name.startswith('value')]:
    shape = params[name]['kernel'].shape
    params[name] = {'kernel': np.zeros(shape, 'f4')}
    params[name]['kernel'][0] = 1.0
  tokens = Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD = call_of(case)({'params': params}, x_BTD, tokens)
  expected_D = np.asarray(params['out']['kernel']).sum((0, 1))
  difference = np.abs(y_BTD - expected_D[None, None])
  difference = difference[np.asarray(tokens.keep_BT)].max()
  assert (difference < 1e-5) == case.supports.row_normalised


# Grouped queries: the same as heads of keys and values that are repeated.


@each(PLAIN, grouped=True, grouped_choice=False)
def test_grouped_queries_share_keys_and_values(case):
  causal = {'causal': True} if case.supports.causal else {}
  whole = case.having(num_heads=6, head_width=K, **causal)
  grouped = whole.having(num_kv_heads=2)
  variables = variables_of(grouped)
  params = dict(variables['params'])
  for name in ('key', 'value'):
    kernel_DHK = np.asarray(params[name]['kernel'])
    assert kernel_DHK.shape[1] == 2
    params[name] = {'kernel': np.repeat(kernel_DHK, 3, axis=1)}
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.array([T, 4]), T)
  y_BTD = run(grouped, x_BTD, tokens)
  assert_close(call_of(whole)({'params': params}, x_BTD, tokens), y_BTD)
  if case.supports.streaming:
    state = start_of(grouped)
    z_BTD, _ = extend_of(grouped)(variables, x_BTD, state, tokens)
    keep_BT = np.asarray(tokens.keep_BT)
    assert_close(z_BTD[keep_BT], y_BTD[keep_BT])
