"""Own images: arrays and folders, and what is wrong with some of them."""

import io
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from effformer import data
from effformer.data import files, images, rows
from effformer.errors import ConfigError, DataError

SIDE = 4


def pictures(count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def load(train, **settings):
  paths = {'train': str(train), 'validation': '', 'test': ''}
  paths |= settings.pop('paths', {})
  return files.load_files(
    'image',
    paths,
    read_rows=images.rows(SIDE),
    **settings,
  )


@pytest.fixture
def save(tmp_path):
  def write(**arrays):
    path = tmp_path / 'own.npz'
    np.savez(path, **arrays)
    return path

  return write


@pytest.fixture
def folder(tmp_path):
  """Two classes of 40 images each, in grey."""
  x_NHW = pictures(80)
  for number, x_HW in enumerate(x_NHW):
    place = tmp_path / 'own' / ('cat', 'dog')[number % 2]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x_HW).save(place / f'{number:02}.png')
  return tmp_path / 'own'


def test_grey_is_that_of_the_known_bytes():
  # Of rgb_to_grayscale of TensorFlow; 255 stays 255, and nothing overflows.
  rgb = np.array(
    [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], 'u1'
  )
  np.testing.assert_array_equal(images.grey(rgb), [0, 255, 76, 149, 29])


def test_arrays_become_texts_in_raster_order(save):
  x_NHW, y_N = pictures(60), np.arange(60) % 3
  x_NHW[0, -1] = 0
  loaded = load(save(x=x_NHW, y=y_N))
  assert loaded.num_classes == 3
  every = [e for source in loaded.splits.values() for e in source]
  assert sorted(e['text'] for e in every) == sorted(x.tobytes() for x in x_NHW)
  first = next(e for e in every if e['id'] == 'own.npz:0')
  assert list(first['text']) == x_NHW[0].ravel().tolist()


def test_one_file_has_several_splits(save):
  path = save(
    train_x=pictures(50), train_y=np.arange(50) % 2,
    test_x=pictures(6, seed=1), test_y=np.arange(6, dtype='u1') % 2,
  )  # fmt: skip
  loaded = load(path, paths={'test': str(path)})
  assert len(loaded.splits['test']) == 6
  assert len(loaded.splits['train']) + len(loaded.splits['validation']) == 50
  with pytest.raises(DataError, match='validation_x and validation_y'):
    load(path, paths={'validation': str(path)})


def test_a_file_of_several_splits_stands_for_those_nobody_gave(save, tmp_path):
  arrays = {f'{split}_x': pictures(30) for split in ('train', 'test')}
  arrays |= {'train_y': np.arange(30) % 2, 'test_y': np.arange(30) % 2}
  path, other = str(save(**arrays)), str(tmp_path / 'other.npz')
  given = {'train': path, 'validation': '', 'test': ''}
  assert images.spread(given) == {**given, 'test': path}
  assert images.spread({**given, 'test': other})['test'] == other
  single = {**given, 'train': str(save(x=pictures(30), y=np.arange(30) % 2))}
  assert images.spread(single) == single
  for train in (tmp_path, tmp_path / 'absent.npz', ''):
    assert images.spread({**given, 'train': str(train)})['test'] == ''


def test_the_test_arrays_of_one_file_are_the_test_split(tmp_path):
  x_NHW = np.random.default_rng(0).integers(0, 256, (90, 32, 32), np.uint8)
  y_N = np.arange(90) % 2
  arrays = {'train_x': x_NHW[:80], 'train_y': y_N[:80]}
  np.savez(tmp_path / 'a.npz', test_x=x_NHW[80:], test_y=y_N[80:], **arrays)
  found = data.load('image', train=str(tmp_path / 'a.npz'))
  test = found.splits['test']
  assert [test[i]['text'] for i in range(10)] == [
    x_HW.tobytes() for x_HW in x_NHW[80:]
  ]


def test_colour_becomes_grey(save):
  rgb = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), 'u1')
  loaded = load(save(x=rgb, y=np.arange(40) % 2))
  texts = {e['text'] for source in loaded.splits.values() for e in source}
  assert texts == {x.tobytes() for x in images.grey(rgb)}


WRONG_ARRAYS = {
  'float': ({'x': np.zeros((9, 4, 4)), 'y': np.zeros(9, int)}, 'float64'),
  'flat': ({'x': np.zeros((9, 16), 'u1'), 'y': np.zeros(9, int)}, '9, 16'),
  'size': (
    {'x': np.zeros((9, 4, 5), 'u1'), 'y': np.zeros(9, int)},
    '4 x 5, not 4 x 4',
  ),
  'count': ({'x': np.zeros((9, 4, 4), 'u1'), 'y': np.zeros(8, int)}, '8 label'),
  'labels': ({'x': np.zeros((9, 4, 4), 'u1'), 'y': np.zeros(9)}, 'integers'),
  'names': ({'images': np.zeros(3)}, 'Needed are x and y'),
  'objects': (
    {'x': np.array([{}, 1]), 'y': np.zeros(2, int)},
    'arrays of objects are not read',
  ),
}


@pytest.mark.parametrize('name', WRONG_ARRAYS)
def test_wrong_arrays_are_refused(save, name):
  arrays, reason = WRONG_ARRAYS[name]
  with pytest.raises(DataError, match=reason):
    load(save(**arrays))


def test_damaged_and_missing_files(save, tmp_path):
  path = save(x=pictures(40), y=np.arange(40) % 2)
  content = path.read_bytes()
  path.write_bytes(content[:-30])
  with pytest.raises(DataError, match='cannot be read as arrays'):
    load(path)
  # One byte of the images is another.
  path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
  with pytest.raises(DataError, match='cannot be read as arrays'):
    load(path)
  with pytest.raises(DataError, match='no such file'):
    load(tmp_path / 'none.npz')
  with pytest.raises(DataError, match='no such file'):
    load(tmp_path / 'a.jsonl')
  (tmp_path / 'a.jsonl').touch()
  with pytest.raises(ConfigError, match='unknown kind of file'):
    load(tmp_path / 'a.jsonl')


def test_bomb_of_arrays_is_not_unpacked(tmp_path, monkeypatch):
  path = tmp_path / 'bomb.npz'
  x_NHW = np.zeros((1 << 16, SIDE, SIDE), 'u1')
  np.savez_compressed(path, x=x_NHW, y=np.zeros(len(x_NHW), 'u1'))
  monkeypatch.setattr(np, 'load', None)
  monkeypatch.setattr(rows, '_MAX_UNPACKED_BYTES', 1 << 19)
  with pytest.raises(DataError, match='implausibly large'):
    load(path)
  # As dense as it may be.
  monkeypatch.setattr(rows, '_MAX_UNPACKED_TIMES', 1000)
  with pytest.raises(TypeError):
    load(path)


CLAIMS = {
  'more': (1 << 50, SIDE, SIDE),
  'less': (2, SIDE, SIDE),
  'negative': (-1, SIDE, SIDE),
}


@pytest.mark.parametrize('name', CLAIMS)
def test_headers_that_claim_another_size(tmp_path, monkeypatch, name):
  path = tmp_path / 'own.npz'
  with zipfile.ZipFile(path, 'w') as archive:
    for letter, shape in (('x', CLAIMS[name]), ('y', (60,))):
      stream = io.BytesIO()
      header = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
      np.lib.format.write_array_header_1_0(stream, header)
      archive.writestr(f'{letter}.npy', stream.getvalue() + bytes(60))
  monkeypatch.setattr(np, 'load', None)
  with pytest.raises(DataError, match=r'x\.npy says .* and has \d+ bytes'):
    load(path)


@pytest.mark.parametrize('packing', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 0])
def test_members_that_numpy_does_not_write(tmp_path, packing):
  """Other packings, and a member that says that it is encrypted."""
  path = tmp_path / 'own.npz'
  with zipfile.ZipFile(path, 'w', packing) as archive:
    for letter, x in (('x', pictures(60)), ('y', np.arange(60) % 2)):
      stream = io.BytesIO()
      np.save(stream, x)
      archive.writestr(f'{letter}.npy', stream.getvalue())
  if not packing:
    load(path)
    content = bytearray(path.read_bytes())
    # The flags of the first entry of the directory at the end of the file.
    content[content.index(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(content)
  with pytest.raises(DataError, match=r'x\.npy is packed as NumPy packs noth'):
    load(path)


def test_folders_are_classes(folder):
  (folder / 'read me.txt').write_text('no class')
  (folder / 'cat' / 'notes.txt').write_text('no image')
  loaded = load(folder)
  assert loaded.label_names == ('cat', 'dog')
  every = [e for source in loaded.splits.values() for e in source]
  by_id = {e['id']: e for e in every}
  assert len(by_id) == 80
  x_NHW = pictures(80)
  assert by_id['dog/07.png'] == {
    'text': x_NHW[7].tobytes(), 'label': 1, 'id': 'dog/07.png',
  }  # fmt: skip


def png(size):
  stream = io.BytesIO()
  Image.new('L', size).save(stream, 'png')
  return stream.getvalue()


def deep_png():
  stream = io.BytesIO()
  Image.fromarray(np.full((SIDE, SIDE), 300, np.uint16)).save(stream, 'png')
  return stream.getvalue()


# Pillow gives it to Ghostscript, whatever the file is named.
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 4 4
%%EndComments
showpage
%%EOF
"""


def test_no_other_program_reads_an_image(folder, monkeypatch):
  def started(*_, **__):
    raise AssertionError('Ghostscript was started')

  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
  path = folder / 'cat' / 'bad.png'
  path.write_bytes(EPS)
  with pytest.raises(DataError, match=r'cat/bad.png: not an image \(PNG'):
    load(folder)
  with pytest.raises(AssertionError), Image.open(path) as image:
    image.load()


BAD_IMAGES = {
  'deep': (deep_png(), 'pixels of type I;16'),
  'empty': (b'', 'an empty file'),
  'text': (b'hello, this is no image', 'not an image'),
  'small': (png((SIDE, 3)), '3 x 4, not 4 x 4'),
  'truncated': (png((SIDE, SIDE))[:45], 'cannot be decoded|not an image'),
  # 2^30 pixels in a few kilobytes are never decoded.
  'bomb': (png((1, 1)).replace(
    b'\x00\x00\x00\x01\x00\x00\x00\x01', b'\x00\x00\x80\x00\x00\x00\x80\x00'
  ), 'cannot be decoded|32768 x 32768|not an image'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_bad_images_are_named_and_may_be_skipped(folder, name):
  content, reason = BAD_IMAGES[name]
  (folder / 'cat' / 'bad.png').write_bytes(content)
  with pytest.raises(DataError, match=rf'cat/bad.png: ({reason})'):
    load(folder)
  loaded = load(folder, max_bad_fraction=0.05)
  assert sum(map(len, loaded.splits.values())) == 80
  assert 'skipped 1 bad' in loaded.notes[0]


def test_a_missing_image(tmp_path):
  with pytest.raises(DataError, match='no such file'):
    images.read_image(tmp_path / 'none.png', SIDE)


def test_folder_without_images(tmp_path):
  with pytest.raises(DataError, match='holds no images'):
    load(tmp_path)
