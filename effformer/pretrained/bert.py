"""BERT and its relatives: post-LN encoders with learned positions.

BERT (Devlin et al. 2019, 1810.04805; MiniLM has its names), RoBERTa (Liu et
al. 2019, 1907.11692), DistilBERT (Sanh et al. 2019, 1910.01108).
"""

from collections.abc import Iterator
from typing import Any

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
from effformer.pretrained.rules import SAME, Rule

# Rows of RoBERTa's table of positions that no token has: its first position
# comes after the id of padding, 1.
_ROBERTA_OFFSET = 2


def _facts(config: Config) -> dict[str, Any]:
  only(config, 'position_embedding_type', 'absolute')
  only(config, 'is_decoder', False)
  return {
    **_post_norm(
      config,
      num_layers=number(config, 'num_hidden_layers'),
      num_heads=heads(config, 'num_attention_heads', 'hidden_size'),
      width=number(config, 'hidden_size'),
      mlp_width=number(config, 'intermediate_size'),
      act='hidden_act',
    ),
    'model.token_types': number(config, 'type_vocab_size'),
    'model.norm_epsilon': fraction(config, 'layer_norm_eps', 1e-12),
    'model.dropout': fraction(config, 'hidden_dropout_prob', 0.1),
    'model.attention_dropout': fraction(
      config, 'attention_probs_dropout_prob', 0.1
    ),
  }


def _post_norm(config, *, num_layers, num_heads, width, mlp_width, act):
  return {
    'data.max_length': number(config, 'max_position_embeddings'),
    'model.num_layers': num_layers,
    'model.num_heads': num_heads,
    'model.width': width,
    'model.mlp_width': mlp_width,
    'model.activation': activation(config, act),
    'model.position': 'learned',
    'model.norm_order': 'post',
    'model.embedding_norm': True,
    'model.attention_bias': True,
    'model.pooling': 'mean',
  }


def _rules(config: Config, num_unused_positions: int = 0) -> Iterator[Rule]:
  positions = SAME
  if num_unused_positions:
    positions = rules.behind(num_unused_positions)
  place = 'embeddings'
  yield Rule(f'{place}.word_embeddings.weight', ('embedding/embedding',), SAME)
  yield Rule(f'{place}.position_embeddings.weight', ('positions',), positions)
  yield Rule(
    f'{place}.token_type_embeddings.weight', ('types/embedding',), SAME
  )
  yield from rules.norm(f'{place}.LayerNorm', 'norm_in')
  num_heads = number(config, 'num_attention_heads')
  for index in layers(config, 'num_hidden_layers'):
    theirs, ours = f'encoder.layer.{index}', f'encoder/layer_{index}'
    names = (
      *(f'{theirs}.attention.self.{x}' for x in ('query', 'key', 'value')),
      f'{theirs}.attention.output.dense',
    )
    yield from rules.attention(names, f'{ours}/mixer', num_heads)
    yield from rules.norm(
      f'{theirs}.attention.output.LayerNorm', f'{ours}/norm_mixer'
    )
    yield from rules.dense(f'{theirs}.intermediate.dense', f'{ours}/mlp/in')
    yield from rules.dense(f'{theirs}.output.dense', f'{ours}/mlp/out')
    yield from rules.norm(f'{theirs}.output.LayerNorm', f'{ours}/norm_mlp')


def _classifier(config: Config) -> dict[str, Any]:
  return {
    'model.pooling': 'first',
    'model.head_width': number(config, 'hidden_size'),
    'model.head_activation': 'tanh',
  }


def _predictor(config: Config) -> dict[str, Any]:
  del config
  return {'model.token_head': 'transformed'}


def _transformed(dense: str, norm: str, bias: str) -> Iterator[Rule]:
  yield from rules.dense(dense, 'head_in')
  yield from rules.norm(norm, 'head_norm')
  yield Rule(bias, ('head_bias',), SAME)


def _two_layers(first: str, second: str) -> Iterator[Rule]:
  yield from rules.dense(first, 'head_in')
  yield from rules.dense(second, 'head_out')


BERT = Family(
  prefix='bert.',
  facts=_facts,
  rules=_rules,
  heads={
    'classifier': Head(
      _classifier,
      lambda config: _two_layers('bert.pooler.dense', 'classifier'),
    ),
    'predictor': Head(
      _predictor,
      lambda config: _transformed(
        'cls.predictions.transform.dense',
        'cls.predictions.transform.LayerNorm',
        'cls.predictions.bias',
      ),
      copies={
        'cls.predictions.decoder.weight': (
          'bert.embeddings.word_embeddings.weight'
        ),
        'cls.predictions.decoder.bias': 'cls.predictions.bias',
      },
    ),
  },
  spare=(
    r'(bert\.)?embeddings\.position_ids',
    r'(bert\.)?pooler\.dense\.(weight|bias)',
    r'cls\.seq_relationship\.(weight|bias)',
    r'cls\.predictions\..*',
    r'classifier\.(weight|bias)',
  ),
)


def _roberta_facts(config: Config) -> dict[str, Any]:
  only(config, 'pad_token_id', 1)
  facts = _facts(config)
  num_rows = number(config, 'max_position_embeddings', _ROBERTA_OFFSET + 1)
  facts['data.max_length'] = num_rows - _ROBERTA_OFFSET
  return facts


ROBERTA = Family(
  prefix='roberta.',
  facts=_roberta_facts,
  rules=lambda config: _rules(config, _ROBERTA_OFFSET),
  heads={
    'classifier': Head(
      _classifier,
      lambda config: _two_layers('classifier.dense', 'classifier.out_proj'),
    ),
    'predictor': Head(
      _predictor,
      lambda config: _transformed(
        'lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias'
      ),
      copies={
        'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
        'lm_head.decoder.bias': 'lm_head.bias',
      },
    ),
  },
  spare=(
    r'(roberta\.)?embeddings\.position_ids',
    r'(roberta\.)?pooler\.dense\.(weight|bias)',
    r'lm_head\..*',
    r'classifier\..*',
  ),
)


def _distilbert_facts(config: Config) -> dict[str, Any]:
  only(config, 'sinusoidal_pos_embds', False, True)
  return {
    **_post_norm(
      config,
      num_layers=number(config, 'n_layers'),
      num_heads=heads(config, 'n_heads', 'dim'),
      width=number(config, 'dim'),
      mlp_width=number(config, 'hidden_dim'),
      act='activation',
    ),
    'model.norm_epsilon': 1e-12,
    'model.dropout': fraction(config, 'dropout', 0.1),
    'model.attention_dropout': fraction(config, 'attention_dropout', 0.1),
  }


def _distilbert_rules(config: Config) -> Iterator[Rule]:
  place = 'embeddings'
  yield Rule(f'{place}.word_embeddings.weight', ('embedding/embedding',), SAME)
  yield Rule(f'{place}.position_embeddings.weight', ('positions',), SAME)
  yield from rules.norm(f'{place}.LayerNorm', 'norm_in')
  for index in layers(config, 'n_layers'):
    theirs, ours = f'transformer.layer.{index}', f'encoder/layer_{index}'
    names = (
      *(f'{theirs}.attention.{x}_lin' for x in ('q', 'k', 'v')),
      f'{theirs}.attention.out_lin',
    )
    yield from rules.attention(
      names, f'{ours}/mixer', number(config, 'n_heads')
    )
    yield from rules.norm(f'{theirs}.sa_layer_norm', f'{ours}/norm_mixer')
    yield from rules.dense(f'{theirs}.ffn.lin1', f'{ours}/mlp/in')
    yield from rules.dense(f'{theirs}.ffn.lin2', f'{ours}/mlp/out')
    yield from rules.norm(f'{theirs}.output_layer_norm', f'{ours}/norm_mlp')


DISTILBERT = Family(
  prefix='distilbert.',
  facts=_distilbert_facts,
  rules=_distilbert_rules,
  heads={
    'classifier': Head(
      lambda config: {
        'model.pooling': 'first',
        'model.head_width': number(config, 'dim'),
        'model.head_activation': 'relu',
      },
      lambda config: _two_layers('pre_classifier', 'classifier'),
    ),
    'predictor': Head(
      _predictor,
      lambda config: _transformed(
        'vocab_transform', 'vocab_layer_norm', 'vocab_projector.bias'
      ),
      copies={
        'vocab_projector.weight': (
          'distilbert.embeddings.word_embeddings.weight'
        )
      },
    ),
  },
  spare=(
    r'(distilbert\.)?embeddings\.position_ids',
    r'vocab_.*',
    r'(pre_)?classifier\..*',
  ),
)
