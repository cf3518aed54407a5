"""Data: sources, tokenizers and the deterministic pipeline.

`load` gives a `Dataset`; `train_batches` and `eval_batches` make batches of
its splits, `batch_at` any single one. `read_input` reads a single example.
"""

from effformer.data.aan import MAX_BYTES as MAX_PAIR_BYTES
from effformer.data.catalogue import KNOWN, data_folder, from_config, load
from effformer.data.dataset import SPLITS, Dataset, Example, Source, read_all
from effformer.data.inputs import read_input
from effformer.data.pipeline import (
  Batch,
  Batches,
  batch_at,
  eval_batches,
  example_indices,
  train_batches,
)
from effformer.data.tokenizers import (
  PADDING,
  ByteTokenizer,
  ListOpsTokenizer,
  Tokenizer,
)

__all__ = [
  'KNOWN',
  'MAX_PAIR_BYTES',
  'PADDING',
  'SPLITS',
  'Batch',
  'Batches',
  'ByteTokenizer',
  'Dataset',
  'Example',
  'ListOpsTokenizer',
  'Source',
  'Tokenizer',
  'batch_at',
  'data_folder',
  'eval_batches',
  'example_indices',
  'from_config',
  'load',
  'read_all',
  'read_input',
  'train_batches',
]
