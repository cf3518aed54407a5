"""The Pathfinder generator: its bytes, its rule, and what may not tell."""

import dataclasses
import hashlib

import numpy as np
import pytest

from effformer.data import contours, paddles, pathfinder, splitmix
from effformer.data.pathfinder import SETTINGS

HARD = SETTINGS[32, 'hard']
NUM = 96


@pytest.fixture(scope='module')
def scene():
  return pathfinder.geometry(HARD, 0, 0, NUM)


@pytest.fixture(scope='module')
def made():
  return pathfinder.generate(HARD, 0, 0, NUM)


def digest(images_NHW, labels_N):
  return hashlib.sha256(images_NHW.tobytes() + labels_N.tobytes()).hexdigest()


# Bytes.


def test_first_bytes_never_change(made):
  """To be changed with the version of the builder only."""
  images_NHW, labels_N = made
  assert (images_NHW.dtype, images_NHW.shape) == (np.uint8, (NUM, 32, 32))
  assert digest(images_NHW[:64], labels_N[:64]) == (
    'e5fac2c049e8613c2a9a3c2d54621f0e5ef2a82ebc3d23ad58cce79cab3c0d0a'
  )


def test_an_image_depends_on_its_number_only(made, monkeypatch):
  images_NHW, labels_N = made
  monkeypatch.setattr(contours, '_SLOTS', 5)
  monkeypatch.setattr(pathfinder, '_DRAWN', 3)
  again = pathfinder.generate(HARD, 0, 40, 9)
  assert digest(*again) == digest(images_NHW[40:49], labels_N[40:49])


def test_seeds_differ(made):
  images_NHW, _ = pathfinder.generate(HARD, 1, 0, 3)
  assert not (images_NHW == made[0][:3]).all(axis=(1, 2)).any()


def test_words_are_those_of_splitmix():
  """SplitMix64 from state 1234567 is published with many implementations."""
  state = np.array([1234567], np.uint64)
  words = splitmix.words(state, np.arange(2))
  assert words.tolist() == [6457827717110365317, 3203168211198807973]


# What is drawn.


def ends(scene, setting):
  """x, y of the four ends [N, 2 contours, origin and terminal]."""
  length, half = setting.contour_length, setting.paddle_length / 2
  grown = scene.contours
  paddle = np.array([[0, length - 1], [length, 2 * length - 1]])
  angle = 2 * np.pi / paddles.TURN * grown.direction_NP[:, paddle]
  sign = np.array([-1, 1])
  return (
    grown.x_NP[:, paddle] + sign * half * np.cos(angle),
    grown.y_NP[:, paddle] + sign * half * np.sin(angle),
  )


def test_discs_are_where_the_label_says(scene):
  x_N22, y_N22 = ends(scene, HARD)
  numbers = []
  for disc in (0, 1):
    far_N2 = np.hypot(
      x_N22[:, :, disc] - scene.disc_x_N2[:, disc, None],
      y_N22[:, :, disc] - scene.disc_y_N2[:, disc, None],
    )
    assert far_N2.min(axis=1).max() < 1e-6
    numbers.append(far_N2.argmin(axis=1))
  assert ((numbers[0] == numbers[1]) == scene.label_N.astype(bool)).all()
  # Either contour has its discs.
  assert set(numbers[0]) == set(numbers[1]) == {0, 1}


def test_paddles_follow_each_other_by_the_rule(scene):
  grown, first_P = scene.contours, contours.layout(HARD).first_P
  next_P = np.flatnonzero(first_P < np.arange(len(first_P)))
  turn = grown.direction_NP[:, next_P] - grown.direction_NP[:, next_P - 1]
  turn = (turn + paddles.TURN // 2) % paddles.TURN - paddles.TURN // 2
  most = paddles.TURN / 8 / HARD.continuity
  assert 0.9 * most < np.abs(turn).max() <= most
  # From the end of one to the beginning of the next.
  half = HARD.paddle_length / 2
  ux, uy = paddles.unit(grown.direction_NP)
  dx = (grown.x_NP - half * ux)[:, next_P] - (grown.x_NP + half * ux)[
    :, next_P - 1
  ]
  dy = (grown.y_NP - half * uy)[:, next_P] - (grown.y_NP + half * uy)[
    :, next_P - 1
  ]
  gap = np.hypot(dx, dy)
  assert np.abs(gap - grown.margin_N[:, None]).max() < 1e-9
  # The second contour begins at its distance from the first.
  length = HARD.contour_length
  start_x, start_y = grown.x_NP - half * ux, grown.y_NP - half * uy
  far_N = np.hypot(
    start_x[:, length] - start_x[:, 0], start_y[:, length] - start_y[:, 0]
  )
  assert np.abs(far_N - HARD.seed_distance).max() < 1e-9


def sampled(scene, count=41):
  """Points along each paddle, [N, P, count]."""
  grown = scene.contours
  ux, uy = paddles.unit(grown.direction_NP)
  along = np.linspace(-0.5, 0.5, count) * HARD.paddle_length
  return (
    grown.x_NP[..., None] + along * ux[..., None],
    grown.y_NP[..., None] + along * uy[..., None],
  )


def test_all_others_keep_their_distance_and_stay_inside(scene):
  x_NPC, y_NPC = sampled(scene)
  plan = contours.layout(HARD)
  room_P11 = (HARD.padding + plan.width_P)[:, None]
  for place_NPC in (x_NPC, y_NPC):
    assert (place_NPC >= room_P11 - 1e-9).all()
    assert (place_NPC <= 32 - room_P11 + 1e-9).all()
  is_end_P = np.isin(np.arange(48), [0, 13, 14, 27])
  assert (plan.width_P == np.where(is_end_P, 1.5, 0.25)).all()
  number_P = np.arange(len(plan.first_P))
  is_pair_PP = number_P[:, None] > number_P
  is_next_PP = number_P[:, None] == number_P + 1
  is_next_PP &= plan.first_P[:, None] == plan.first_P
  is_pair_PP &= ~is_next_PP
  for n in range(8):
    dx = x_NPC[n, :, None, :, None] - x_NPC[n, None, :, None]
    dy = y_NPC[n, :, None, :, None] - y_NPC[n, None, :, None]
    far_PP = np.hypot(dx, dy).min(axis=(2, 3))
    least_PP = scene.contours.margin_N[n] + plan.width_P[:, None] + plan.width_P
    # Points are up to 0.05 apart.
    assert (far_PP >= least_PP - 1e-9)[is_pair_PP].all()


def test_distance_of_segments_is_that_of_their_points():
  rng = np.random.default_rng(0)
  dx, dy = rng.normal(size=(2, 200)) * 2
  angles = rng.integers(0, paddles.TURN, (2, 200))
  angles[1, :20] = angles[0, :20]  # parallel
  distance = paddles.distance(dx, dy, *angles, 3.0)
  along = np.linspace(-1.5, 1.5, 301)
  (ux, uy), (vx, vy) = (paddles.unit(a[:, None, None]) for a in angles)
  x = dx[:, None, None] + along * vx - along[:, None] * ux
  y = dy[:, None, None] + along * vy - along[:, None] * uy
  brute = np.hypot(x, y).min(axis=(1, 2))
  assert (distance <= brute + 1e-9).all()
  assert (brute - distance).max() < 0.01


def test_a_paddle_has_the_light_of_its_area():
  images = paddles.draw(
    20,
    np.array([[9.3]]), np.array([[10.6]]), np.array([[700]]),
    length=6, thickness=1.5, contrast=0.5,
    disc_x_NM=np.array([[3.0]]), disc_y_NM=np.array([[3.0]]), radius=1.5,
  )  # fmt: skip
  rest = images[0].astype(float)
  assert rest[2:4, 2:4].min() == 255
  rest[:6, :6] = 0
  np.testing.assert_allclose(rest.sum() / 255, 0.5 * 6 * 1.5, rtol=0.02)
  # Direction 700 of 4096 is 61.5 degrees downwards: taller than wide.
  rows, columns = np.nonzero(rest > 40)
  assert np.ptp(rows) > np.ptp(columns) >= 2


# What may not tell the label.


def test_labels_are_balanced_and_distances_alike():
  grown = pathfinder.geometry(SETTINGS[32, 'easy'], 0, 0, 600)
  label_N = grown.label_N.astype(bool)
  assert abs(label_N.mean() - 0.5) < 0.08
  dx, dy = np.diff(grown.disc_x_N2)[:, 0], np.diff(grown.disc_y_N2)[:, 0]
  apart_N = np.hypot(dx, dy)
  edges = np.quantile(apart_N, [0.25, 0.5, 0.75])
  for quarter in range(4):
    here_N = np.digitize(apart_N, edges) == quarter
    # Without the rule the outer quarters are above 0.7 or below 0.3.
    assert abs(label_N[here_N].mean() - 0.5) < 0.16


@pytest.mark.parametrize('resolution', [64, 128, 256])
def test_larger_images_are_made(resolution):
  setting = SETTINGS[resolution, 'hard']
  images_NHW, labels_N = pathfinder.generate(setting, 0, 0, 2)
  assert images_NHW.shape == (2, resolution, resolution)
  assert set(labels_N) <= {0, 1}
  share = (images_NHW > 0).mean()
  assert 0.02 < share < 0.4
  assert images_NHW.max() == 255


def test_both_margins_of_128_are_drawn():
  key_N = splitmix.keys(0, np.arange(40))
  growth = contours._Growth(SETTINGS[128, 'easy'], key_N, None)
  assert set(growth.contours.margin_N) == {2.0, 3.0}


# Bad input.


def test_wrong_calls_are_refused():
  with pytest.raises(ValueError, match='must not be negative'):
    pathfinder.generate(HARD, 0, -1, 3)
  with pytest.raises(ValueError, match='contour_length must be at least 3'):
    dataclasses.replace(HARD, contour_length=2)
  with pytest.raises(ValueError, match='paddle_margins must be positive'):
    dataclasses.replace(HARD, paddle_margins=())
  with pytest.raises(ValueError, match='no room for padding'):
    dataclasses.replace(HARD, padding=15)


def test_too_little_room_is_said(monkeypatch):
  monkeypatch.setattr(contours, '_MAX_STEPS', 300)
  crowded = dataclasses.replace(HARD, num_distractors=60)
  with pytest.raises(ValueError, match='too little room'):
    pathfinder.generate(crowded, 0, 0, 1)


def test_no_images():
  images_NHW, labels_N = pathfinder.generate(HARD, 0, 7, 0)
  assert (images_NHW.shape, labels_N.shape) == ((0, 32, 32), (0,))
