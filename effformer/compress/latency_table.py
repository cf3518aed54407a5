"""Milliseconds of the parts of blocks, measured on this device and kept.

What a layer would cost with fewer heads or columns is not to be had from its
operations: it is measured, of each part alone and once for each form of it, as
a compiled program of its own, all of them in turns (`timing.rounds`). What a
program costs that computes nothing is taken off. The times are kept in a file
beside what they were measured on, and are of no use to another machine.

A block with a bottleneck has three: mixer and feed-forward part are those of a
block of its width, and its two dense layers are a part for themselves.

They are of blocks: what stands outside of them is the same in every plan.
"""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from effformer import durable, shapes, timing
from effformer.errors import CheckpointError
from effformer.models import build
from effformer.models.block import Block, LayerConfig
from effformer.models.bottleneck import Bottleneck
from effformer.models.encoder import Encoder

ROUNDS = 31
BRANCHES = ('mixer', 'mlp')
BOTTLENECK = 'bottleneck'
# What each branch is made of.
_FACTS = {
  'mixer': ('mixer', 'settings', 'conv_width', 'causal'),
  'mlp': ('mlp_width', 'mlp_rank', 'activation', 'mlp_chunk'),
  BOTTLENECK: ('bottleneck',),
}

Table = Mapping[str, float]


class Part(NamedTuple):
  """What is measured.

  Attributes:
    layers: of one block, or of all of an encoder.
    branch: of `BRANCHES` the one of the only block, each with its norm, the
      mixer with its convolution; `BOTTLENECK` for the way into the block and
      back; '' for the whole of the encoder.
    width: D; of the branches in a bottleneck its width.
    norm, norm_order: of the model.
    dtype: name of the compute type.
    batch: rows.
    length: tokens of each, all of them real.
  """

  layers: tuple[LayerConfig, ...]
  branch: str
  width: int
  norm: str
  norm_order: str
  dtype: str
  batch: int
  length: int

  @property
  def facts(self) -> dict[str, Any]:
    """All that its time depends on; parts of the same facts are one."""
    names = _FACTS.get(self.branch, sum(_FACTS.values(), ()))
    layers = [
      {name: getattr(layer, name) for name in names} for layer in self.layers
    ]
    facts = {**self._asdict(), 'layers': layers}
    # As it comes back from a file.
    return json.loads(durable.dumps(facts))

  @property
  def key(self) -> str:
    """The facts in one line."""
    return _line(self.facts)


Measure = Callable[[Sequence[Part]], Sequence[float]]


def parts(
  config: ml_collections.ConfigDict,
  batch: int,
  length: int,
  *,
  causal: bool = False,
) -> list[tuple[Part, ...]]:
  """The mixer and the feed-forward part of each layer, and its bottleneck.

  Args:
    config: of the model; only forms matter.
    batch: rows.
    length: tokens of each row, with those that the model puts before it.
    causal: whether tokens see only themselves and earlier ones.
  """
  layers = build.layer_configs(config, causal=causal)
  return [tuple(_of_layer(config, own, batch, length)) for own in layers]


def measured(parts: Sequence[Part]) -> list[float]:
  """Milliseconds of each beyond those of a program that computes nothing.

  Medians of rounds in which all programs take turns.
  """
  programs = [program(part) for part in parts]
  nothing = {(p.batch, p.length, p.width, p.dtype): None for p in parts}
  found = timing.rounds([*programs, *map(_nothing, nothing)], ROUNDS)
  medians = [1000 * float(np.median(own)) for own in found]
  least = dict(zip(nothing, medians[len(parts) :], strict=True))
  return [
    max(own - least[p.batch, p.length, p.width, p.dtype], 0.0)
    for own, p in zip(medians, parts, strict=False)
  ]


def table(
  parts: Iterable[Part],
  path: str | pathlib.Path,
  *,
  measure: Measure = measured,
) -> dict[str, float]:
  """Milliseconds by `Part.key`, of these parts.

  What the file has of this machine is taken from there; the rest is measured
  and put into it, beside what it has of other machines.

  Args:
    parts: in any order; of those that are the same one is measured.
    path: of the file, which need not be there.
    measure: parts -> milliseconds.

  Raises:
    CheckpointError: the file is damaged, is no such table, or cannot be
      written.
  """
  path, own = pathlib.Path(path), machine()
  tables = _read(path)
  known = tables.setdefault(_line(own), {})
  wanted = {part.key: part for part in parts}
  missing = [part for key, part in wanted.items() if key not in known]
  if missing:
    times = [float(ms) for ms in measure(missing)]
    for part, ms in zip(missing, times, strict=True):
      known[part.key] = ms
    durable.replace(path, _written(tables))
  return {key: known[key] for key in wanted}


def predicted(parts: Iterable[Part], table: Table) -> float:
  """Milliseconds of parts that run one after another."""
  return sum(table[part.key] for part in parts)


def predicted_and_measured(
  config: ml_collections.ConfigDict,
  batch: int,
  length: int,
  path: str | pathlib.Path,
  *,
  causal: bool = False,
  measure: Measure = measured,
) -> tuple[float, float]:
  """Milliseconds of all blocks: the sum of the table, and of them as a whole.

  Args:
    config: of the model, such as the smaller one of a plan.
    batch, length, causal: see `parts`.
    path, measure: see `table`.

  Raises:
    CheckpointError: see `table`.
  """
  every = sum(parts(config, batch, length, causal=causal), ())
  found = table(every, path, measure=measure)
  layers = build.layer_configs(config, causal=causal)
  (whole,) = measure([_part(config, layers, '', batch, length)])
  return predicted(every, found), float(whole)


def machine() -> dict[str, Any]:
  """What times depend on beside the part."""
  processors = getattr(os, 'sched_getaffinity', lambda _: ())(0)
  return {
    'device': jax.devices()[0].device_kind,
    'processor': _processor(),
    'threads': len(processors) or os.cpu_count(),
    'flags': os.environ.get('XLA_FLAGS', ''),
    'jax': jax.__version__,
    'jaxlib': jax.lib.__version__,
  }


def program(part: Part) -> Callable[[], jax.Array]:
  """() -> what the compiled part gives, of random inputs and parameters."""
  common = {
    **{'norm': part.norm, 'norm_order': part.norm_order},
    'dtype': build.DTYPES[part.dtype],
  }
  keywords = {'deterministic': True}
  if part.branch == BOTTLENECK:
    (layer,) = part.layers
    module = Bottleneck(layer.bottleneck, part.width, **common)
  elif part.branch:
    (layer,) = part.layers
    module = Block(layer, **common)
    keywords['branch'] = part.branch
  else:
    module = Encoder(part.layers, unrolled=True, **common)

  def all_of(lengths_B):
    if part.branch == BOTTLENECK:
      return keywords
    tokens = shapes.Tokens.from_lengths(lengths_B, part.length)
    return {**keywords, 'tokens': tokens}

  def run(params, x_BTD, lengths_B):
    found = module.apply({'params': params}, x_BTD, **all_of(lengths_B))
    return found[0] if part.branch in BRANCHES else found

  x_BTD = _inputs(part.batch, part.length, part.width, part.dtype)
  lengths_B = np.full(part.batch, part.length, np.int32)
  form = jax.eval_shape(
    lambda x_BTD, lengths_B: module.init(
      jax.random.key(0), x_BTD, **all_of(lengths_B)
    ),
    x_BTD,
    lengths_B,
  )
  generator = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: generator.normal(0, 0.05, leaf.shape).astype(leaf.dtype),
    form['params'],
  )
  arguments = jax.device_put((params, x_BTD, lengths_B))
  compiled = jax.jit(run).lower(*arguments).compile()
  return lambda: compiled(*arguments)


def _nothing(form):
  x_BTD = jax.device_put(_inputs(*form))
  compiled = jax.jit(lambda x_BTD: x_BTD + 1).lower(x_BTD).compile()
  return lambda: compiled(x_BTD)


def _inputs(batch, length, width, dtype):
  x_BTD = np.random.default_rng(1).normal(size=(batch, length, width))
  return x_BTD.astype(build.DTYPES[dtype])


def _of_layer(config, layer, batch, length):
  sizes, width = (batch, length), layer.bottleneck
  inner = dataclasses.replace(layer, bottleneck=0)
  for branch in BRANCHES:
    part = _part(config, (inner,), branch, *sizes)
    yield part._replace(width=width or part.width)
  if width:
    yield _part(config, (layer,), BOTTLENECK, *sizes)


def _part(config, layers, branch, batch, length):
  model = config.model
  return Part(
    *(layers, branch, model.width, model.norm, model.norm_order, model.dtype),
    *(batch, length),
  )


def _processor():
  """Its name; CPUs are all of one kind to JAX."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  names = [line.partition(': ')[2] for line in lines if 'model name' in line]
  return names[0] if names else platform.processor()


def _line(facts):
  return json.dumps(facts, sort_keys=True)


def _read(path):
  """What the file has: line of a machine -> line of a part -> milliseconds."""
  rows = (durable.read_json(path) or {'machines': []}).get('machines')
  try:
    tables = {
      _line(row['machine']): {
        _line(own['part']): _time(own['milliseconds']) for own in row['times']
      }
      for row in rows
    }
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise CheckpointError(
      f'{path} is no table of latencies.\nDelete it, or give another file: the '
      'table is then measured anew.'
    ) from error
  return tables


def _time(value):
  if not (isinstance(value, float | int) and 0 <= value < float('inf')):
    raise ValueError(value)
  return float(value)


def _written(tables):
  rows = [
    {
      'machine': json.loads(machine),
      'times': [
        {'part': json.loads(key), 'milliseconds': ms}
        for key, ms in times.items()
      ],
    }
    for machine, times in tables.items()
  ]
  return (durable.dumps({'machines': rows}, indent=1) + '\n').encode()
