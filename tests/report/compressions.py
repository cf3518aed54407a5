"""What --mode=compress writes, without a model."""

import copy

STEPS = [
  {'do': 'drop_layers', 'keep': [0, 3]},
  {'do': 'train', 'steps': 70, 'lesson': {'hard': 0.5, 'states': 1.0}},
  {'do': 'round', 'bits': 4, 'method': 'gptq'},
]
COMPONENTS = ('embedding', 'attention', 'feed_forward', 'norms', 'head')
FACTS = {
  'task': 'text',
  'dataset': 'imdb',
  'origin': 'IMDb, prepared',
  'stand_in': False,
  'recipe': 'tiny',
  'steps': STEPS,
  'floor_score': 'accuracy',
  'seed': 3,
  'overridden': '',
  'parent_sha256': '0123456789abcdef' + 48 * '9',
  'examples': 1234,
  'floors': {'majority': 0.5, 'bag_of_bytes': 0.6789},
  'plan': [
    {'part': 'layer 0 mixer', 'shape': 'full, 3 heads', 'bits': '4 a tile'},
    {'part': 'embedding', 'shape': '31 x 12', 'bits': '8 a channel'},
  ],
  'searches': [],
  'device': 'cpu x 1',
  'machine': {'threads': 3, 'processor': 'some chip', 'flags': ''},
  'versions': {'jax': '9.8.7'},
  'commit': 'fedcba9876543210',
}


SEARCH = {
  'step': 'choose_bits',
  'why': 'the best of the 2 plans measured reaches the floor',
  'is_reached': True,
  'best': {'plan': {'a': '8', 'b': '4'}, 'cost': 7_650_000, 'score': -0.0123},
  'frontier': [
    {
      'plan': {'a': '4', 'b': '4'}, 'cost': 5_430_000, 'predicted': 0.0456,
      'score': -0.0567,
    },
    {
      'plan': {'a': '8', 'b': '4'}, 'cost': 7_650_000, 'predicted': 0.0112,
      'score': -0.0123,
    },
  ],
  'options': {
    'a': [
      {'name': '8', 'cost': 4e6, 'loss': 0.00123},
      {'name': '4', 'cost': 2e6, 'loss': 0.0345},
    ],
    'b': [
      {'name': '8', 'cost': 7e6, 'loss': 0.00067},
      {'name': '4', 'cost': 3.5e6, 'loss': 0.00989},
    ],
  },
}  # fmt: skip


def quality_of_classes(score, **facts):
  return {
    'name': 'accuracy', 'score': score, 'low': score - 0.02,
    'high': score + 0.03, 'change': -0.0123, 'change_low': -0.0345,
    'change_high': 0.0067, 'kl': 0.0567, 'agreement': 0.9124, 'to_right': 1111,
    'to_wrong': 2222, 'p_value': 0.0441, 'before': 0.8, 'after': score,
    'calibration_before': 0.111, 'calibration_after': 0.0929, **facts,
  }  # fmt: skip


def quality_of_vectors(score):
  return {
    'name': 'spearman', 'score': score, 'low': score - 0.02,
    'high': score + 0.03, 'change': -0.0123, 'change_low': -0.0345,
    'change_high': 0.0067, 'cosine_mean': 0.9912, 'cosine_min': 0.8134,
    'cosine_p01': 0.8456, 'nearest': 0.9378, 'nearest_10': 0.9191,
  }  # fmt: skip


def model(name, size, score, quality=quality_of_classes):
  return {
    'model': name,
    'parameters': 7_654_321,
    'nonzero': 7_054_321,
    'disk_bytes': size,
    'memory_bytes': 5 * size // 4,
    'components': {
      part: {
        'parameters': 10,
        'packed_bytes': (number + 1) * 110_000,
        'memory_bytes': 20,
      }
      for number, part in enumerate(COMPONENTS)
    },
    'quality': quality(score),
  }


def timed(name, p50, ratio, batch=1, length=32):
  return {
    'model': name, 'batch': batch, 'length': length, 'p50_ms': p50,
    'p90_ms': 1.25 * p50, 'ratio': ratio, 'ratio_p25': ratio - 0.11,
    'ratio_p75': ratio + 0.12, 'rows_per_second': 1000 * batch / p50,
    'multiply_adds': 4_300_000, 'xla_flops': 9_000_000, 'temporary_bytes':
    3 << 20, 'argument_bytes': 5 << 19, 'counts_agree': True,
  }  # fmt: skip


def compression(quality=quality_of_classes, **facts):
  """The content of a compression.json; `facts` are other values of keys."""
  found = {
    **copy.deepcopy(FACTS),
    'final': '2: round',
    'models': [
      model('parent', 8_000_000, 0.81, quality),
      model('0: drop_layers', 4_100_000, 0.62, quality),
      model('1: train', 4_200_000, 0.79, quality),
      model('2: round', 620_000, 0.77, quality),
      model('control: no_teacher', 610_000, 0.83, quality),
    ],
    'speed': [
      timed('parent', 12.34, 1.0),
      timed('compressed', 6.17, 2.0),
      timed('compressed, as numbers', 5.55, 2.22),
      timed('control', 12.5, 0.98),
    ],
  }
  return {**found, **facts}
