"""Generated pictures, for machines where CIFAR-10 cannot be had.

A stand-in that trains and tests the whole path; scores on it say nothing about
CIFAR-10. Class c of 10 is one of 5 directions of stripes of one of 2 widths,

    grey = 128 + 60 cos(2 pi (x cos a + y sin a) / w + phase) + noise,

with a = pi (c mod 5) / 5, w = 4 or 7, a random phase, a random contrast and
noise of 40: neighbouring pixels tell the class, the histogram of grey values
does not.

Picture i is a pure function of i: its numbers are raw Philox words, which NumPy
keeps the same between versions.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from effformer.data.dataset import Example, numbered

SIDE, NUM_CLASSES = 32, 10
SIZES = {'train': 5_000, 'validation': 1_000, 'test': 2_000}

_KEY = 0xD1_5C0
_WAVELENGTHS = (4.0, 7.0)
_NOISE = 40.0


def picture(number: int) -> Example:
  """Picture `number`, of class `number` modulo 10."""
  label = number % NUM_CLASSES
  words = np.random.Philox(key=np.array([_KEY, number], np.uint64)).random_raw(
    SIDE * SIDE + 2
  )
  uniform = (words >> np.uint64(11)) * 2.0**-53
  phase, contrast = uniform[0], 0.5 + 0.5 * uniform[1]
  # Uniform, with the standard deviation 1.
  noise_HW = (uniform[2:].reshape(SIDE, SIDE) - 0.5) * np.sqrt(12.0)
  angle = np.pi * (label % 5) / 5
  y_HW, x_HW = np.mgrid[:SIDE, :SIDE]
  along_HW = x_HW * np.cos(angle) + y_HW * np.sin(angle)
  wave_HW = np.cos(2 * np.pi * (along_HW / _WAVELENGTHS[label // 5] + phase))
  grey_HW = 128 + 60 * contrast * wave_HW + _NOISE * noise_HW
  return {
    'text': np.clip(np.rint(grey_HW), 0, 255).astype(np.uint8).tobytes(),
    'label': label,
    'id': f'stand_in/{number}',
  }


def splits() -> Mapping[str, Iterator[Example]]:
  """The splits, one after the other by picture number."""
  return numbered(picture, SIZES)
