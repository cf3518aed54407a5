"""What ties the starts of one run together: its data, and its software."""

import hashlib
import pathlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import effformer
from effformer import durable, errors
from effformer.data import Dataset
from effformer.data.dataset import unloaded
from effformer.train import records, workdir

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def versions() -> dict[str, str]:
  """The versions of what a result depends on."""
  known = {name: metadata.version(name) for name in PACKAGES}
  return {
    'python': platform.python_version(),
    'effformer': effformer.__version__,
    **known,
  }


def other_software(facts: Mapping[str, Any]) -> list[str]:
  """One sentence if a checkpoint was written by other software."""
  now = versions()
  before = facts.get('versions', now)
  changed = [
    f'{name} {before.get(name)} -> {now.get(name)}'
    for name in sorted({*before, *now})
    if before.get(name) != now.get(name)
  ]
  if not changed:
    return []
  return [
    f'the software has changed since ({", ".join(changed)}): the same bytes '
    'are promised on the same software only'
  ]


def of_data(dataset: Dataset) -> dict[str, Any]:
  """What says whether two data sets are the same: content, not place."""
  fingerprints = dict(sorted(dataset.fingerprints.items()))
  text = durable.dumps([dataset.stand_in, fingerprints])
  return {
    'stand_in': dataset.stand_in,
    'fingerprints': fingerprints,
    'sha256': hashlib.sha256(text.encode()).hexdigest(),
  }


def write_data(folder: pathlib.Path, dataset: Dataset) -> None:
  """Writes data.json, which `check_data` and `known_data` read."""
  facts = {**of_data(dataset), 'classes': list(dataset.classes)}
  records.write_json(folder / 'data.json', facts)


def known_data(folder: pathlib.Path, name: str) -> Dataset:
  """What data.json says of the data of a run; the splits themselves are not
  there.

  Raises:
    CheckpointError: it cannot be read, or does not name the classes.
  """
  facts = durable.read_json(folder / 'data.json') or {}
  classes = facts.get('classes')
  if not classes:
    raise errors.CheckpointError(
      f'{folder / "data.json"} does not name the classes of this run.\n'
      'It is of another version: train again with another --workdir.'
    )
  return unloaded(
    name,
    classes,
    stand_in=bool(facts.get('stand_in')),
    fingerprints=facts.get('fingerprints'),
  )


def check_data(folder: pathlib.Path, dataset: Dataset) -> None:
  """Raises DataError if the run in the folder has begun with other data."""
  before = durable.read_json(folder / 'data.json')
  if before is None or not workdir.has_begun(folder):
    return
  now = of_data(dataset)
  if before.get('sha256') == now['sha256']:
    return
  kinds = [
    'a stand-in' if data.get('stand_in') else 'the real data'
    for data in (before, now)
  ]
  differ = [
    split
    for split, value in now['fingerprints'].items()
    if before.get('fingerprints', {}).get(split) != value
  ]
  raise errors.DataError(
    f'the data are not those that the run in {folder} was started with: '
    f'{kinds[0]} then, {kinds[1]} now;\n'
    f'different content in: {", ".join(differ)}.\n'
    'Use another --workdir, or put the data back as they were.'
  )
