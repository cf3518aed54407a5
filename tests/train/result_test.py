"""What result.json says of the code, and what people are told of it."""

import os
import subprocess

import jax
import pytest

import effformer
from effformer.train import identity, result


def git(root, *arguments):
  identity = ('-c', 'user.name=tester', '-c', 'user.email=tester@localhost')
  return subprocess.run(
    ['git', '-C', str(root), *identity, *arguments],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A git checkout of one commit, whose `effformer` is the one in use."""
  for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)
  root = tmp_path / 'checkout'
  package = root / 'effformer'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('x = 1\n')
  git(root, 'init', '--quiet')
  git(root, 'add', '.')
  git(root, 'commit', '--quiet', '--message=first')
  monkeypatch.setattr(effformer, '__file__', str(package / '__init__.py'))
  return root


def test_commit_of_a_clean_checkout(checkout):
  (checkout / 'untracked').write_text('')
  name = result.commit()
  assert name == git(checkout, 'rev-parse', 'HEAD')
  assert len(name) == 40


@pytest.mark.parametrize('is_staged', [False, True])
def test_commit_of_a_changed_checkout(checkout, is_staged):
  (checkout / 'effformer' / '__init__.py').write_text('x = 2\n')
  if is_staged:
    git(checkout, 'add', '.')
  head = git(checkout, 'rev-parse', 'HEAD')
  assert result.commit() == f'{head}-dirty'


def test_no_commit_outside_of_a_checkout(tmp_path, monkeypatch):
  file = tmp_path / 'site-packages' / 'effformer' / '__init__.py'
  monkeypatch.setattr(effformer, '__file__', str(file))
  assert result.commit() is None


def test_no_commit_of_a_package_installed_inside_another_checkout(
  checkout, monkeypatch
):
  file = checkout / 'venv' / 'effformer' / '__init__.py'
  file.parent.mkdir(parents=True)
  monkeypatch.setattr(effformer, '__file__', str(file))
  assert result.commit() is None


def test_no_commit_without_git(checkout, monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert result.commit() is None


def test_no_commit_before_the_first(checkout):
  git(checkout, 'update-ref', '-d', 'HEAD')
  assert result.commit() is None


def test_versions_name_what_a_result_depends_on():
  versions = identity.versions()
  assert set(versions) == {'python', 'effformer', *identity.PACKAGES}
  assert versions['jax'] == jax.__version__
  assert versions['effformer'] == effformer.__version__
  assert all(versions.values())


def test_device_has_kind_and_number():
  assert result.device() == 'cpu x 8'


def outcome(**changes):
  return {
    'task': 'text',
    'mechanism': 'local',
    'preset': 'modern',
    'quick': True,
    'seed': 3,
    'steps': 1200,
    'num_params': 1_234_567,
    'stand_in': False,
    'score': 'accuracy',
    'select': 'best',
    'selected_step': 800,
    'validation': {'accuracy': 0.71, 'loss': 0.5, 'count': 1000},
    'test': {'accuracy': 0.6543, 'loss': 0.75, 'count': 25_000},
    'floors': {'bag_of_bytes': 0.6, 'majority': 0.5},
    **changes,
  }


def test_lines_show_the_score_beside_its_floors():
  lines = result.lines(outcome())
  assert lines == [
    'test accuracy       65.43  of 25000 examples, loss 0.7500; real data',
    'validation accuracy 71.00  of 1000 examples, step 800 (best)',
    'floor               50.00  majority',
    'floor               60.00  bag_of_bytes',
    'text, local, preset modern, quick, seed 3, 1,234,567 parameters, '
    '1200 steps',
  ]


def test_lines_name_another_score():
  scores = {
    split: {'pearson': value, 'loss': 0.03, 'count': 5}
    for split, value in (('validation', 0.86958), ('test', -0.0031))
  }
  floors = {'lengths': -0.0042}
  lines = result.lines(outcome(task='similarity', floors=floors, **scores))
  assert lines[:3] == [
    'test pearson        -0.31  of 5 examples, loss 0.0300; real data',
    'validation pearson  86.96  of 5 examples, step 800 (best)',
    'floor               -0.42  lengths',
  ]


def test_lines_name_data_that_is_a_stand_in():
  lines = result.lines(outcome(stand_in=True))
  assert 'STAND-IN' in lines[0]
  assert 'not a score' in lines[0]
  assert 'real data' not in '\n'.join(lines)


def test_lines_of_a_full_run_do_not_say_quick():
  assert 'quick' not in result.lines(outcome(quick=False))[-1]
