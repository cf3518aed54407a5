"""The README keeps its word: generated blocks, commands and links are real."""

import pathlib
import re

import pytest

from effformer import config, main
from experiments import pathfinder_table, readme_tables, speed_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
COMMANDS = re.findall(r'python -m effformer\.main (--config[^`\n]*)', README)


def test_generated_blocks_are_fresh():
  assert readme_tables.rendered(README) == README, (
    'run: python -m experiments.readme_tables'
  )


def test_the_page_of_speed_is_fresh():
  assert speed_table.TARGET.read_text() == speed_table.rendered(), (
    'run: python -m experiments.speed_table'
  )


def test_the_page_of_pathfinder_is_fresh():
  assert pathfinder_table.TARGET.read_text() == pathfinder_table.rendered(), (
    'run: python -m experiments.pathfinder_table'
  )


def test_the_catalogue_has_a_row_for_every_mechanism():
  for name in readme_tables.attention.TABLE:
    assert f'| [`{name}`]' in README


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_of_the_readme_parse(command):
  words = command.split()
  given = next(w for w in words if w.startswith('--config='))
  overrides, rest = config.split_flags(words)
  built, _ = config.load(str(ROOT / given.removeprefix('--config=')), overrides)
  assert built.mixer.name
  values = main.define_flags()
  assert values(['main', *rest]) == ['main']


def test_links_lead_somewhere():
  for target in re.findall(r'\]\(([^)]+)\)', README):
    if not target.startswith('http'):
      assert (ROOT / target).exists(), target


def test_experiments_that_are_named_exist():
  for name in re.findall(r'python -m (experiments(?:\.\w+)+)', README):
    assert (ROOT / f'{name.replace(".", "/")}.py').exists(), name
