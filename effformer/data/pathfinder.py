"""Pathfinder of the Long Range Arena: our generator, for all resolutions.

Linsley et al., 2018 (arXiv 1805.08315); Tay et al., 2020 (arXiv 2011.04006).
Grey paddles on black: two long dashed contours among short ones, and two white
discs. Label 1: the discs are at the two ends of one long contour. Label 0: at
the origin of one and at the terminal of the other. Written from the papers and
the published parameters, so it makes images of the same kind and not those of
the release.

Image i is a pure function of (setting, seed, i): not of the chunk it is made
in, and as `paddles` says, not of the machine.

The label is a fair coin that the contours do not see: they have the same law
in both classes, and a disc stands at each end about equally often. How far the
discs are apart would still tell, so the contours of an image grow on until a
pair of ends for label 1 and one for label 0 are about equally far apart, and
equally far from the edge (see `pairs`). What such numbers still tell, and what
they do not, is measured by experiments/pathfinder_evidence.py.
"""

from typing import NamedTuple

import numpy as np

from effformer.data import contours, paddles, splitmix
from effformer.data.contours import Contours
from effformer.data.pathfinder_settings import SETTINGS, Setting

__all__ = [
  'SETTINGS',
  'Geometry',
  'Setting',
  'draw',
  'generate',
  'geometry',
  'pairs',
]

# What `pairs` calls alike. The distances from disc to disc differ by no more
# than `_APART` times paddles of a contour by continuity squared, as a share of
# the length of a contour: by that law the distance of the ends varies in a
# chain with small turns. The distances from the edge of the image differ by no
# more than `_EDGE` of its width.
_APART, _OUTWARD, _SIDEWAYS = 0.008, 1 / 16, 1 / 8
# Ends are numbered: origins 0 and 1, terminals 2 and 3 of the two contours.
# [way, label, disc]; the two labels of a way have one end in common.
_WAYS = np.array(
  [
    [[0, 3], [0, 2]],
    [[1, 2], [0, 2]],
    [[0, 3], [1, 3]],
    [[1, 2], [1, 3]],
  ]
)
_DRAWN = 64  # images that are drawn at once; no effect on the result


class Geometry(NamedTuple):
  """What there is to see in N images.

  Attributes:
    contours: the paddles.
    label_N: uint8, 1 where the discs are at the ends of one contour.
    disc_x_N2, disc_y_N2: float64, middles of the discs; first that at an
      origin, then that at a terminal.
  """

  contours: Contours
  label_N: np.ndarray
  disc_x_N2: np.ndarray
  disc_y_N2: np.ndarray


def pairs(setting: Setting, grown: Contours):
  """The ends to be marked by discs, for either label.

  For label 1 that is the origin and the terminal of one contour (two choices),
  for label 0 the origin of one and the terminal of the other (two). Of the four
  ways to choose for both that one is taken in which the labels are most alike:
  in how far the discs are from each other, and from the edge of the image.

  Args:
    setting: of the images.
    grown: their contours, of which the long ones must stand.

  Returns:
    x and y of the discs, float64 [N, label, disc], origins first, and whether
    the labels are alike enough, bool [N].
  """
  length, half = setting.contour_length, setting.paddle_length / 2
  paddle = [0, length, length - 1, 2 * length - 1]
  ux, uy = paddles.unit(grown.direction_NP[:, paddle])
  along = np.array([-half, -half, half, half])
  x_N4 = grown.x_NP[:, paddle] + along * ux
  y_N4 = grown.y_NP[:, paddle] + along * uy
  middle = setting.resolution / 2
  fold_x_N4, fold_y_N4 = np.abs(x_N4 - middle), np.abs(y_N4 - middle)

  x_N422, y_N422 = x_N4[:, _WAYS], y_N4[:, _WAYS]
  dx, dy = x_N422[..., 0] - x_N422[..., 1], y_N422[..., 0] - y_N422[..., 1]
  apart_N42 = np.sqrt(dx * dx + dy * dy)
  outward_N42 = np.maximum(fold_x_N4, fold_y_N4)[:, _WAYS].sum(axis=-1)
  sideways_N42 = np.minimum(fold_x_N4, fold_y_N4)[:, _WAYS].sum(axis=-1)
  long_N = length * setting.paddle_length + (length - 1) * grown.margin_N
  allowed_N1 = (_APART * length / setting.continuity**2 * long_N)[:, None]
  unlike_N4 = np.abs(apart_N42[..., 0] - apart_N42[..., 1]) / allowed_N1
  for place_N42, share in ((outward_N42, _OUTWARD), (sideways_N42, _SIDEWAYS)):
    differ_N4 = np.abs(place_N42[..., 0] - place_N42[..., 1])
    unlike_N4 = np.maximum(unlike_N4, differ_N4 / (share * setting.resolution))
  way_N = unlike_N4.argmin(axis=-1)
  rows = np.arange(len(way_N))
  return x_N422[rows, way_N], y_N422[rows, way_N], unlike_N4[rows, way_N] <= 1


def geometry(setting: Setting, seed: int, first: int, count: int) -> Geometry:
  """What `generate` draws; the same arguments and errors."""
  if first < 0 or count < 0:
    raise ValueError(
      f'first and count must not be negative: first {first}, count {count}'
    )
  key_N = splitmix.keys(seed, np.arange(first, first + count))
  grown = contours.grow(setting, key_N, lambda grown: pairs(setting, grown)[-1])
  # The low bits of word 0 have chosen the margin.
  label_N = splitmix.below(splitmix.words(key_N, 0), 20, 2)
  x_N22, y_N22, _ = pairs(setting, grown)
  rows = np.arange(count)
  return Geometry(
    grown, label_N.astype(np.uint8), x_N22[rows, label_N], y_N22[rows, label_N]
  )


def generate(
  setting: Setting, seed: int, first: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Images first .. first + count - 1 of a data set, and their labels.

  Chunks of a thousand or more are the fastest: the last images of a chunk
  leave NumPy little to do at once.

  Args:
    setting: one of `SETTINGS`, or another.
    seed: of the data set, any integer modulo 2^64.
    first, count: which images; from 0.

  Returns:
    images_NHW and labels_N, both uint8.

  Raises:
    ValueError: `first` or `count` is negative, or there is too little room for
      the paddles.
  """
  scene = geometry(setting, seed, first, count)
  return draw(setting, scene), scene.label_N


def draw(setting: Setting, scene: Geometry) -> np.ndarray:
  """The images of a scene, uint8 [N, H, W]."""
  size, count = setting.resolution, len(scene.label_N)
  images_NHW = np.empty((count, size, size), np.uint8)
  for start in range(0, count, _DRAWN):
    part = slice(start, start + _DRAWN)
    images_NHW[part] = paddles.draw(
      size,
      scene.contours.x_NP[part],
      scene.contours.y_NP[part],
      scene.contours.direction_NP[part],
      length=setting.paddle_length,
      thickness=setting.paddle_thickness,
      contrast=setting.contrast,
      disc_x_NM=scene.disc_x_N2[part],
      disc_y_NM=scene.disc_y_N2[part],
      radius=setting.marker_radius,
    )
  return images_NHW
