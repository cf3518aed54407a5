"""Models whose blocks are narrower than the stream, for tests."""

import numpy as np

from effformer.compress import (
  calibrate,
  tensors,
)
from effformer.compress.artefact import Compressed
from effformer.compress.grid import Grid
from effformer.models import build
from tests.compress.prune.models import (
  CLASSES,
  IDS_BT,
  LENGTHS_B,
  VOCABULARY,
  classifier,
)

D, N, F = 12, 6, 10
KEEP_BT = np.arange(IDS_BT.shape[1])[None] < LENGTHS_B[:, None]
BATCH = (IDS_BT, LENGTHS_B)
ORDERS = ['pre', 'post']
# Of three layers one has another bottleneck and one none.
ROWS = (('1', (('bottleneck', 9),)), ('2', (('bottleneck', 0),)))
NARROW = [f'encoder/layer_{i}/bottleneck/narrow/kernel' for i in (0, 1)]
WIDEN = [f'encoder/layer_{i}/bottleneck/widen/kernel' for i in (0, 1)]
ALIKE = (('1', (('bottleneck', N),)),)


def model_of(order='pre', rows=ROWS, **keys):
  return classifier(
    rows=rows, model__bottleneck=N, model__norm_order=order, **keys
  )


def module_of(model):
  return build.sequence_classifier(model.config, VOCABULARY, CLASSES)


def compressed(model, params):
  return Compressed(
    model.config, 'classifier', VOCABULARY, CLASSES, False, params, '0' * 64
  )


def moments_of(model):
  return calibrate.collect(module_of(model), model.params, [BATCH])


def plan_of(model, bits=4):
  return tensors.uniform_plan(model.params, Grid(bits))


def check_same(model, config, params, atol=1e-5):
  np.testing.assert_allclose(
    model.outputs(config, params), model.outputs(), atol=atol, rtol=0
  )
