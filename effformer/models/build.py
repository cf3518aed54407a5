"""From a config to a model: the only place that reads `model.*`, `mixer.*`."""

import jax.numpy as jnp
import ml_collections

from effformer import attention, errors
from effformer.models import classifier, embedder, encoder, predictor, trunk

KINDS = ('embedder', 'classifier', 'pair_classifier', 'predictor')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def layer_configs(
  config: ml_collections.ConfigDict, *, causal: bool = False
) -> tuple[encoder.LayerConfig, ...]:
  """Broadcasts the facts of `model` and `mixer` and applies `model.layers`.

  Args:
    config: the whole config.
    causal: whether tokens see only themselves and earlier ones.
  """
  model = config.model
  common = {
    'num_heads': model.num_heads,
    'mlp_width': model.mlp_width,
    'activation': model.activation,
    'mlp_rank': model.mlp_rank,
    'bottleneck': model.bottleneck,
    'share': '',
    # 0: what the heads have of the width.
    'head_width': 0,
  }
  members = config.mixer.name.split('+')
  result = []
  for index in range(model.num_layers):
    override = dict(model.layers.get(str(index), {}))
    member = members[index * len(members) // model.num_layers]
    facts = {k: override.pop(k, v) for k, v in common.items()}
    facts['mixer'] = override.pop('mixer', member)
    settings = override
    # Settings of one mechanism mean nothing to another.
    if facts['mixer'] == member:
      known = attention.settings(member)
      own = {k: v for k, v in config.mixer.items() if k in known}
      settings = {**own, **override}
    result.append(_layer_config(config, facts, settings, causal))
  return tuple(result)


def _layer_config(config, facts, settings, causal):
  model = config.model
  known = attention.settings(facts['mixer'])
  qkv_width = model.qkv_width or facts['bottleneck'] or model.width
  ids_per_token = trunk.ids_per_token(
    model.front_end, model.patch_size, model.channels
  )
  common = {
    'num_heads': facts['num_heads'],
    'use_bias': model.attention_bias,
    'head_width': facts['head_width'] or qkv_width // facts['num_heads'],
    'dropout': model.attention_dropout,
    'rotary': model.position == 'rotary',
    'max_length': (
      config.data.max_length // ids_per_token
      + (model.pooling == 'cls')
      + model.extra_tokens
    ),
  }
  settings |= {name: common[name] for name in common if name in known}
  if causal:
    if not attention.TABLE[facts['mixer']].supports.causal:
      raise errors.ConfigError(
        f'{facts["mixer"]} is not defined for causal models.\n'
        f'Those that are: {", ".join(causal_mechanisms())}.'
      )
    if 'causal' in known:
      settings['causal'] = True
  return encoder.LayerConfig(
    mixer=facts['mixer'],
    settings=tuple(sorted(settings.items())),
    mlp_width=facts['mlp_width'],
    activation=facts['activation'],
    conv_width=model.conv_width,
    mlp_chunk=model.mlp_chunk,
    share=facts['share'],
    causal=causal,
    mlp_rank=facts['mlp_rank'],
    bottleneck=facts['bottleneck'],
  )


def causal_mechanisms() -> list[str]:
  """The rows of the table of mechanisms that can be causal."""
  return [name for name, row in attention.TABLE.items() if row.supports.causal]


def stream_refusal(
  config: ml_collections.ConfigDict, num_tokens: int = 0
) -> str:
  """Why a causal model cannot read so many tokens as a stream, '' if it can."""
  if config.model.extra_tokens:
    return f'model.extra_tokens={config.model.extra_tokens} have no stream'
  for layer in layer_configs(config, causal=True):
    supports = attention.TABLE[layer.mixer].supports
    if not supports.streaming:
      return f'{layer.mixer} has no stream'
    if supports.needs_length and num_tokens > config.data.max_length:
      return _too_long(num_tokens, config, f'that {layer.mixer} was made for')
  if config.model.position == 'learned' and num_tokens > config.data.max_length:
    return _too_long(num_tokens, config, 'whose positions were learnt')
  return ''


def _too_long(num_tokens, config, what):
  return (
    f'{num_tokens} tokens are more than the {config.data.max_length} {what}'
  )


def sequence_classifier(
  config: ml_collections.ConfigDict, vocabulary_size: int, num_classes: int
) -> classifier.Classifier:
  """The classifier that `config` describes."""
  return classifier.Classifier(
    **_trunk(config, vocabulary_size), **_head(config, num_classes)
  )


def pair_classifier(
  config: ml_collections.ConfigDict, vocabulary_size: int, num_classes: int
) -> classifier.PairClassifier:
  """The classifier of pairs that `config` describes."""
  return classifier.PairClassifier(
    pair_head=config.model.pair_head,
    **_trunk(config, vocabulary_size),
    **_head(config, num_classes),
  )


def token_predictor(
  config: ml_collections.ConfigDict, vocabulary_size: int, *, causal: bool
) -> predictor.Predictor:
  """The predictor of tokens on the trunk that `config` describes."""
  return predictor.Predictor(
    token_head=config.model.token_head,
    head_activation=config.model.activation,
    **_trunk(config, vocabulary_size, causal=causal),
  )


def of_kind(
  kind: str,
  config: ml_collections.ConfigDict,
  vocabulary_size: int,
  num_classes: int = 0,
  *,
  causal: bool = False,
) -> trunk.Trunk:
  """The network of a kind.

  Args:
    kind: of `KINDS`.
    config, vocabulary_size: see the functions of these.
    num_classes: of a classifier.
    causal: of embedders and predictors.
  """
  if kind == 'classifier':
    return sequence_classifier(config, vocabulary_size, num_classes)
  if kind == 'pair_classifier':
    return pair_classifier(config, vocabulary_size, num_classes)
  if kind == 'predictor':
    return token_predictor(config, vocabulary_size, causal=causal)
  if kind == 'embedder':
    return text_embedder(config, vocabulary_size, causal=causal)
  raise ValueError(f'no kind of model {kind!r}')


def text_embedder(
  config: ml_collections.ConfigDict, vocabulary_size: int, *, causal: bool
) -> embedder.Embedder:
  """Vectors of texts, of the trunk that `config` describes."""
  return embedder.Embedder(**_trunk(config, vocabulary_size, causal=causal))


def _head(config, num_classes):
  return dict(
    num_classes=num_classes,
    head_width=config.model.head_width,
    head_activation=config.model.head_activation,
  )


def _trunk(config, vocabulary_size, *, causal=False):
  model = config.model
  return dict(
    vocabulary_size=vocabulary_size,
    width=model.width,
    layers=layer_configs(config, causal=causal),
    max_length=config.data.max_length,
    front_end=model.front_end,
    patch_size=model.patch_size,
    channels=model.channels,
    embedding_width=model.embedding_width,
    position='none' if model.position == 'rotary' else model.position,
    token_types=model.token_types,
    embedding_norm=model.embedding_norm,
    zero_is_padding=model.zero_is_padding,
    pooling=model.pooling,
    norm_order=model.norm_order,
    norm=model.norm,
    norm_epsilon=model.norm_epsilon,
    dropout=model.dropout,
    dtype=DTYPES[model.dtype],
    remat=model.remat,
    reversible=model.reversible,
    layer_drop=model.layer_drop,
    extra_tokens=model.extra_tokens,
  )
