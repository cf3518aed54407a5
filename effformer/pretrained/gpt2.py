"""GPT-2 (Radford et al. 2019): a pre-LN decoder with tied embeddings."""

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


def _facts(config: Config) -> dict[str, Any]:
  only(config, 'scale_attn_weights', True)
  only(config, 'scale_attn_by_inverse_layer_idx', False)
  only(config, 'add_cross_attention', False)
  width = number(config, 'n_embd')
  has_own = config.get('n_inner') is not None
  return {
    'data.max_length': number(config, 'n_positions'),
    'model.num_layers': number(config, 'n_layer'),
    'model.num_heads': heads(config, 'n_head', 'n_embd'),
    'model.width': width,
    'model.mlp_width': number(config, 'n_inner') if has_own else 4 * width,
    'model.activation': activation(config, 'activation_function'),
    'model.position': 'learned',
    'model.norm_order': 'pre',
    'model.norm_epsilon': fraction(config, 'layer_norm_epsilon', 1e-5),
    'model.attention_bias': True,
    'model.pooling': 'mean',
    'model.token_head': 'tied',
    'model.dropout': fraction(config, 'resid_pdrop', 0.1),
    'model.attention_dropout': fraction(config, 'attn_pdrop', 0.1),
  }


def _rules(config: Config) -> Iterator[Rule]:
  yield Rule('wte.weight', ('embedding/embedding',), SAME)
  yield Rule('wpe.weight', ('positions',), SAME)
  num_heads = number(config, 'n_head')
  for index in layers(config, 'n_layer'):
    theirs, ours = f'h.{index}', f'encoder/layer_{index}'
    yield from rules.norm(f'{theirs}.ln_1', f'{ours}/norm_mixer')
    mixer = f'{ours}/mixer'
    for name, part in (('weight', 'kernel'), ('bias', 'bias')):
      paths = tuple(f'{mixer}/{x}/{part}' for x in ('query', 'key', 'value'))
      form = rules.fused_heads(num_heads, has_input=name == 'weight')
      yield Rule(f'{theirs}.attn.c_attn.{name}', paths, form)
    yield Rule(
      f'{theirs}.attn.c_proj.weight',
      (f'{mixer}/out/kernel',),
      rules.untransposed_heads_out(num_heads),
    )
    yield Rule(f'{theirs}.attn.c_proj.bias', (f'{mixer}/out/bias',), SAME)
    yield from rules.norm(f'{theirs}.ln_2', f'{ours}/norm_mlp')
    yield from rules.convolution(f'{theirs}.mlp.c_fc', f'{ours}/mlp/in')
    yield from rules.convolution(f'{theirs}.mlp.c_proj', f'{ours}/mlp/out')
  yield from rules.norm('ln_f', 'encoder/norm_out')


GPT2 = Family(
  prefix='transformer.',
  facts=_facts,
  rules=_rules,
  heads={
    'predictor': Head(
      lambda config: {},
      lambda config: (),
      copies={'lm_head.weight': 'transformer.wte.weight'},
    )
  },
  spare=(
    # Masks, which older files hold.
    r'(transformer\.)?h\.\d+\.attn\.(masked_)?bias',
    r'lm_head\.weight',
  ),
  is_causal=True,
)
