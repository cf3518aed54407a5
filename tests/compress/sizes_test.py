"""Sizes: what is counted, and where."""

import numpy as np
import pytest

from effformer.compress import sizes, tensors
from effformer.compress.grid import Grid


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)

  def array(*shape):
    return rng.normal(size=shape).astype('f4')

  return {
    'embedding': {'embedding': array(11, 6)},
    'positions': array(5, 6),
    'encoder': {
      'layer_0': {
        'mixer': {'query': {'kernel': array(6, 2, 3)}},
        'conv': {'filter': array(3, 6)},
        'mlp': {'in': {'kernel': array(6, 7), 'bias': np.zeros(7, 'f4')}},
        'norm_mlp': {'scale': array(6)},
      },
      'norm_out': {'bias': array(6)},
    },
    'norm_in': {'bias': array(6)},
    'head_out': {'kernel': array(6, 2)},
  }


COUNTS = {
  'embedding': 66 + 30,
  'attention': 36 + 18,
  'feed_forward': 42 + 7,
  'norms': 18,
  'head': 12,
}


def test_numbers_are_counted_by_component(params):
  found = sizes.sizes(params, 1234)
  assert found['disk_bytes'] == 1234
  assert found['parameters'] == sum(COUNTS.values())
  # All but the bias of zeros.
  assert found['nonzero'] == sum(COUNTS.values()) - 7
  assert found['memory_bytes'] == 4 * sum(COUNTS.values())
  for name, count in COUNTS.items():
    assert found['components'][name] == {
      'parameters': count, 'packed_bytes': 4 * count, 'memory_bytes': 4 * count,
    }  # fmt: skip


def test_codes_take_their_bits_on_disk_and_a_byte_in_memory(params):
  path = 'encoder/layer_0/mlp/in/kernel'
  small = tensors.quantise(params, {path: Grid(4)})
  own = sizes.sizes(small, 0)['components']['feed_forward']
  assert own['parameters'] == 49
  # 42 codes of half a byte, 7 scales, 7 biases.
  assert own['packed_bytes'] == 21 + 28 + 28
  # 42 codes, 7 scales and 7 zero points, 7 biases.
  assert own['memory_bytes'] == 42 + 28 + 28 + 28
  pruned = np.array(params['encoder']['layer_0']['mlp']['in']['kernel'])
  pruned[:3] = 0
  params['encoder']['layer_0']['mlp']['in']['kernel'] = pruned
  small = tensors.quantise(params, {path: Grid(8)})
  assert sizes.sizes(small, 0)['nonzero'] <= sum(COUNTS.values()) - 7 - 21
