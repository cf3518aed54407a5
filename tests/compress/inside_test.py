"""Calls within blocks: all of them, in order, and no others."""

import itertools

import jax
import numpy as np
import pytest

from effformer.compress import inside
from effformer.errors import ConfigError
from tests.compress.networks import (
  BATCH,
  KEEP_BT,
  layer,
  network,
)

# Many models are compiled.
pytestmark = pytest.mark.slow


def calls_of(layers, **fields):
  module, params = network(layers, head_width=6, **fields)
  calls = []
  output = inside.apply(module, params, calls.append, *BATCH)
  np.testing.assert_allclose(
    output, module.apply({'params': params}, *BATCH), atol=1e-6
  )
  return calls


@pytest.mark.parametrize('remat', [False, True])
def test_calls_of_every_block_and_nothing_beside(remat):
  calls = calls_of([layer(), layer('local', window=2)], remat=remat)
  # Norms and dense layers of the head come behind the last block.
  assert calls[-1].module.path == ()
  assert calls[-1].layer == 1
  dense = [
    (call.layer, '/'.join(call.module.path))
    for call in calls
    if 'Dense' in type(call.module).__name__ and call.method == '__call__'
  ]
  parts = (
    'mixer/value', 'mixer/key', 'mixer/query', 'mixer/out', 'mlp/in', 'mlp/out'
  )  # fmt: skip
  assert dense == [(index, part) for index in (0, 1) for part in parts]
  for call in calls:
    np.testing.assert_array_equal(call.tokens.keep_BT, KEEP_BT)


def test_what_goes_in_and_what_comes_out():
  calls = calls_of([layer()] * 3)
  blocks = [
    call for call in calls if not call.module.path and call.method == '__call__'
  ]
  assert [call.layer for call in blocks] == [0, 1, 2]
  for before, after in itertools.pairwise(blocks):
    np.testing.assert_array_equal(before.output[0], after.arguments[0])
  last = [
    call
    for call in calls
    if call.layer == 2 and call.module.path == ('mlp', 'out')
  ]
  kernel, bias = (
    last[0].module.get_variable('params', name) for name in ('kernel', 'bias')
  )
  np.testing.assert_allclose(
    last[0].arguments[0] @ kernel + bias[None, None],
    last[0].output,
    atol=1e-5,
  )


def test_what_is_seen_is_part_of_the_program():
  """It can be returned, and has a gradient."""
  module, params = network([layer()] * 3)

  @jax.jit
  def gradient(params):
    def value(params):
      seen = []

      def see(call):
        if call.module.path == ('mixer',) and call.method == '__call__':
          seen.append(call.output)

      inside.apply(module, params, see, *BATCH)
      return sum((x**2).sum() for x in seen)

    return jax.grad(value)(params)

  found = gradient(params)['encoder']
  assert np.abs(found['layer_2']['mixer']['out']['kernel']).max() > 0.01
  assert np.abs(found['layer_1']['mlp']['in']['kernel']).max() > 0.01
  # Behind the last mixer nothing is looked at.
  assert np.abs(found['layer_2']['mlp']['in']['kernel']).max() == 0


def test_encoders_that_cannot_be_looked_at():
  for name, value in (('reversible', True), ('extra_tokens', 2)):
    with pytest.raises(ConfigError, match=f'{name}={value}'):
      calls_of([layer()], **{name: value})
