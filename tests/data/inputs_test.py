"""Single examples from a command line."""

import numpy as np
import pytest
from PIL import Image

from effformer import data
from effformer.errors import DataError

X_HW = np.arange(32 * 32).reshape(32, 32).astype(np.uint8)


def test_an_expression_may_have_the_parentheses_of_the_release(tmp_path):
  given = '( ( ( [MAX 2 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )'
  expected = b'[MAX 2 [MIN 4 7 ] ]'
  assert data.read_input('listops', given) == expected
  (tmp_path / 'x').write_text(f'{given}\n')
  assert data.read_input('listops', f'@{tmp_path}/x') == expected
  assert data.read_input('listops', expected.decode()) == expected
  assert data.read_input('text', '(a film)') == b'(a film)'


def test_a_text_is_its_bytes():
  assert data.read_input('text', 'très bien') == 'très bien'.encode()


@pytest.mark.parametrize('end', [b'', b'\n', b'\r\n'])
def test_a_file_is_its_bytes_without_the_last_end_of_line(tmp_path, end):
  path = tmp_path / 'text'
  path.write_bytes(b'two\nlines \xff' + end)
  assert data.read_input('text', f'@{path}') == b'two\nlines \xff'


@pytest.mark.parametrize('name', ['image', 'pathfinder32'])
def test_an_image_is_its_grey_values(tmp_path, name):
  path = tmp_path / 'x.png'
  Image.fromarray(X_HW).save(path)
  assert data.read_input(name, str(path)) == X_HW.tobytes()


@pytest.mark.parametrize(
  ('name', 'given', 'words'),
  [
    ('text', '', 'empty'),
    ('text', '@nowhere', 'No such file'),
    ('text', '@~no-such-user/x', 'home'),
    ('image', '~no-such-user/x.png', 'home'),
    ('listops', '[MAX 1 2 )', '1 "]" missing at the end'),
    ('listops', '[MAX 1 [AVG 2 ] ]', 'unknown ListOps symbol'),
    ('listops', '[MAX 1 2', '1 "]" missing at the end'),
    ('listops', '] ] ]', r"symbol 1, '\]', closes no operator"),
    ('listops', '( )', 'empty'),
    ('image', 'nowhere.png', 'no such file.\nGive an image file of 32 x 32'),
    ('pathfinder64', '{}/x.png', '32 x 32, not 64 x 64'),
    ('image', '{}/text', 'not an image'),
  ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, given, words):
  Image.fromarray(X_HW).save(tmp_path / 'x.png')
  (tmp_path / 'text').write_text('text')
  given = given.format(tmp_path)
  with pytest.raises(DataError, match=words) as caught:
    data.read_input(name, given)
  assert given in str(caught.value)
