"""Lines for norms: the least squares of each channel, place by place."""

import functools

import numpy as np
import pytest

from effformer.compress import affine
from effformer.compress.distill.capture import capture
from tests.compress.networks import (
  IDS_BT,
  LENGTHS_B,
  D,
  layer,
  network,
)

EPSILON = 0.1
BATCHES = [(IDS_BT, LENGTHS_B), (IDS_BT[:, ::-1] % 5 + 1, np.array([3, 7]))]


@functools.cache
def model_of(norm_order='pre', share=('', ''), **fields):
  layers = [layer(share=name) for name in share]
  module, params = network(
    layers, norm_order=norm_order, norm_epsilon=EPSILON, **fields
  )
  rng = np.random.default_rng(3)
  for block in params['encoder'].values():
    for name in ('norm_mixer', 'norm_mlp'):
      if name in block:
        block[name] = drawn(rng)
  return module, params


def drawn(rng):
  return {
    'scale': rng.normal(size=D).astype('f4'),
    'bias': rng.normal(size=D).astype('f4'),
  }


def by_hand(norm, inputs):
  """polyfit of each channel, over the real tokens of all batches."""
  x_LD = np.concatenate(inputs).astype('f8')
  off_LD = x_LD - x_LD.mean(-1, keepdims=True)
  y_LD = off_LD / np.sqrt((off_LD**2).mean(-1, keepdims=True) + EPSILON)
  y_LD = y_LD * norm['scale'] + norm['bias']
  lines = [np.polyfit(x_LD[:, d], y_LD[:, d], 1) for d in range(D)]
  return np.stack(lines, axis=1)


def states(module, params):
  """What enters each block, real tokens only, batch by batch."""
  found = []
  for ids_BT, lengths_B in BATCHES:
    seen = capture(module, params, ids_BT, lengths_B)
    found.append([np.asarray(x)[seen.keep_BT] for x in seen.states])
  return list(zip(*found, strict=True))


def test_lines_are_the_least_squares_of_all_batches():
  module, params = model_of()
  lines = affine.fit(module, params, BATCHES)
  blocks = {
    f'encoder/layer_{i}/{x}' for i in (0, 1) for x in ('norm_mixer', 'norm_mlp')
  }
  assert set(lines) == {*blocks, 'encoder/norm_out'}
  inputs = states(module, params)
  encoder = params['encoder']
  for place, norm, own in (
    ('encoder/layer_0/norm_mixer', encoder['layer_0']['norm_mixer'], inputs[0]),
    ('encoder/layer_1/norm_mixer', encoder['layer_1']['norm_mixer'], inputs[1]),
    ('encoder/norm_out', encoder['norm_out'], inputs[2]),
  ):
    np.testing.assert_allclose(
      lines[place], by_hand(norm, own), rtol=1e-3, atol=1e-4
    )


def test_layers_that_share_have_one_line():
  module, params = model_of(share=('a', 'a'))
  lines = affine.fit(module, params, BATCHES)
  assert set(lines) == {
    'encoder/norm_out',
    *(f'encoder/shared_a/{x}' for x in ('norm_mixer', 'norm_mlp')),
  }
  first, second, _ = states(module, params)
  norm = params['encoder']['shared_a']['norm_mixer']
  np.testing.assert_allclose(
    lines['encoder/shared_a/norm_mixer'], by_hand(norm, [*first, *second]),
    rtol=1e-3, atol=1e-4,
  )  # fmt: skip


def test_norms_outside_of_blocks():
  module, params = model_of(
    'post', kind='predictor', embedding_norm=True, token_head='transformed'
  )
  lines = affine.fit(module, params, BATCHES)
  assert {'norm_in', 'head_norm'} < set(lines)
  assert 'encoder/norm_out' not in lines
  table_YD = np.asarray(params['embedding']['embedding'])
  inputs = [
    table_YD[ids_BT][np.arange(ids_BT.shape[1]) < lengths_B[:, None]]
    for ids_BT, lengths_B in BATCHES
  ]
  np.testing.assert_allclose(
    lines['norm_in'], by_hand(params['norm_in'], inputs), rtol=1e-3, atol=1e-4
  )


def test_a_channel_that_is_always_the_same():
  module, params = model_of(kind='embedder')
  table_YD = np.array(params['embedding']['embedding'])
  table_YD[:, 3] = 0.7
  params = {**params, 'embedding': {'embedding': table_YD}}
  line = affine.fit(module, params, BATCHES)['encoder/layer_0/norm_mixer']
  assert line.scale_D[3] == 0
  assert np.isfinite(line).all()


def test_lines_of_norms_that_are_lines():
  module, params = model_of(norm='affine')
  lines = affine.fit(module, params, BATCHES)
  norm = params['encoder']['layer_1']['norm_mlp']
  line = lines['encoder/layer_1/norm_mlp']
  np.testing.assert_allclose(line.scale_D, norm['scale'], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(line.bias_D, norm['bias'], rtol=1e-4, atol=1e-4)


def test_no_batches():
  module, params = model_of()
  with pytest.raises(ValueError, match='at least one batch'):
    affine.fit(module, params, [])
