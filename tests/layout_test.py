"""The rules of the house: who imports whom, and what importing may do."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A room may import rooms of lower levels, and itself.
LEVELS = {
  'errors': 0,
  'scores': 0,
  'shapes': 0,
  'cost': 0,
  'timing': 0,
  'durable': 1,
  'config_words': 1,
  'config_compress': 2,
  'config_task': 2,
  'config_layers': 2,
  'config_check': 3,
  'config_tracked': 4,
  'config': 5,
  'attention': 6,
  'data': 6,
  'models': 7,
  'pretrained': 8,
  'tasks': 9,
  'train': 10,
  'report': 11,
  'compress': 11,
  'main': 12,
}
MODULES = sorted((ROOT / 'effformer').rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
MAX_LINES = 400


def room_of(path: pathlib.Path) -> str | None:
  parts = path.relative_to(ROOT / 'effformer').with_suffix('').parts
  return None if parts == ('__init__',) else parts[0]


def imported(path: pathlib.Path) -> set[str]:
  """Dotted names of what a file imports, wherever in the file it does."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def rooms_imported(path: pathlib.Path) -> set[str]:
  ours = [
    n.split('.') for n in imported(path) if n.split('.')[0] == 'effformer'
  ]
  return {parts[1] for parts in ours if len(parts) > 1 and parts[1] in LEVELS}


def test_every_room_has_a_level():
  assert {room_of(path) for path in MODULES} - {None} == set(LEVELS)


@pytest.mark.parametrize(
  'path', MODULES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_downwards(path):
  room = room_of(path)
  if room is None:
    assert not rooms_imported(path)
    return
  for other in rooms_imported(path) - {room}:
    # main sets the process up before anything heavy is loaded, and so has to
    # know config and errors itself; it is above all anyway.
    assert LEVELS[other] < LEVELS[room], f'{room} imports {other}'
  foreign = {name.split('.')[0] for name in imported(path)}
  assert not foreign & {'configs', 'experiments', 'tests', 'colab'}
  assert not foreign & {'tensorflow', 'torch'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.name)
def test_configs_are_data(path):
  # What the schema is made of; experiments see the schema only.
  parts = {
    'values.py': {'math', 'typing'},
    'mechanisms.py': {'configs.values'},
    'common.py': {
      *('configs', 'configs.keys', 'configs.mechanisms'),
      *('configs.published', 'configs.values', 'typing'),
    },
    'keys.py': set(),
    'published.py': set(),
    'recipes.py': {'collections.abc', 'configs.common'},
    # One task at several sizes.
    **{
      f'lra_pathfinder{size}.py': {'configs.common', 'configs.lra_pathfinder32'}
      for size in (64, 128, 256)
    },
    # A run and a recipe.
    'compress_lra_text.py': {
      *('configs', 'configs.common', 'configs.lra_text', 'configs.recipes'),
    },
    'compress_minilm.py': {
      *('configs', 'configs.common', 'configs.similarity', 'configs.sentence'),
      *('configs.pair', 'configs.recipes'),
    },
  }
  allowed = {'ml_collections', *parts.get(path.name, {'configs.common'})}
  modules = {
    name if name in allowed else name.rpartition('.')[0]
    for name in imported(path)
  }
  assert modules <= allowed


@pytest.mark.parametrize(
  'path', MODULES + CONFIGS, ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_small_and_say_what_they_are(path):
  text = path.read_text()
  assert len(text.splitlines()) <= MAX_LINES
  assert ast.get_docstring(ast.parse(text)), 'a module needs a docstring'


def test_only_one_loop():
  """One place runs training steps; features enter it as values."""
  callers = [
    path.name
    for path in MODULES
    if any(
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Attribute)
      and node.func.attr == 'train_step'
      for node in ast.walk(ast.parse(path.read_text()))
    )
  ]
  assert callers == ['loop.py']


def test_reports_need_no_jax():
  program = (
    'import sys, effformer.report.__main__; assert "jax" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr


def test_importing_does_nothing():
  """No device, output, flag, TensorFlow or torch: read in a new process."""
  names = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in MODULES
    if path.name not in ('__init__.py', '__main__.py')
  ]
  program = f"""
import importlib, sys
from absl import flags
for name in {names!r}:
  importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge._backends, 'a device was touched'
assert not {{'tensorflow', 'torch'}} & set(sys.modules)
modules = flags.FLAGS.flags_by_module_dict()
assert not [m for m in modules if m.startswith('effformer')]
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == ''


@pytest.mark.parametrize(
  'path', MODULES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_that_is_read_is_executed(path):
  """Hostile files find no pickle, no eval, no unpacking.

  A config file is Python and is run as such (`config._import_file`).
  """
  executing = {
    'pickle',
    'cPickle',
    'dill',
    'marshal',
    'shelve',
    'joblib',
    'yaml',
  }
  assert not executing & {name.split('.')[0] for name in imported(path)}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
      assert name not in {'eval', 'exec', 'extractall', 'extract', '__import__'}
      allowed = {k.arg: k.value for k in node.keywords}.get('allow_pickle')
      assert allowed is None or allowed.value is False
