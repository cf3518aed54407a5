"""Mega, by a file of transformers 4.40.2, the last ones that have it."""

import importlib.util
import pathlib
import sys
import types
from unittest import mock

import torch
from oracles import common
from oracles.record import record
from oracles.sizes import LENGTHS, D
from transformers import activations

BLOCK, AVERAGES, KEY_WIDTH, VALUE_WIDTH = 6, 3, 5, 10


def files():
  modeling = modeling_mega()
  for file, causal, function in (
    ('mega', False, 'softmax'), ('mega-causal', True, 'softmax'),
    ('mega-laplace', False, 'laplace'),
    ('mega-causal-laplace', True, 'laplace'),
  ):  # fmt: skip
    module = modeling.MegaMovingAverageGatedAttention(
      config_of(causal, function)
    )
    yield gated(file, module, causal, function)


def modeling_mega():
  """The file of transformers 4.40.2, without the library around it."""
  path = pathlib.Path(sys.prefix, 'old/transformers/models/mega')
  around = {
    f'old.{name}': mock.MagicMock()
    for name in (
      'modeling_outputs', 'pytorch_utils', 'utils', 'models.deprecated',
      'models.deprecated._archive_maps', 'models.mega.configuration_mega',
    )
  }  # fmt: skip
  around['old.activations'] = activations
  around['old.modeling_utils'] = types.SimpleNamespace(
    PreTrainedModel=torch.nn.Module
  )
  name = 'old.models.mega.modeling_mega'
  spec = importlib.util.spec_from_file_location(name, path / 'modeling_mega.py')
  module = importlib.util.module_from_spec(spec)
  with mock.patch.dict(sys.modules, around):
    spec.loader.exec_module(module)
  return module


def config_of(causal, function):
  return types.SimpleNamespace(
    hidden_size=D, intermediate_size=VALUE_WIDTH, bidirectional=not causal,
    shared_representation_size=KEY_WIDTH, attention_activation=function,
    activation='silu', dropout_prob=0.0, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0, use_feature_dropout=False,
    normalization_type='layernorm', norm_affine=False, use_chunking=True,
    chunk_size=BLOCK, max_positions=BLOCK, relative_positional_bias='simple',
    ema_projection_size=AVERAGES, truncation=None, is_decoder=causal,
    normalize_before_mega=False,
  )  # fmt: skip


def gated(file, module, causal, function):
  module.norm = torch.nn.Identity()
  with torch.no_grad():
    for number, parameter in enumerate(module.parameters()):
      parameter.copy_(0.6 * common.normal(*parameter.shape, seed=50 + number))
  module.eval()
  mask = torch.ones(BLOCK, BLOCK).tril() if causal else None

  def oracle(x, keep):
    tokens_first = x.transpose(0, 1)
    y = module(tokens_first, keep.float(), mask)[0].transpose(0, 1)
    # Its output has the residual, ours not.
    return y - x

  return record(
    file, 'mega', oracle, params_of(module, causal),
    {'block': BLOCK, 'function': function, 'num_averages': AVERAGES,
     'key_width': KEY_WIDTH, 'value_width': VALUE_WIDTH, 'causal': causal,
     'chunk': 5},
    lengths=LENGTHS, packages=['transformers'],
    source='transformers 4.40.2 MegaMovingAverageGatedAttention',
    note='its output less x, as ours has no residual',
  )  # fmt: skip


def params_of(module, causal):
  ema = module.ema_gate
  params = {
    'skip': ema.residual_weight, 'content': common.dense(module.v_proj),
    'gates': common.dense(module.mx_proj), 'out': common.dense(module.h_proj),
    'scale': module.qk_weight, 'shift': module.qk_bias,
    'relative_bias': module.rel_pos_bias.rel_pos_bias,
  }  # fmt: skip
  for number, side in enumerate(('past', 'future')[: 1 + (not causal)]):
    rows = slice(number * D, (number + 1) * D)
    params |= {
      f'{side}_share': ema.damping_factor[rows, :, 0],
      f'{side}_damping': ema.decay_factor[rows, :, 0],
      f'{side}_drive': ema.ema_expansion_matrix[rows, :, 0],
      f'{side}_read': ema.kernel_projection_matrix[rows],
    }
  return params
