"""Which layer of the teacher each layer of the student is compared with.

Layers are counted from 0. Hidden states are counted from the input of the
first layer, so that layer m makes state m + 1; the inputs of the first layers
are always compared with each other (TinyBERT, Jiao et al. 2020, 1909.10351,
section 3: g(0) = 0).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from effformer.errors import ConfigError

KINDS = ('uniform', 'first', 'last', 'kept')


class LayerMap(NamedTuple):
  """A map of layers.

  Attributes:
    layers: for each layer of the student the one of the teacher, or None for
      one that is compared with nothing.
    num_teacher: layers of the teacher.
  """

  layers: tuple[int | None, ...]
  num_teacher: int

  @property
  def pairs(self) -> tuple[tuple[int, int], ...]:
    """(layer of the student, layer of the teacher): of mixers, attention."""
    return tuple(
      (own, other) for own, other in enumerate(self.layers) if other is not None
    )

  @property
  def states(self) -> tuple[tuple[int, int], ...]:
    """(state of the student, state of the teacher): of hidden states."""
    return ((0, 0), *((own + 1, other + 1) for own, other in self.pairs))

  def table(self) -> Iterator[str]:
    """One line a layer of the student."""
    yield '  student      teacher       hidden states'
    yield f'  {"input":<12} {"input":<12}  0 -> 0'
    for own, other in enumerate(self.layers):
      if other is None:
        yield f'  layer {own:<6} {"-":<12}  -'
      else:
        yield f'  layer {own:<6} layer {other:<6}  {own + 1} -> {other + 1}'


def layer_map(
  kind: str | Sequence[int | None],
  num_student: int,
  num_teacher: int,
  kept: Sequence[int] = (),
) -> LayerMap:
  """The map of a kind.

  Args:
    kind: one of
      'uniform': with r = N / M layer m has m r + r - 1 (TinyBERT; state m has
        state m r), where r is whole;
      'first': layer m has m;
      'last': layer m has m + N - M;
      'kept': layer m has the one that it was made of, `kept[m]`;
      or the layer of the teacher for each one of the student, None for no such
      layer: (None, None, 11) compares last layers only, as MiniLM does.
    num_student, num_teacher: M and N.
    kept: of 'kept', layers of the teacher in ascending order.

  Raises:
    ConfigError: there is no such map.
  """
  if num_student < 1 or num_teacher < 1:
    raise ConfigError(
      f'a map from {num_student} layers to {num_teacher} compares nothing; '
      'both networks need at least 1.'
    )
  if kept and kind != 'kept':
    raise ConfigError(
      f'kept layers {tuple(kept)} are of the map kept, not of {kind!r}.'
    )
  if not isinstance(kind, str):
    return LayerMap(
      _checked(tuple(kind), num_student, num_teacher, str(kind)), num_teacher
    )
  if kind not in KINDS:
    raise ConfigError(
      f'no layer map {kind!r}; there are {", ".join(KINDS)}, or the layer of '
      'the teacher for each layer of the student.'
    )
  if kind == 'kept':
    if list(kept) != sorted(set(kept)):
      raise ConfigError(
        f'kept layers {tuple(kept)} must ascend, each once: layers that are '
        'kept stay in order.'
      )
    layers = tuple(kept)
  elif kind == 'uniform':
    ratio, rest = divmod(num_teacher, num_student)
    if rest:
      raise ConfigError(
        f'the layer map uniform needs as many layers of the teacher, '
        f'{num_teacher}, as divide into {num_student} equal parts.\n'
        'Give the layers by number.'
      )
    layers = tuple(m * ratio + ratio - 1 for m in range(num_student))
  else:
    first = num_teacher - num_student if kind == 'last' else 0
    layers = tuple(range(first, first + num_student))
  return LayerMap(_checked(layers, num_student, num_teacher, kind), num_teacher)


def _checked(layers, num_student, num_teacher, what):
  if len(layers) != num_student:
    raise ConfigError(
      f'the layer map {what} has {len(layers)} entries, and the student '
      f'{num_student} layers: give one for each.'
    )
  for layer in layers:
    if layer is not None and layer not in range(num_teacher):
      raise ConfigError(
        f'the layer map {what} names layer {layer}; the teacher has layers 0 '
        f'to {num_teacher - 1}.'
      )
  if all(layer is None for layer in layers):
    raise ConfigError(f'the layer map {what} compares no layer at all.')
  return layers
