"""What is declared works; what is not, or does not fit, is refused."""

import functools
import inspect

import jax
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  PACKED,
  PLAIN,
  B,
  Case,
  D,
  H,
  T,
  cross_of,
  each,
  normal,
  run,
  start_of,
  variables_of,
)

# What is declared works, what is not is refused.

ASKED = {
  'causal': {'causal': True},
  'rotary': {'rotary': True},
  'relative_bias': {'relative_bias': 't5'},
  'grouped': {'num_kv_heads': 1},
}


def ask(case, capability):
  """Variables; a mechanism without such a setting cannot be asked at all."""
  settings = ASKED[capability]
  if not set(settings) <= set(attention.settings(case.name)):
    raise NotImplementedError(f'{case.name}: {capability}')
  return variables_of(case.having(**settings))


def use(case, capability):
  """Asks for a capability."""
  tokens = Tokens.from_lengths(np.array([T, 4]), T)
  x_BTD = normal(B, T, D)
  if capability in ASKED:
    return ask(case, capability)
  if capability == 'bidirectional':
    return run(case, x_BTD, tokens)
  if capability == 'cross':
    context_BSD, own = normal(B, 5, D), Tokens.from_lengths(np.array([5, 3]), 5)
    inputs = variables_of(case), x_BTD, context_BSD, tokens, own
    return cross_of(case)(*inputs)
  if capability == 'packing':
    return run(case, x_BTD, Tokens.from_segments(np.array(PACKED)))
  assert capability == 'streaming'
  causal = case.having(causal=True) if case.supports.causal else case
  return start_of(causal)


@pytest.mark.parametrize(
  'capability',
  ['bidirectional', 'cross', 'packing', 'streaming', *ASKED],
)
@each(PLAIN, quick=8)
def test_capability_is_there_or_refused(case, capability):
  if getattr(case.supports, capability):
    jax.block_until_ready(use(case, capability))
    return
  with pytest.raises(NotImplementedError) as error:
    use(case, capability)
  assert case.name in str(error.value)
  assert capability in str(error.value)


@each(PLAIN, streaming=True)
def test_streaming_needs_causal(case):
  with pytest.raises(NotImplementedError, match=r'streaming when causal=False'):
    start_of(case)


@each(PLAIN, cross=True, causal=True)
def test_causal_with_a_context_is_refused(case):
  with pytest.raises(NotImplementedError, match=f'{case.name}.*cross'):
    use(case.having(causal=True), 'cross')


def test_linear_refuses_packing_with_a_context():
  case = Case('linear').having(num_heads=H)
  packed = Tokens.from_segments(np.array(PACKED))
  with pytest.raises(NotImplementedError, match=r'linear.*packing'):
    cross_of(case)(
      variables_of(case), normal(B, T, D), normal(B, T, D), packed, packed
    )


@each(PLAIN, needs_length=True)
def test_longer_than_the_parameters_is_refused(case):
  with pytest.raises(ValueError, match=r'10 source tokens.*at most 9'):
    run(case, normal(B, 10, D), Tokens.from_lengths(np.full(B, 10), 10))


@pytest.mark.parametrize('name', attention.TABLE)
def test_settings_are_listed_and_documented(name):
  mechanism = attention.TABLE[name]
  assert mechanism.mechanism == name
  bases = mechanism.__mro__[: mechanism.__mro__.index(attention.Mixer)]
  text = ''.join(inspect.getdoc(base) for base in bases)
  assert all(f'{setting}:' in text for setting in attention.settings(name))


@pytest.mark.parametrize('name', attention.TABLE)
def test_unknown_setting_is_refused_with_the_known_ones(name):
  some = next(iter(attention.settings(name)), 'it has: $')
  with pytest.raises(ValueError, match=f'no setting wimdow.*{some}'):
    attention.build(name, wimdow=3)


def test_unknown_mechanism_is_refused_with_the_known_ones():
  for ask in (attention.build, attention.settings):
    with pytest.raises(ValueError, match=r"'performr'.*full.*linear"):
      ask('performr')


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    ('full', {'form': 'sparse'}, 'sparse'),
    ('full', {'block': -1}, 'block.*-1'),
    ('full', {'num_heads': 0}, 'num_heads.*0'),
    ('full', {'dropout': 1.0}, r'dropout.*1\.0'),
    ('full', {'rotary': True, 'head_width': 5}, 'even.*5'),
    ('local', {'window': 0}, 'window.*0'),
    ('linear', {'chunk': 0}, 'chunk.*0'),
    ('linformer', {'sharing': 'layer'}, 'layer'),
    ('linformer', {'rank': 0}, 'rank.*0'),
  ],
)
def test_wrong_value_is_refused(name, settings, message):
  with pytest.raises(ValueError, match=message):
    attention.build(name, **settings)


def test_shapes_that_do_not_fit_are_refused_with_both():
  module = attention.build('full', num_heads=5)
  tokens = Tokens.from_lengths(np.full(B, T), T)
  init, x_BTD = (
    functools.partial(module.init, jax.random.key(0)),
    normal(B, T, D),
  )
  with pytest.raises(ValueError, match=r'width 12.*num_heads 5'):
    init(x_BTD, tokens=tokens)
  with pytest.raises(ValueError, match=r'3 dimensions.*got 2'):
    init(x_BTD[0], tokens=tokens)
  with pytest.raises(ValueError, match=r'\(2, 7\).*\(2, 6, 12\)'):
    init(x_BTD[:, :6], tokens=tokens)
  with pytest.raises(ValueError, match=r'width 12 is not 11'):
    init(x_BTD, x_BTD[..., :11], tokens=tokens, context_tokens=tokens)
  with pytest.raises(ValueError, match=r'context_tokens'):
    init(x_BTD, x_BTD, tokens=tokens)
  with pytest.raises(ValueError, match=r'head_width'):
    attention.build('full', causal=True).init_state(B, T)
