"""The table of data sets that effformer can prepare, and what they need."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping

from effformer.data import (
  aan,
  archives,
  builders,
  cifar,
  files,
  images,
  imdb,
  listops,
  listops_release,
  pathfinder_release,
  rows,
  sentence_pairs,
)


@dataclasses.dataclass(frozen=True)
class Known:
  """A data set that effformer can prepare.

  Attributes:
    builder: prepares the real data; None where there are own files only.
    origin: what they are, for the screen.
    num_classes: number of labels; 1 where they are no classes, but count for
      nothing or are quantities.
    label_names: names of the labels, or ().
    stand_in: builder of a generated stand-in, or None.
    archive: the official archive, or None.
    release: files of the release of LRA that are needed, or ().
    faults: (folder of the release) -> what is wrong with it, a line each.
    no_faults: what holds for a release without faults, for the screen.
    check_text: raises DataError for a text that is not of this task.
    clean_text: what an --input stands for, where that is not itself.
    read_rows: reads own data; see `files.load_files`.
    side: of the images, in pixels; 0 where the examples are texts.
    has_documents: whether own texts may stand in a file of their own;
      `read_rows` is then a function of its path.
    generated: builder of the same kind of data by our own generator, which is
      taken where the release is not there; no stand-in, but named.
    generated_origin: what those are, for the screen.
    is_slow: whether generating them takes many minutes.
    counts: split to the number of its official examples, where it is known.
  """

  builder: type | None
  origin: str
  num_classes: int
  label_names: tuple[str, ...] = ()
  stand_in: type | None = None
  archive: archives.Archive | None = None
  release: tuple[str, ...] = ()
  generated: type | None = None
  generated_origin: str = ''
  is_slow: bool = False
  faults: Callable[[pathlib.Path], Iterator[str]] | None = None
  no_faults: str = ''
  check_text: files.CheckText | None = None
  clean_text: Callable[[bytes], bytes] | None = None
  read_rows: Callable = rows.of_texts
  side: int = 0
  has_documents: bool = False
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _pathfinder_faults(size: int, folder: pathlib.Path) -> Iterator[str]:
  hard = folder / f'pathfinder{size}' / pathfinder_release.HARD
  return pathfinder_release.faults(hard, size)


_TEXTS = 'IMDb reviews (Maas et al., 2011)'
_IMDB = Known(
  builder=builders.EffformerText,
  origin=f'{_TEXTS} as bytes',
  num_classes=2,
  label_names=imdb.LABEL_NAMES,
  stand_in=builders.EffformerTextStandIn,
  archive=imdb.ARCHIVE,
  counts={'test': 2 * imdb.PER_CLASS},
)
_PAIRS = Known(
  builder=builders.EffformerRetrieval,
  origin='pairs of ACL papers as bytes (release of LRA)',
  num_classes=2,
  label_names=('apart', 'cited'),
  stand_in=builders.EffformerRetrievalStandIn,
  release=tuple(aan.FILES.values()),
  faults=aan.faults,
  no_faults=(
    'every row is whole, no pair occurs twice, and each paper has one text'
  ),
  counts=aan.COUNTS,
  read_rows=aan.of_pairs,
  has_documents=True,
)
KNOWN = {
  'listops': Known(
    builder=builders.EffformerListopsRelease,
    generated=builders.EffformerListops,
    generated_origin=f'ListOps, LRA rule, seed {builders.LISTOPS_SEED}',
    origin='ListOps (release of LRA)',
    num_classes=listops.NUM_CLASSES,
    release=tuple(listops_release.FILES.values()),
    faults=listops_release.faults,
    no_faults='every row has its value, no expression occurs twice',
    check_text=listops.check,
    clean_text=listops_release.expression,
  ),
  'text': _IMDB,
  'language': dataclasses.replace(
    _IMDB,
    origin=f'{_IMDB.origin}, labels not used',
    num_classes=1,
    label_names=(),
    read_rows=rows.of_plain_texts,
  ),
  'image': Known(
    builder=builders.EffformerImage,
    origin='CIFAR-10 in grey (Krizhevsky, 2009), 32 x 32',
    num_classes=len(cifar.LABEL_NAMES),
    label_names=cifar.LABEL_NAMES,
    stand_in=builders.EffformerImageStandIn,
    archive=cifar.ARCHIVE,
    counts={'train': 45_000, 'validation': 5_000, 'test': 10_000},
    side=cifar.SIDE,
    read_rows=images.rows(cifar.SIDE),
  ),
  'retrieval': _PAIRS,
  'sentence': dataclasses.replace(_IMDB, origin=_TEXTS),
  'pair': dataclasses.replace(
    _PAIRS,
    origin='pairs of ACL papers (release of LRA)',
    read_rows=sentence_pairs.read,
    has_documents=False,
  ),
  'similarity': Known(
    builder=None,
    origin='own pairs of sentences with scores',
    num_classes=1,
    stand_in=builders.EffformerSimilarityStandIn,
    read_rows=sentence_pairs.read_scored,
  ),
  **{
    f'pathfinder{size}': Known(
      builder=builders.PATHFINDER_RELEASE[size],
      generated=builders.PATHFINDER_GENERATED[size],
      generated_origin=(
        f'Pathfinder, {size} x {size}, hard, by our generator, seed '
        f'{builders.PATHFINDER_SEED}, not the images of the release'
      ),
      is_slow=True,
      origin=f'Pathfinder, {size} x {size}, hard (release of LRA)',
      num_classes=2,
      label_names=('apart', 'joined'),
      release=tuple(
        f'pathfinder{size}/{pathfinder_release.HARD}/{part}'
        for part in ('imgs', 'metadata')
      ),
      faults=functools.partial(_pathfinder_faults, size),
      no_faults='every image can be read, and no two files are the same',
      side=size,
      read_rows=images.rows(size),
    )
    for size in builders.PATHFINDER_RESOLUTIONS
  },
}
