"""Checkpoints under damage, under faults, and on a full disk."""

import builtins
import errno
import os
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effformer import durable, errors
from effformer.train import checkpoint, manifest

NUM_FLIPS = 200


def make_state(value):
  """A state with all that optax brings: tuples, empty nodes, counters."""
  params = {
    'layer.0/x': {'kernel': jnp.full((3, 5), value + 0.1)},
    'head': jnp.full((7,), value, jnp.bfloat16),
  }
  transform = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(1e-3, mask=jax.tree.map(lambda x: x.ndim > 1, params)),
  )
  step = jnp.full((), value, jnp.int32)
  return {'params': params, 'opt': transform.init(params), 'step': step}


def shapes(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def assert_same(restored, step):
  expected = make_state(step)
  assert restored.step == step
  assert jax.tree.structure(restored.state) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, restored.state, expected)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 1 and 2; to be copied, not changed."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(directory, keep=2)
  for step in (1, 2):
    checkpoints.save(step, make_state(step), {'versions': {'jax': 'x'}})
  return directory


@pytest.fixture
def told():
  return []


@pytest.fixture
def checkpoints(saved, tmp_path, told):
  directory = tmp_path / 'checkpoints'
  shutil.copytree(saved, directory)
  return checkpoint.Checkpoints(directory, keep=2, announce=told.append)


@pytest.fixture(scope='module')
def like():
  return shapes(make_state(1))


def list_files(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def test_restores_what_was_saved(checkpoints, like, told):
  restored = checkpoints.restore_newest(like)
  assert_same(restored, 2)
  assert restored.facts == {'versions': {'jax': 'x'}}
  assert_same(checkpoints.restore(1, like), 1)
  assert told == []
  assert sorted(path.name for path in checkpoints.directory.iterdir()) == [
    '00000001',
    '00000002',
  ]


def test_nothing_committed_is_none(tmp_path, like):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'a' / 'b', keep=1)
  assert checkpoints.restore_newest(like) is None
  assert checkpoints.steps() == []


def test_unfinished_saves_are_deleted(checkpoints, like):
  (checkpoints.directory / 'tmp-3' / 'state').mkdir(parents=True)
  assert_same(checkpoints.restore_newest(like), 2)
  assert not (checkpoints.directory / 'tmp-3').exists()


def test_prune_and_discard(saved, checkpoints):
  for step in (3, 4, 100_000_000):
    source = checkpoints.directory / '00000001'
    shutil.copytree(source, checkpoints.directory / f'{step:08d}')
  checkpoints.prune(keep_also=[2])
  assert checkpoints.steps() == [2, 4, 100_000_000]
  checkpoints.discard_after(4)
  assert checkpoints.steps() == [2, 4]
  checkpoints.discard_after(3)
  assert checkpoints.steps() == [2]
  assert len(list(checkpoints.directory.iterdir())) == 1
  with pytest.raises(ValueError, match='keep'):
    checkpoint.Checkpoints(saved, keep=0)


def test_a_committed_step_is_left_as_it_is(checkpoints, like):
  checkpoints.save(2, make_state(9))
  assert_same(checkpoints.restore_newest(like), 2)


def test_only_arrays_are_saved(checkpoints):
  with pytest.raises(AssertionError, match='opt/count'):
    checkpoints.save(3, {'opt': {'count': np.float32(1.0)}})


def test_every_flipped_bit_is_found_and_named(checkpoints):
  folder = checkpoints.directory / '00000002'
  files = list_files(folder)
  assert len(files) > 5
  rng = random.Random(0)
  for _ in range(NUM_FLIPS):
    path = rng.choice(files)
    bit = rng.randrange(8 * path.stat().st_size)
    flip(path, bit)
    name = str(path.relative_to(folder))
    with pytest.raises(manifest.DamagedError) as caught:
      manifest.verify(folder)
    assert str(caught.value).startswith(name)
    flip(path, bit)
  manifest.verify(folder)


def test_every_cut_empty_or_lost_file_is_found_and_named(checkpoints):
  folder = checkpoints.directory / '00000002'
  for path in list_files(folder):
    data = path.read_bytes()
    for cut in (data[:-1], data[: len(data) // 2], b'', None):
      if cut is None:
        path.unlink()
      else:
        path.write_bytes(cut)
      name = str(path.relative_to(folder))
      with pytest.raises(manifest.DamagedError) as caught:
        manifest.verify(folder)
      assert str(caught.value).startswith(name)
      path.write_bytes(data)
  manifest.verify(folder)


def test_a_file_too_many_is_found(checkpoints):
  (checkpoints.directory / '00000002' / 'state' / 'more').touch()
  with pytest.raises(manifest.DamagedError, match='state/more'):
    manifest.verify(checkpoints.directory / '00000002')


def test_a_copy_under_another_number_is_damage(checkpoints, like, told):
  directory = checkpoints.directory
  shutil.copytree(directory / '00000002', directory / '00000003')
  assert_same(checkpoints.restore_newest(like), 2)
  assert 'step 3 is damaged (it holds step 2)' in told[0]


@pytest.mark.parametrize('number', range(6))
def test_damage_falls_back_to_the_one_before(checkpoints, like, told, number):
  folder = checkpoints.directory / '00000002'
  files = list_files(folder)
  path = files[number * (len(files) - 1) // 5]
  flip(path, 8 * path.stat().st_size // 2)
  assert_same(checkpoints.restore_newest(like), 1)
  assert len(told) == 1
  assert str(path.relative_to(folder)) in told[0]
  assert checkpoints.steps() == [1]
  assert list_files(checkpoints.directory / 'damaged-00000002')


def test_damaged_ones_keep_apart(checkpoints, like, told):
  for _ in range(2):
    (checkpoints.directory / '00000002' / 'manifest.json').unlink()
    assert_same(checkpoints.restore_newest(like), 1)
    checkpoints.save(2, make_state(2))
  assert_same(checkpoints.restore_newest(like), 2)
  assert (checkpoints.directory / 'damaged-00000002-2').is_dir()
  assert len(told) == 2


def test_none_whole_stops_now_and_at_the_next_start(checkpoints, like):
  for step in (1, 2):
    path = checkpoints.directory / f'{step:08d}' / 'state' / '_METADATA'
    path.write_bytes(b'')
  messages = []
  for _ in range(2):
    with pytest.raises(errors.CheckpointError) as caught:
      checkpoints.restore_newest(like)
    messages.append(str(caught.value))
  assert messages[0] == messages[1]
  assert caught.value.exit_code == 4
  assert len(messages[0].splitlines()) <= 5
  for step in (1, 2):
    assert f'damaged-{step:08d} (state/_METADATA has 0 bytes' in messages[0]
  assert f'delete {checkpoints.directory}' in messages[0]


def test_restore_of_one_step_says_what_is_wrong(checkpoints, like):
  with pytest.raises(errors.CheckpointError, match=r'step 7 .*\[1, 2\]'):
    checkpoints.restore(7, like)
  (checkpoints.directory / '00000001' / 'state' / '_METADATA').unlink()
  with pytest.raises(errors.CheckpointError, match='_METADATA is missing'):
    checkpoints.restore(1, like)
  assert checkpoints.steps() == [1, 2]


def test_another_model_is_refused_with_a_diff(checkpoints):
  state = make_state(1)
  state['params']['head'] = jnp.zeros((8,), jnp.bfloat16)
  state['params']['new'] = jnp.zeros(2)
  with pytest.raises(errors.CheckpointError) as caught:
    checkpoints.restore_newest(shapes(state))
  message = str(caught.value)
  assert 'params/head: bfloat16[7] in the checkpoint, bfloat16[8]' in message
  assert 'params/new: nothing in the checkpoint, float32[2]' in message
  assert len(message.splitlines()) <= 5
  state['params'] = {str(number): jnp.zeros(2) for number in range(9)}
  with pytest.raises(errors.CheckpointError, match='and 9 more'):
    checkpoints.restore_newest(shapes(state))
  assert checkpoints.steps() == [1, 2]


class Killed(BaseException):
  """Stands for SIGKILL: from then on no call does anything."""


def no_space():
  return OSError(errno.ENOSPC, 'No space left on device')


class Faults:
  """Fails at one call, or from one call on, of all that change files."""

  NAMES = ('rename', 'replace', 'fsync', 'open', 'mkdir', 'unlink', 'rmdir')

  def __init__(self, monkeypatch):
    self.num_calls, self._failing, self._make_error = 0, range(0), None
    for name in self.NAMES:
      monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
    self._open = builtins.open
    monkeypatch.setattr(builtins, 'open', self._open_file)

  def arm(self, failing, make_error):
    self.num_calls, self._failing, self._make_error = 0, failing, make_error

  def _count(self):
    self.num_calls += 1
    if self.num_calls - 1 in self._failing:
      raise self._make_error()

  def _wrap(self, function):
    def call(*args, **kwargs):
      self._count()
      return function(*args, **kwargs)

    return call

  def _open_file(self, file, mode='r', *args, **kwargs):
    if set(mode) & set('wax+'):
      self._count()
    return self._open(file, mode, *args, **kwargs)


# An Orbax worker thread may outlive the save that a fault has ended.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:coroutine:RuntimeWarning')
@pytest.mark.parametrize(
  ('kind', 'outcome'),
  [('once', 'saved'), ('lasting', 'refused'), ('kill', 'killed')],
)
def test_a_fault_at_any_call_leaves_the_old_or_the_new(
  tmp_path, like, kind, outcome, monkeypatch
):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep=1)
  checkpoints.save(1, make_state(1))
  faults = Faults(monkeypatch)
  checkpoints.save(2, make_state(2))
  num_calls = faults.num_calls
  assert num_calls > 10
  num_reached = 0
  for call in range(num_calls):
    checkpoints.discard_after(1)
    last = call if kind == 'once' else sys.maxsize - 1
    error = Killed if kind == 'kill' else no_space
    faults.arm(range(call, last + 1), error)
    found = try_to_save(checkpoints)
    # Orbax does not make the same number of calls each time.
    is_reached = faults.num_calls > call
    num_reached += is_reached
    faults.arm(range(0), None)
    assert found == (outcome if is_reached else 'saved')
    steps = checkpoints.steps()
    assert steps == [1, 2] if found == 'saved' else steps in ([1], [1, 2])
    assert_same(checkpoints.restore_newest(like), steps[-1])
  # So how many were reached varies too, the more the busier the machine.
  assert num_reached > 0.7 * num_calls


def try_to_save(checkpoints):
  try:
    checkpoints.save(2, make_state(2))
  except errors.CheckpointError as error:
    assert_explains(error, checkpoints.directory)
    return 'refused'
  except Killed:
    return 'killed'
  return 'saved'


def assert_explains(error, directory):
  message = str(error)
  assert error.exit_code == 4
  assert 'step 2: No space left on device' in message
  assert str(directory) in message
  assert len(message.splitlines()) <= 5


def test_a_commit_that_may_not_last_is_reported(checkpoints, like, monkeypatch):
  def sync(path):
    if path == checkpoints.directory:
      raise no_space()

  checkpoints.discard_after(1)
  monkeypatch.setattr(durable, 'sync', sync)
  assert try_to_save(checkpoints) == 'refused'
  assert_same(checkpoints.restore_newest(like), 2)


FULL_DISK = """
import resource, sys
import jax.numpy as jnp, numpy as np
from effformer import errors
from effformer.train import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2)
rng = np.random.default_rng(0)
state = {'w': jnp.asarray(rng.normal(size=(300, 500)), jnp.float32)}
checkpoints.save(1, state)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  checkpoints.save(2, state)
except errors.UserError as error:
  print(error)
  print(checkpoints.steps(), [p.name for p in checkpoints.directory.iterdir()])
  sys.exit(error.exit_code)
"""


def test_a_full_disk_leaves_the_last_one(tmp_path, repository):
  done = subprocess.run(
    [sys.executable, '-c', FULL_DISK, str(tmp_path)],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 4, done.stderr
  message, listing = done.stdout.strip().rsplit('\n', 1)
  assert listing == "[1] ['00000001']"
  assert 'step 2: File too large\n' in message
  assert 'goes on from step 1' in message
  assert done.stderr == ''
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  state = jax.ShapeDtypeStruct(
    (300, 500), jnp.float32, sharding=jnp.zeros(()).sharding
  )
  assert checkpoints.restore_newest({'w': state}).step == 1


def test_threads_of_a_failed_save_are_silent(tmp_path):
  """In a process of its own, since the limit holds for all of it."""
  program = f"""
import resource, time
import jax
from effformer.train import checkpoint
checkpoints = checkpoint.Checkpoints({str(tmp_path)!r}, keep=1)
state = [
  jax.random.normal(jax.random.key(i), (64, 64)) for i in range(60)
]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
  checkpoints.save(1, state)
except checkpoint.errors.CheckpointError:
  time.sleep(1)
  print('refused')
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == 'refused\n'
  assert done.stderr == ''
