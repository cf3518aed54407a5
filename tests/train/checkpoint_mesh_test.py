"""Checkpoints on several devices and in several processes."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer.train import checkpoint

TIMEOUT_S = 60

SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from effformer.train import checkpoint
assert jax.device_count() == 4

def on(num_devices):
  devices = np.array(jax.devices()[:num_devices])
  return NamedSharding(Mesh(devices, ('fsdp',)), P('fsdp'))

values = np.arange(24, dtype=np.float32).reshape(8, 3)
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=1)
checkpoints.save(5, {'w': jax.device_put(values, on(4))})
for num_devices in (4, 2, 1):
  sharding = on(num_devices)
  like = {'w': jax.ShapeDtypeStruct((8, 3), np.float32, sharding=sharding)}
  w = checkpoints.restore_newest(like).state['w']
  assert w.sharding == sharding, w.sharding
  np.testing.assert_array_equal(w, values)
print('fine')
"""

PROCESSES = """
import os, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
index = int(sys.argv[2])
jax.distributed.initialize('localhost:' + sys.argv[3], 2, index)
from effformer import errors
from effformer.train import checkpoint, preemption
sharding = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), P('data'))
values = np.arange(8, dtype=np.float32)

def state(step):
  return {'w': jax.make_array_from_callback(
    (8,), sharding, lambda index: values[index] + step)}

def check(step):
  restored = checkpoints.restore_newest(like)
  assert restored.step == step, restored
  for shard in restored.state['w'].addressable_shards:
    np.testing.assert_array_equal(shard.data, values[shard.index] + step)

told = []
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2, announce=told.append)
like = {'w': jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
assert checkpoints.restore_newest(like) is None
for step in (1, 2, 3):
  checkpoints.save(step, state(step))
  checkpoints.prune()
check(3)
assert checkpoints.steps() == [2, 3]
if index == 0:
  os.unlink(os.path.join(sys.argv[1], '00000003', 'state', '_METADATA'))
check(2)
assert len(told) == (index == 0), told
rename = os.rename
if index == 0:
  def fail(source, target):
    if os.path.basename(target) == '00000004':
      raise OSError(28, 'No space left on device')
    rename(source, target)
  os.rename = fail
try:
  checkpoints.save(4, state(4))
  raise SystemExit('saved')
except errors.CheckpointError as error:
  assert 'step 4' in str(error), error
os.rename = rename
check(2)

stop = preemption.Stop()
stop.install()
try:
  with stop.loop():
    for step in range(9):
      if index == 1 and step == 6:
        os.kill(os.getpid(), preemption.signal.SIGTERM)
      if stop.agree(step):
        break
except errors.Preempted as error:
  print('fine', step, error)
"""


def start(code, *args, **environment):
  return subprocess.Popen(
    [sys.executable, '-c', code, *map(str, args)],
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  try:
    return process.communicate(timeout=TIMEOUT_S)
  finally:
    process.kill()


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, repository):
  monkeypatch.chdir(repository)


def test_four_devices_to_fewer(tmp_path):
  output, problems = finish(start(SHARDED, tmp_path, JAX_NUM_CPU_DEVICES='4'))
  assert output == 'fine\n', problems
  sharding = jnp.zeros(()).sharding
  like = {'w': jax.ShapeDtypeStruct((8, 3), np.float32, sharding=sharding)}
  restored = checkpoint.Checkpoints(tmp_path, keep=1).restore_newest(like)
  expected = np.arange(24, dtype=np.float32).reshape(8, 3)
  np.testing.assert_array_equal(restored.state['w'], expected)


def test_two_processes_save_restore_fall_back_and_stop_together(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    start(
      PROCESSES,
      tmp_path,
      index,
      port,
      JAX_CPU_COLLECTIVES_IMPLEMENTATION='gloo',
      JAX_NUM_CPU_DEVICES='1',
    )
    for index in range(2)
  ]
  answers = [finish(process) for process in processes]
  words = [output.splitlines()[-1:] for output, _ in answers]
  problems = [problem for _, problem in answers]
  assert words[1] == ['fine 6 SIGTERM'], problems[1]
  assert words[0] == ['fine 6 a signal to another process'], problems[0]
