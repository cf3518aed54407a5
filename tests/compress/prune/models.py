"""Tiny models to prune: published ones, and a classifier made from a config."""

import functools
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from effformer import pretrained
from effformer.models import build
from tests.models.build_test import make_config
from tests.models.parameters import random_variables
from tests.pretrained.golden_test import folder_of, golden

VOCABULARY, CLASSES = 11, 3
IDS_BT = np.random.default_rng(5).integers(1, VOCABULARY, (2, 9))
LENGTHS_B = np.array([9, 6])


class Model(NamedTuple):
  """What is pruned, and how it is run."""

  config: ml_collections.ConfigDict
  params: Any
  kind: str
  vocabulary_size: int
  num_classes: int
  causal: bool
  inputs: tuple
  more: dict

  def outputs(self, config=None, params=None, **other):
    """What comes out, with another config, parameters or vocabulary."""
    own = self._replace(**other)
    module = build.of_kind(
      own.kind, config or own.config, own.vocabulary_size, own.num_classes,
      causal=own.causal,
    )  # fmt: skip
    apply = jax.jit(lambda p, *x: module.apply({'params': p}, *x, **own.more))
    return np.asarray(apply(params or own.params, *own.inputs))


@functools.cache
def classifier(mechanism='full', rows=(), **keys):
  """A pre-LN classifier of 3 layers, width 12, 3 heads of 4, 10 columns."""
  config = make_config(
    mechanism,
    {index: dict(row) for index, row in rows},
    **{'model__attention_bias': True, **keys},
  )
  module = build.sequence_classifier(config, VOCABULARY, CLASSES)
  inputs = IDS_BT, LENGTHS_B
  params = random_variables(module, *inputs)['params']
  return Model(
    config, params, 'classifier', VOCABULARY, CLASSES, False, inputs, {}
  )


def published(name, folder):
  """A golden model of tests/pretrained."""
  model, arrays = pretrained.load(folder_of(name, folder)), golden(name)[2]
  more = {'types_BT': arrays['types']} if 'types' in arrays else {}
  return Model(
    model.config, model.params, model.kind, model.vocabulary_size,
    model.num_classes, model.is_causal, (arrays['ids'], arrays['lengths']),
    more,
  )  # fmt: skip


def some(shape, seed=0, least=1):
  """A mask that leaves about half, and at least one."""
  rng = np.random.default_rng(seed)
  mask = rng.random(shape) < 0.5
  mask.ravel()[rng.permutation(mask.size)[:least]] = True
  return mask
