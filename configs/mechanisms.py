"""The mechanisms as configs see them: settings, and their allowed values."""

from configs.values import COUNT, COUNT_OR_NONE, POSITIVE, SEED, Range

# One row per mechanism: the settings that matter to an encoder, as
# `config.mixer.SETTING`, with the defaults of effformer.attention.
MIXERS = {
  # `form`: 'chunked' (memory linear in length), 'dense', or 'fused' (cuDNN's
  # kernel, for half precision on an NVIDIA GPU); `block`: tokens, side of a
  # tile of the chunked form, 0 = chosen.
  'full': {'form': 'chunked', 'block': 0},
  'linear': {},
  # `window`: tokens; the distance to a visible token is less. `block`: tokens,
  # queries in a tile, 0 = chosen.
  'local': {'window': 64, 'block': 0},
  # `rank`: mixtures that stand for all tokens; `mixing`: by 'learned' matrices,
  # means of groups ('pool'), strided filters ('conv'), or weights that are made
  # from the tokens ('dynamic'); `sharing`: of matrices or filters, 'none' (per
  # head, keys and values), 'headwise' (one for keys, one for values) or
  # 'key_value' (one).
  'linformer': {'rank': 64, 'mixing': 'learned', 'sharing': 'key_value'},
  # `attention_window`: tokens, even, neighbours that are seen, half of them on
  # each side; `dilation`: tokens between two of them; `global_tokens`: first
  # tokens of the row, which see and are seen by all; `block`: as of local.
  'longformer': {
    'attention_window': 128,
    'dilation': 1,
    'global_tokens': 1,
    'block': 0,
  },
  # `num_random`: random blocks that each block sees; `block`: tokens, 0 = 64;
  # `seed`: of the random blocks; `global_tokens`: as of longformer, 0 = the
  # first and the last block.
  'bigbird': {'num_random': 3, 'block': 0, 'seed': 0, 'global_tokens': 0},
  # `pattern`: 'strided' (same remainder of the index) or 'fixed' (last tokens
  # of each block); `stride`: tokens, that remainder or block; `columns`:
  # tokens, those last ones; `split_heads`: heads see the surroundings and the
  # others in turn, instead of both.
  'sparse': {
    'pattern': 'fixed',
    'stride': 128,
    'columns': 8,
    'split_heads': False,
  },
  # `features`: 'positive' or 'hyperbolic' (estimates of softmax), or 'relu';
  # `num_features`: of a head; `seed`: of their directions; `redraw_every`:
  # steps after which these are drawn anew, 0 = never.
  'performer': {
    'features': 'positive',
    'num_features': 256,
    'seed': 0,
    'redraw_every': 0,
  },
  # `rank`: landmarks; `iterations`: of their inverse; `conv_width`: taps, odd,
  # of the convolution of the values, 0 = none.
  'nystromformer': {'rank': 64, 'iterations': 6, 'conv_width': 33},
  # `variant`: logits are made of the query ('dense'), are 'random' and
  # trained, or 'random_fixed', or products of two factors, 'factorized_dense'
  # or 'factorized_random' (with `factor_width` columns); `mix_dot_product`:
  # products of queries and keys have a share; `seed`: of the fixed logits;
  # `block`: tokens, queries in a tile, 0 = chosen.
  'synthesizer': {
    'variant': 'factorized_random',
    'mix_dot_product': False,
    'factor_width': 8,
    'seed': 0,
    'block': 0,
  },
  # `unitary`: output of the size of the input, not sqrt(tokens width) times
  # larger.
  'fnet': {'unitary': False},
  # `state_width`: real numbers of state, a multiple of 2 hippo_blocks;
  # `hippo_blocks`: equal blocks of states that each start as a HiPPO-N.
  's5': {'state_width': 128, 'hippo_blocks': 8},
  # `block`: tokens that see each other, 0 = 128; `function`: of the logits,
  # 'softmax' or 'laplace'; `num_averages`: moving averages of each channel;
  # `key_width`; `value_width`: of the only head, 0 = twice the model's.
  'mega': {
    'block': 0,
    'function': 'softmax',
    'num_averages': 16,
    'key_width': 64,
    'value_width': 0,
  },
  # `compress_block`: tokens that become one key; `compress_stride`: tokens
  # from one of these blocks to the next; `block`: tokens of a selected block,
  # 0 = 64; `num_selected`: such blocks that a token sees, 4 of them always;
  # `window`: tokens; the distance to a visible neighbour is less.
  'nsa': {
    'compress_block': 32,
    'compress_stride': 16,
    'block': 0,
    'num_selected': 16,
    'window': 512,
  },
  # `block`: tokens of a chunk, 0 = 64; `num_hashes`: of each token;
  # `num_buckets`: values of a hash, about 2 tokens / block; `seed`: of the
  # hashes; `same_bucket`: keys of other buckets are not seen; `count_once`: a
  # key found by several hashes counts once; `scaled`: logits / sqrt(width).
  'reformer': {
    'block': 0,
    'num_hashes': 2,
    'num_buckets': 32,
    'seed': 0,
    'same_bucket': False,
    'count_once': False,
    'scaled': False,
  },
  # `block`: tokens, 0 = 64; `combine`: sorted and own block in one softmax
  # ('concat') or in two ('sum'); `sortcut`: sorted blocks that all queries see
  # instead, 0 = off; `iterations`: of the sorting; `temperature`: lower is
  # harder sorting; `gumbel`: noise on the sorting in training.
  'sinkhorn': {
    'block': 0,
    'combine': 'concat',
    'sortcut': 0,
    'iterations': 8,
    'temperature': 0.75,
    'gumbel': True,
  },
  # `value_width`: of a head, 0 = twice the keys' (gated_deltanet with `delta`
  # 'plain': the keys'; mamba2: 2 width / num_heads).
  'retnet': {'value_width': 0},
  # `gate_rank`: width between the two matrices that make the decay.
  'gla': {'value_width': 0, 'gate_rank': 16},
  # `delta`: 'gated', or 'plain' (DeltaNet: neither decay nor output gate);
  # `taps`: tokens, length of the short convolution; `max_rate`: largest share
  # of a value that is replaced, to 2.
  'gated_deltanet': {
    'value_width': 0,
    'delta': 'gated',
    'taps': 4,
    'max_rate': 1.0,
  },
  # `num_groups`: of heads that share queries and keys; divides num_heads.
  'mamba2': {'value_width': 0, 'num_groups': 1, 'taps': 4},
}

# What the models of the LRA repository (cd31e5c) are set to where none of its
# configs says otherwise, as far as it has a key here: docs/lra.md has the rest.
LRA_MODELS = {
  # These drop nothing inside, whatever their configs say.
  'linear': {'model.attention_dropout': 0.0},
  'performer': {'model.attention_dropout': 0.0},
  'bigbird': {'model.attention_dropout': 0.0},
  # Nor does this one. Its ten chunks depend on the length of the task.
  'reformer': {
    'model.attention_dropout': 0.0,
    'mixer.num_hashes': 1,
    'mixer.num_buckets': 10,
  },
  # No config that asks for another rank reaches the model.
  'linformer': {'mixer.rank': 16, 'mixer.sharing': 'key_value'},
  # As many keys as in its blocks of 50; a true window, though.
  'local': {'mixer.window': 25},
  'longformer': {'mixer.attention_window': 512, 'mixer.global_tokens': 0},
  'sparse': {'mixer.stride': 50, 'mixer.columns': 10},
  'sinkhorn': {'mixer.block': 50, 'mixer.combine': 'sum'},
  # A table of tokens by tokens for each head: most of the model's parameters.
  'synthesizer': {'mixer.variant': 'random', 'mixer.mix_dot_product': True},
}

# Mechanisms without rotary positions, and the position that the preset
# `modern` uses for them: Linformer mixes tokens before it compares them.
WITHOUT_ROTARY = {
  'linformer': 'sinusoidal',
  'nystromformer': 'sinusoidal',
  'synthesizer': 'sinusoidal',
  'fnet': 'sinusoidal',
  's5': 'sinusoidal',
  'mega': 'sinusoidal',
  'gla': 'sinusoidal',
  'gated_deltanet': 'sinusoidal',
  'mamba2': 'sinusoidal',
}

# Mechanisms that are not defined where a token sees earlier ones only.
WITHOUT_CAUSAL = ('linformer', 'bigbird', 'nystromformer', 'fnet')

# Mechanisms without heads, and so without a width of them.
WITHOUT_HEADS = ('fnet', 's5', 'mega')

# Mechanisms whose heads can share keys and values.
GROUPED = (
  *('full', 'linear', 'local', 'linformer', 'longformer', 'bigbird', 'sparse'),
  *('nystromformer', 'nsa'),
)

# Allowed values of text settings. One name means the same in all mechanisms.
MIXER_CHOICES = {
  'mixer.form': ('dense', 'chunked', 'fused'),
  'mixer.features': ('positive', 'hyperbolic', 'relu'),
  'mixer.combine': ('concat', 'sum'),
  'mixer.pattern': ('strided', 'fixed'),
  'mixer.function': ('softmax', 'laplace'),
  'mixer.delta': ('gated', 'plain'),
  'mixer.sharing': ('none', 'headwise', 'key_value'),
  'mixer.mixing': ('learned', 'pool', 'conv', 'dynamic'),
  'mixer.variant': (
    'dense',
    'random',
    'random_fixed',
    'factorized_dense',
    'factorized_random',
  ),
}

# Allowed values of number settings.
MIXER_RANGES = {
  'mixer.block': COUNT_OR_NONE,
  'mixer.window': COUNT,
  'mixer.attention_window': Range(2, step=2),
  'mixer.dilation': COUNT,
  'mixer.global_tokens': COUNT_OR_NONE,
  'mixer.num_random': COUNT_OR_NONE,
  'mixer.stride': COUNT,
  'mixer.columns': COUNT,
  'mixer.rank': COUNT,
  'mixer.conv_width': Range(1, also=0, step=2),
  'mixer.factor_width': COUNT,
  'mixer.num_features': COUNT,
  'mixer.seed': SEED,
  'mixer.redraw_every': COUNT_OR_NONE,
  'mixer.num_hashes': COUNT,
  'mixer.sortcut': COUNT_OR_NONE,
  'mixer.iterations': COUNT,
  'mixer.temperature': POSITIVE,
  'mixer.num_buckets': Range(2, step=2),
  'mixer.state_width': Range(2, step=2),
  'mixer.hippo_blocks': COUNT,
  'mixer.num_averages': COUNT,
  'mixer.key_width': COUNT,
  'mixer.compress_block': COUNT,
  'mixer.compress_stride': COUNT,
  'mixer.num_selected': Range(4),
  'mixer.value_width': COUNT_OR_NONE,
  'mixer.gate_rank': COUNT,
  'mixer.taps': COUNT,
  'mixer.max_rate': Range(0, 2, open_low=True),
  'mixer.num_groups': COUNT,
}
