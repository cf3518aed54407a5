"""Contours of paddles that keep their distance, grown paddle by paddle.

Two long contours, the second beginning at a set distance from the first, then
short ones that distract. Each next paddle begins a gap after the last one and
turns by a bounded random angle; the gap has half the turn. A step draws a few
candidates for the next paddle and takes the first that lies inside and comes
near no other. Where there is none twice in a row, the contour gives back a
random number of its paddles; after many such setbacks the image begins anew.

Image i reads the stream of (seed, i), as many words as it happens to need, so
it depends on nothing else. NumPy takes one step of many images at once, each
standing where its own words have led it. A hard image of 32 x 32 takes
hundreds to thousands of steps for its 48 paddles.

    N  images
    S  images that grow at the moment
    K  candidates for the next paddle
    P  paddles of an image: of the first long contour, the second, the others
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from effformer.data import paddles, splitmix
from effformer.data.pathfinder_settings import Setting

_SLOTS = 256  # images that grow at once; no effect on the result
_CANDIDATES = 4
_MISSES = 2  # steps in vain before paddles are given back
_SETBACKS = 150  # before an image begins anew
_MAX_STEPS = 100_000  # an image takes thousands


class Layout(NamedTuple):
  """What is known of the paddles before they are grown.

  Attributes:
    first_P: int64, number of the first paddle of its contour.
    width_P: float64, how much room it takes to each side: half its thickness,
      or the radius of a disc where one may stand, at the ends of long contours.
  """

  first_P: np.ndarray
  width_P: np.ndarray


class Contours(NamedTuple):
  """The contours of N images.

  Attributes:
    x_NP, y_NP: float64, middles of the paddles.
    direction_NP: int64, their directions (see `paddles`).
    margin_N: float64, the paddle margin of each image.
  """

  x_NP: np.ndarray
  y_NP: np.ndarray
  direction_NP: np.ndarray
  margin_N: np.ndarray


def layout(setting: Setting) -> Layout:
  """The `Layout` of the images of `setting`."""
  length = setting.contour_length
  lengths = [length] * 2
  lengths += [setting.distractor_length] * setting.num_distractors
  first_P = np.repeat(np.cumsum(lengths) - lengths, lengths)
  width_P = np.full(len(first_P), setting.paddle_thickness / 2)
  width_P[[0, length - 1, length, 2 * length - 1]] = setting.marker_radius
  return Layout(first_P, width_P)


class _Growth:
  """Images while they grow; `step` takes some of them one step further."""

  def __init__(self, setting: Setting, key_N: np.ndarray, accepts):
    self.setting, self.layout = setting, layout(setting)
    self.key_N, self.accepts = key_N, accepts
    count = len(key_N)
    shape = count, len(self.layout.first_P)
    margins = np.array(setting.paddle_margins, np.float64)
    drawn_N = splitmix.below(splitmix.words(key_N, 0), 0, len(margins))
    self.contours = Contours(
      np.zeros(shape),
      np.zeros(shape),
      np.zeros(shape, np.int64),
      margins[drawn_N],
    )
    self.placed_N = np.zeros(count, np.int64)
    self.steps_N = np.zeros(count, np.int64)
    self.misses_N = np.zeros(count, np.int64)
    self.setbacks_N = np.zeros(count, np.int64)

  def step(self, image_S: np.ndarray) -> np.ndarray:
    """One step of these images; which of them are done, bool [S]."""
    number_S = self.placed_N[image_S]
    count_SK = self.steps_N[image_S, None] * _CANDIDATES
    count_SK = count_SK + np.arange(1, _CANDIDATES + 1)
    word_SK = splitmix.words(self.key_N[image_S, None], count_SK)
    part = Contours(*(a[image_S] for a in self.contours))
    x_SK, y_SK, direction_SK, fits_SK = self._candidates(
      part, number_S, word_SK
    )
    self._drop_near(part, number_S, x_SK, y_SK, direction_SK, fits_SK)

    found_S, best_S = fits_SK.any(axis=-1), fits_SK.argmax(axis=-1)
    chosen = np.flatnonzero(found_S), best_S[found_S]
    at = image_S[found_S], number_S[found_S]
    self.contours.x_NP[at] = x_SK[chosen]
    self.contours.y_NP[at] = y_SK[chosen]
    self.contours.direction_NP[at] = direction_SK[chosen]
    self.placed_N[image_S] += found_S
    self.steps_N[image_S] += 1
    self.misses_N[image_S] = np.where(found_S, 0, self.misses_N[image_S] + 1)

    is_stuck_S = self.misses_N[image_S] == _MISSES
    whole = np.flatnonzero(
      found_S & (number_S == 2 * self.setting.contour_length - 1)
    )
    part = Contours(*(a[image_S[whole]] for a in self.contours))
    is_stuck_S[whole] = ~self.accepts(part)
    first_S = self.layout.first_P[number_S]
    self._set_back(
      image_S[is_stuck_S], first_S[is_stuck_S], word_SK[is_stuck_S, 0]
    )
    return self.placed_N[image_S] == len(self.layout.first_P)

  def _candidates(self, part: Contours, number_S, word_SK):
    """Middles and directions of candidates, and which lie inside; all [S, K].

    Args:
      part: the contours of these images.
      number_S: which paddle is to come.
      word_SK: a random word for each candidate.
    """
    setting, below = self.setting, splitmix.below
    half = setting.paddle_length / 2
    rows = np.arange(len(number_S))
    is_first_S1 = (self.layout.first_P[number_S] == number_S)[:, None]
    room_S1 = setting.padding + self.layout.width_P[number_S][:, None]

    # A new contour: anywhere, or as far from the first as the setting says.
    inner_S1 = setting.resolution - 2 * room_S1
    x_SK = room_S1 + below(word_SK, 0, 1 << 20) * 2.0**-20 * inner_S1
    y_SK = room_S1 + below(word_SK, 20, 1 << 20) * 2.0**-20 * inner_S1
    ux, uy = paddles.unit(part.direction_NP[:, :1])
    vx, vy = paddles.unit(below(word_SK, 0, paddles.TURN))
    is_second_S1 = (number_S == setting.contour_length)[:, None]
    far = setting.seed_distance
    x_SK = np.where(is_second_S1, part.x_NP[:, :1] - half * ux + far * vx, x_SK)
    y_SK = np.where(is_second_S1, part.y_NP[:, :1] - half * uy + far * vy, y_SK)

    # The next paddle of a contour.
    before_S1 = part.direction_NP[rows, number_S - 1][:, None]
    bend = round(paddles.TURN / 8 / setting.continuity)
    turn_SK = below(word_SK, 40, 2 * bend + 1) - bend
    ux, uy = paddles.unit(before_S1)
    vx, vy = paddles.unit(before_S1 + (turn_SK >> 1))
    gap_S1 = part.margin_N[:, None]
    next_x_SK = part.x_NP[rows, number_S - 1][:, None] + half * ux + gap_S1 * vx
    next_y_SK = part.y_NP[rows, number_S - 1][:, None] + half * uy + gap_S1 * vy

    x_SK = np.where(is_first_S1, x_SK, next_x_SK)
    y_SK = np.where(is_first_S1, y_SK, next_y_SK)
    any_SK = below(word_SK, 40, paddles.TURN)
    direction_SK = np.where(is_first_S1, any_SK, before_S1 + turn_SK)
    ux, uy = paddles.unit(direction_SK)
    x_SK, y_SK = x_SK + half * ux, y_SK + half * uy
    dx, dy = half * np.abs(ux), half * np.abs(uy)
    fits_SK = np.minimum(x_SK - dx, y_SK - dy) >= room_S1
    fits_SK &= np.maximum(x_SK + dx, y_SK + dy) <= setting.resolution - room_S1
    return x_SK, y_SK, direction_SK & (paddles.TURN - 1), fits_SK

  def _drop_near(self, part, number_S, x_SK, y_SK, direction_SK, fits_SK):
    """Takes candidates out of `fits_SK` that come too near to a paddle."""
    setting, width_P = self.setting, self.layout.width_P
    # Farther than this no two can be too near; most pairs of paddles are. The
    # search for the others has no need of many digits.
    reach = setting.paddle_length + max(setting.paddle_margins)
    reach = np.float32(reach + 2 * width_P.max() + 0.01)
    # The last paddle of the same contour is a gap away by construction.
    is_next_S = self.layout.first_P[number_S] < number_S
    is_there_SP = np.arange(len(width_P)) < (number_S - is_next_S)[:, None]
    away = np.float32(1e9)
    there_x_SP = np.where(is_there_SP, part.x_NP.astype(np.float32), away)
    there_y_SP = part.y_NP.astype(np.float32)
    here_x_SK = np.where(fits_SK, x_SK.astype(np.float32), -away)
    here_y_SK = y_SK.astype(np.float32)
    square_SKP = there_x_SP[:, None] - here_x_SK[:, :, None]
    square_SKP *= square_SKP
    dy_SKP = there_y_SP[:, None] - here_y_SK[:, :, None]
    dy_SKP *= dy_SKP
    square_SKP += dy_SKP
    # In one dimension NumPy finds them several times faster than in three.
    pair, other = np.divmod(
      np.flatnonzero(square_SKP.ravel() < reach * reach), len(width_P)
    )
    slot, candidate = np.divmod(pair, _CANDIDATES)
    distance = paddles.distance(
      part.x_NP[slot, other] - x_SK[slot, candidate],
      part.y_NP[slot, other] - y_SK[slot, candidate],
      direction_SK[slot, candidate],
      part.direction_NP[slot, other],
      setting.paddle_length,
    )
    room = part.margin_N[slot] + width_P[number_S[slot]] + width_P[other]
    is_hit = distance < room
    fits_SK[slot[is_hit], candidate[is_hit]] = False

  def _set_back(self, image_S, first_S, word_S) -> None:
    """Gives back some paddles of the contour that begins at `first_S`."""
    standing_S = self.placed_N[image_S] - first_S
    given_S = np.minimum(splitmix.below(word_S, 20, standing_S) + 1, standing_S)
    self.misses_N[image_S] = 0
    self.setbacks_N[image_S] += 1
    is_over_S = self.setbacks_N[image_S] > _SETBACKS
    self.setbacks_N[image_S[is_over_S]] = 0
    self.placed_N[image_S] = np.where(
      is_over_S, 0, self.placed_N[image_S] - given_S
    )


def grow(
  setting: Setting,
  key_N: np.ndarray,
  accepts: Callable[[Contours], np.ndarray],
) -> Contours:
  """The contours of the images of some streams.

  Args:
    setting: what to grow.
    key_N: uint64, keys of the streams; word 0 chooses the margin, the words
      from 1 on are spent by the steps.
    accepts: which of some images (bool) are fine once the two long contours
      stand. The second contour of the others gives back paddles and grows on.

  Raises:
    ValueError: the setting leaves too little room.
  """
  growth = _Growth(setting, key_N, accepts)
  image_S = np.arange(min(_SLOTS, len(key_N)))
  begun = len(image_S)
  while len(image_S):
    is_done_S = growth.step(image_S)
    if growth.steps_N[image_S].max() > _MAX_STEPS:
      raise ValueError(f'too little room for the paddles: {setting}')
    if is_done_S.any():
      new = np.arange(begun, min(begun + is_done_S.sum(), len(key_N)))
      image_S = np.concatenate([image_S[~is_done_S], new])
      begun += len(new)
  return growth.contours
