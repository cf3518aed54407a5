"""Paddles (short bars) and discs in the plane: how far apart, how drawn.

A paddle is a segment of given length and thickness with square ends, known by
its middle and its direction. Directions are whole numbers of 1/4096 of a turn:
with their cosines from a table, all else is addition, multiplication, division
and square root, which IEEE 754 rounds the same everywhere. So neither the
machine nor the place of an image in a batch changes a byte.

x is to the right, y downwards, in pixels; pixel (row i, column j) has its
middle at x = j + 1/2, y = i + 1/2.

    N  images
    P  paddles (or discs) of an image
    H, W  rows and columns
"""

import numpy as np

TURN = 4096  # directions of a full turn

# Rounded far above the last bit, in which mathematical libraries differ.
_ANGLE = 2 * np.pi / TURN * np.arange(TURN)
_COS = np.round(np.cos(_ANGLE) * 2.0**40) * 2.0**-40
_SIN = np.round(np.sin(_ANGLE) * 2.0**40) * 2.0**-40


def unit(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """x and y of the unit vectors of directions (integers, any shape)."""
  direction = direction & (TURN - 1)
  return _COS[direction], _SIN[direction]


def distance(dx, dy, direction, other, length: float) -> np.ndarray:
  """Shortest distance of segments of equal length; 0 where they cross.

  For the points m + s u and m' + t v with |s|, |t| at most length / 2: the
  best s for lines, cut to its range, then the best t for it, then the best s
  for that (Ericson, 2005, section 5.1.9).

  Args:
    dx, dy: float64, m' - m, from the middle of one to that of the other.
    direction, other: integers, directions of the two.
    length: of all the segments.

  Returns:
    float64, of the same shape.
  """
  (ux, uy), (vx, vy) = unit(direction), unit(other)
  half = length / 2
  cosine = ux * vx + uy * vy
  along, across = dx * ux + dy * uy, dx * vx + dy * vy
  # Parallel lines are equally far everywhere: any s will do.
  square = np.maximum(1 - cosine * cosine, 1e-9)
  s = np.clip((along - across * cosine) / square, -half, half)
  t = np.clip(s * cosine - across, -half, half)
  s = np.clip(t * cosine + along, -half, half)
  x, y = dx + t * vx - s * ux, dy + t * vy - s * uy
  return np.sqrt(x * x + y * y)


def _overlap(offset: np.ndarray, half: float) -> np.ndarray:
  """Length that [offset - 1/2, offset + 1/2] and [-half, half] share."""
  return np.clip(half + 0.5 - np.abs(offset), 0.0, min(1.0, 2 * half))


def _patches(x_NP, y_NP, reach: int, size: int):
  """Pixels around points, and how far their middles are from the point.

  Returns:
    Places in a flat stack of images of `size` + 2 `reach` rows and columns,
    with their x and y minus those of the point; all [N, P, (2 reach + 1)^2].
  """
  side = size + 2 * reach
  step = np.arange(-reach, reach + 1)
  column, row = np.floor(x_NP)[..., None, None], np.floor(y_NP)[..., None, None]
  dx = column + 0.5 + step - x_NP[..., None, None]
  dy = row + 0.5 + step[:, None] - y_NP[..., None, None]
  image = np.arange(len(x_NP))[:, None, None, None]
  place = (image * side + row.astype(np.int64) + reach + step[:, None]) * side
  place = place + column.astype(np.int64) + reach + step
  dx, dy = np.broadcast_arrays(dx, dy)
  flat = (*x_NP.shape, (2 * reach + 1) ** 2)
  return place.reshape(flat), dx.reshape(flat), dy.reshape(flat)


def draw(
  size: int,
  x_NP: np.ndarray,
  y_NP: np.ndarray,
  direction_NP: np.ndarray,
  *,
  length: float,
  thickness: float,
  contrast: float,
  disc_x_NM: np.ndarray,
  disc_y_NM: np.ndarray,
  radius: float,
) -> np.ndarray:
  """Images of grey paddles and white discs on black, with soft edges.

  A pixel has the brightest of what covers it. Of a paddle that is contrast
  times its share of the pixel, as if the pixel were turned to lie along the
  paddle (so the sum over all pixels is right), and at most white. Of a disc it
  is radius + 1/2 - distance, cut to 0 .. 1.

  Args:
    size: H and W.
    x_NP, y_NP: float64, middles of the paddles.
    direction_NP: integers, directions of the paddles.
    length, thickness: of a paddle.
    contrast: of white; above 1 it makes up for paddles thinner than a pixel.
    disc_x_NM, disc_y_NM: float64, middles of the discs.
    radius: of a disc.

  Returns:
    uint8 [N, H, W].
  """
  reach = int(np.ceil(max((length + thickness) / 2, radius))) + 1
  side = size + 2 * reach
  canvas = np.zeros(len(x_NP) * side * side, np.uint8)

  place, dx, dy = _patches(x_NP, y_NP, reach, size)
  ux, uy = unit(direction_NP[..., None])
  cover = _overlap(dx * ux + dy * uy, length / 2)
  cover *= _overlap(dy * ux - dx * uy, thickness / 2)
  _lighten(canvas, place, contrast * cover)

  place, dx, dy = _patches(disc_x_NM, disc_y_NM, reach, size)
  _lighten(canvas, place, radius + 0.5 - np.sqrt(dx * dx + dy * dy))

  images_NHW = canvas.reshape(-1, side, side)
  return images_NHW[:, reach : reach + size, reach : reach + size].copy()


def _lighten(canvas, place, light) -> None:
  is_lit = light > 0
  grey = np.rint(255 * np.minimum(light[is_lit], 1)).astype(np.uint8)
  np.maximum.at(canvas, place[is_lit], grey)
