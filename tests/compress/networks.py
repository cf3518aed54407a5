"""Tiny networks for these tests, and their inputs."""

import flax.linen as nn
import numpy as np

from effformer.models import classifier, embedder, encoder, predictor
from tests.models.parameters import random_variables

B, T, D, H, K, F, Y, C = 2, 7, 12, 3, 5, 10, 11, 4
LENGTHS_B = np.array([7, 4])
KEEP_BT = np.arange(T)[None] < LENGTHS_B[:, None]
IDS_BT = np.where(KEEP_BT, np.random.default_rng(0).integers(1, Y, (B, T)), 0)
BATCH = (IDS_BT, LENGTHS_B)
KINDS = {
  'classifier': classifier.Classifier,
  'pair_classifier': classifier.PairClassifier,
  'embedder': embedder.Embedder,
  'predictor': predictor.Predictor,
}


def layer(mixer='full', *, mlp_width=F, share='', **settings):
  dense = {'form': 'dense'} if mixer == 'full' else {}
  heads = {} if mixer in ('fnet', 's5') else {'num_heads': H, 'head_width': K}
  return encoder.LayerConfig(
    mixer,
    tuple(sorted({**dense, **heads, **settings}.items())),
    mlp_width=mlp_width,
    share=share,
  )


def network(layers, kind='classifier', **fields):
  """A network and its parameters."""
  if 'classifier' in kind:
    fields['num_classes'] = C
  module = KINDS[kind](
    vocabulary_size=Y, width=D, layers=tuple(layers), max_length=9, **fields
  )
  return module, random_variables(module, *batch_of(kind))['params']


def batch_of(kind):
  """Inputs of a kind: of a pair, another text too."""
  if kind != 'pair_classifier':
    return BATCH
  return (*BATCH, IDS_BT[::-1], LENGTHS_B[::-1])


def entering(module, params, *batch, **keywords):
  """What the encoder is given: vectors of the tokens, and which are real."""
  seen = []

  def watch(call, arguments, keywords, context):
    is_call = context.method_name == '__call__'
    if isinstance(context.module, encoder.Encoder) and is_call:
      seen.append((*arguments, keywords['tokens']))
    return call(*arguments, **keywords)

  with nn.intercept_methods(watch):
    module.apply({'params': params}, *batch, **keywords)
  return seen[0]
