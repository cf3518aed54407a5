"""ViT (Dosovitskiy et al. 2021, 2010.11929): a pre-LN encoder of patches.

An image is ids, as everywhere here: id v + 1 for the value v of a pixel's
channel, from 0 to 255, row by row, the channels of a pixel beside each other.
The front end maps v to 2 v / 255 - 1, the published preprocessing (mean and
deviation 0.5).
"""

from collections.abc import Iterator
from typing import Any

from effformer.errors import CheckpointError
from effformer.pretrained import rules
from effformer.pretrained.family import (
  Config,
  Family,
  Head,
  activation,
  fraction,
  heads,
  layers,
  number,
  only,
)
from effformer.pretrained.rules import SAME, Form, Rule

# Of an image that has fewer values than int32 has numbers.
_MAX_SIDE, _MAX_CHANNELS = 1 << 13, 16


def _facts(config: Config) -> dict[str, Any]:
  only(config, 'qkv_bias', True)
  side = number(config, 'image_size', most=_MAX_SIDE)
  patch_size = number(config, 'patch_size')
  if side % patch_size:
    raise CheckpointError(
      f'config.json of the pretrained model has patch_size={patch_size}, which '
      f'does not divide image_size={side}.\nGet the file again.'
    )
  channels = number(config, 'num_channels', most=_MAX_CHANNELS)
  return {
    'data.max_length': side**2 * channels,
    'model.front_end': 'patches',
    'model.patch_size': patch_size,
    'model.channels': channels,
    'model.num_layers': number(config, 'num_hidden_layers'),
    'model.num_heads': heads(config, 'num_attention_heads', 'hidden_size'),
    'model.width': number(config, 'hidden_size'),
    'model.mlp_width': number(config, 'intermediate_size'),
    'model.activation': activation(config, 'hidden_act'),
    'model.position': 'learned',
    'model.pooling': 'cls',
    'model.norm_order': 'pre',
    'model.norm_epsilon': fraction(config, 'layer_norm_eps', 1e-12),
    'model.attention_bias': True,
    'model.dropout': fraction(config, 'hidden_dropout_prob', 0.0),
    'model.attention_dropout': fraction(
      config, 'attention_probs_dropout_prob', 0.0
    ),
  }


def _patches(config: Config) -> Form:
  """[D, C, P, P] -> [P P C, D]."""
  size, channels = number(config, 'patch_size'), number(config, 'num_channels')
  return Form(
    lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
    lambda x: x.reshape(size, size, channels, -1).transpose(3, 2, 0, 1),
  )


_FIRST = Form(lambda x: (x[0],), lambda x: x[None])
_ONLY = Form(lambda x: (x[0, 0],), lambda x: x[None, None])


def _rules(config: Config) -> Iterator[Rule]:
  place = 'embeddings'
  yield Rule(f'{place}.cls_token', ('cls',), _ONLY)
  yield Rule(f'{place}.position_embeddings', ('positions',), _FIRST)
  projection = f'{place}.patch_embeddings.projection'
  yield Rule(f'{projection}.weight', ('values/kernel',), _patches(config))
  yield Rule(f'{projection}.bias', ('values/bias',), SAME)
  num_heads = number(config, 'num_attention_heads')
  for index in layers(config, 'num_hidden_layers'):
    theirs, ours = f'encoder.layer.{index}', f'encoder/layer_{index}'
    names = (
      *(f'{theirs}.attention.attention.{x}' for x in ('query', 'key', 'value')),
      f'{theirs}.attention.output.dense',
    )
    yield from rules.attention(names, f'{ours}/mixer', num_heads)
    yield from rules.norm(f'{theirs}.layernorm_before', f'{ours}/norm_mixer')
    yield from rules.norm(f'{theirs}.layernorm_after', f'{ours}/norm_mlp')
    yield from rules.dense(f'{theirs}.intermediate.dense', f'{ours}/mlp/in')
    yield from rules.dense(f'{theirs}.output.dense', f'{ours}/mlp/out')
  yield from rules.norm('layernorm', 'encoder/norm_out')


VIT = Family(
  prefix='vit.',
  facts=_facts,
  rules=_rules,
  heads={
    'classifier': Head(
      lambda config: {'model.head_width': 0},
      lambda config: rules.dense('classifier', 'head_out'),
    )
  },
  spare=(r'(vit\.)?pooler\.dense\.(weight|bias)', r'classifier\..*'),
  # Values of a pixel's channel, and padding.
  vocabulary_size=257,
)
