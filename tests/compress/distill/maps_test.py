"""Maps of layers: by formula, and what is no map."""

import pytest

from effformer.compress.distill import maps
from effformer.errors import ConfigError


@pytest.mark.parametrize(
  ('kind', 'layers'),
  [
    ('uniform', (2, 5, 8, 11)), ('first', (0, 1, 2, 3)),
    ('last', (8, 9, 10, 11)), ((None, 7, None, 11), (None, 7, None, 11)),
    ([11, 11, 0, 3], (11, 11, 0, 3)),
  ],
)  # fmt: skip
def test_layers(kind, layers):
  assert maps.layer_map(kind, 4, 12).layers == layers


def test_layers_that_were_kept():
  made = maps.layer_map('kept', 3, 6, kept=(0, 2, 5))
  assert made.layers == (0, 2, 5)
  assert made.pairs == ((0, 0), (1, 2), (2, 5))
  assert made.states == ((0, 0), (1, 1), (2, 3), (3, 6))


@pytest.mark.parametrize(('student', 'teacher'), [(4, 12), (3, 3), (1, 5)])
def test_uniform_is_that_of_tinybert(student, teacher):
  """Scores m r + r - 1, states m r."""
  ratio = teacher // student
  made = maps.layer_map('uniform', student, teacher)
  assert made.pairs == tuple((m, m * ratio + ratio - 1) for m in range(student))
  assert made.states == tuple((m, m * ratio) for m in range(student + 1))


def test_last_layers_only():
  made = maps.layer_map((None, None, 11), 3, 12)
  assert made.pairs == ((2, 11),)
  assert made.states == ((0, 0), (3, 12))


def test_the_table_has_a_line_a_layer():
  lines = list(maps.layer_map((1, None), 2, 4).table())
  assert [line.split() for line in lines] == [
    ['student', 'teacher', 'hidden', 'states'],
    ['input', 'input', '0', '->', '0'],
    ['layer', '0', 'layer', '1', '1', '->', '2'],
    ['layer', '1', '-', '-'],
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('uniform', 5, 12), 'as divide into 5 equal parts'),
    (('middle', 3, 6), "no layer map 'middle'; there are uniform, first"),
    (((0, 1), 3, 6), 'has 2 entries, and the student 3'),
    (((0, 1, 6), 3, 6), 'names layer 6; the teacher has layers 0 to 5'),
    (((0, 1, -1), 3, 6), 'names layer -1'),
    (((None, None), 2, 6), 'compares no layer'),
    (('first', 7, 6), 'names layer 6'),
    (('last', 7, 6), 'names layer -1'),
    (('kept', 3, 6, (0, 5, 2)), 'must ascend'),
    (('kept', 3, 6, (0, 2, 2)), 'must ascend'),
    (('kept', 3, 6, (0, 2)), 'has 2 entries'),
    (('first', 3, 6, (0, 2, 5)), 'are of the map kept'),
    (('first', 0, 6), 'compares nothing'),
  ],
)
def test_what_is_no_map(arguments, message):
  with pytest.raises(ConfigError, match=message):
    maps.layer_map(*arguments)
