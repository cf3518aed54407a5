"""Every key of the sections, with a neutral value and what it means."""

import ml_collections


def model_keys() -> ml_collections.ConfigDict:
  model = ml_collections.ConfigDict()
  # What training starts from: the folder of a pretrained model, 'package:NAME'
  # or 'hub:OWNER/NAME'; '' = parameters as they are first made. The other keys
  # have to say what it is.
  model.pretrained = ''
  # Blocks of mixer and feed-forward part.
  model.num_layers = 4
  # Width D of tokens between blocks.
  model.width = 256
  # Heads of each mixer; divides qkv_width.
  model.num_heads = 4
  # Biases in the projections of mixers with heads.
  model.attention_bias = False
  # Width of all heads together; 0 = bottleneck, or width without one.
  model.qkv_width = 0
  # Hidden width of the feed-forward part.
  model.mlp_width = 1024
  # Rank of the two matrices of the feed-forward part, each of which is then a
  # product of two; 0 = full. It saves where below k n / (k + n) of [k, n].
  model.mlp_rank = 0
  # Width of what is in a block, below width: a dense layer before the block and
  # one behind it lead there and back (MobileBERT); 0 = width. Heads have their
  # share of it. Not reversible.
  model.bottleneck = 0
  # Hidden width of the classifier; 0 = linear classifier.
  model.head_width = 0
  # Of that hidden layer: 'relu', or 'tanh' (BERT).
  model.head_activation = 'relu'
  # From the output at a token to logits of tokens: 'dense'; 'tied', with the
  # embedding (GPT-2); or 'transformed', tied behind a dense layer (BERT). For
  # task 'language' and for pretrain.
  model.token_head = 'dense'
  # What the classifier of two texts sees of their vectors a and b: 'nli',
  # a, b, a * b and a - b; or 'concat', a and b alone (then the head has one
  # layer more). 'none' = the task has one text, or two in one row (pair).
  model.pair_head = 'none'
  # Compute type, 'float32' or 'bfloat16'; parameters are float32 always.
  model.dtype = 'float32'
  # How an id becomes a vector: by a table ('embedding'), or as a quantity
  # ('continuous', for grey values); or how many quantities do together
  # ('patches' of an image).
  model.front_end = 'embedding'
  # Width of the table of an embedding, which a matrix then brings to width
  # (ALBERT); 0 = width. A tied head has both.
  model.embedding_width = 0
  # For 'patches': pixels of a side of one.
  model.patch_size = 1
  # For 'patches': values of each pixel.
  model.channels = 1
  # Types that tokens are of, each with a learned vector; 0 = none. A task that
  # knows none has type 0 only.
  model.token_types = 0
  # A norm of what enters the first block.
  model.embedding_norm = False
  # Mask grey values of 0 as padding is, as LRA's code does (the ground of
  # Pathfinder); for images.
  model.zero_is_padding = False
  # 'none', 'sinusoidal', 'learned' (both added to the embedding) or 'rotary'
  # (turns queries and keys; see WITHOUT_ROTARY).
  model.position = 'sinusoidal'
  # Norms of blocks, embedding and heads: 'layer'; 'rms', without centring and
  # bias; or 'affine', a scale and a bias without statistics (MobileBERT).
  # Those within mixers stay.
  model.norm = 'layer'
  # Norm before ('pre') or after ('post') each residual branch.
  model.norm_order = 'pre'
  # Added to the variance in each norm.
  model.norm_epsilon = 1e-6
  # What the classifier sees: 'mean' of the row's tokens; the output at a
  # learned token in front ('cls'), or at the row's own 'first'.
  model.pooling = 'mean'
  # Share of activations dropped after embedding and on residual branches.
  model.dropout = 0.0
  # Share of attention weights dropped; of the heads' outputs where there are
  # no weights (linear).
  model.attention_dropout = 0.0
  # Of the feed-forward part: 'gelu' (tanh form), 'gelu_exact', 'quick_gelu'
  # (x sigmoid(1.702 x)), 'relu' or 'relu2' (its square).
  model.activation = 'gelu'
  # Taps, odd, of the depthwise convolution before each mixer; 0 = none.
  model.conv_width = 0
  # Probability of each layer to be left out of a training step, so that the
  # model can lose layers later; not reversible.
  model.layer_drop = 0.0
  # Learned tokens before each row, which pass through all layers with it and
  # are not pooled; 0 = none. Global to bigbird (ETC) and longformer if
  # mixer.global_tokens is the same number, else tokens like the others.
  model.extra_tokens = 0
  # Recompute each block in the backward pass: less memory, a third slower.
  model.remat = False
  # Two residual streams, of which the backward pass makes each layer's inputs
  # from its outputs: activation memory of one layer, whatever the depth, half
  # as slow again. Another model than without; for norm_order 'pre', not remat.
  model.reversible = False
  # Tokens of each row that the feed-forward part works on together: less
  # memory for its hidden layer; 0 = all.
  model.mlp_chunk = 0
  # Facts that differ in layer '0', '1', ...: mixer (name), num_heads,
  # head_width (of queries and keys of one head, else qkv_width / num_heads: so
  # fewer heads are as wide as before), num_kv_heads (heads of keys and values,
  # a divisor of num_heads, else as many; see GROUPED), mlp_width, mlp_rank,
  # bottleneck, activation, share (layers of one group share parameters) and the
  # settings of the layer's mixer. A layer has at least one head and one column
  # of mlp_width: one that is to have neither is left out.
  model.layers = ml_collections.ConfigDict()
  return model


def data_keys() -> ml_collections.ConfigDict:
  data = ml_collections.ConfigDict()
  # Longest row in tokens; longer ones are cut.
  data.max_length = 1024
  # Own files with text and label (.jsonl, .tsv, each also .gz), or images and
  # labels (.npz, or a folder of folders); '' = the task's data.
  data.train = ''
  data.validation = ''
  data.test = ''
  # Of tasks in subwords: a tokenizer.json, or a model that has one, named as in
  # model.pretrained.
  data.tokenizer = ''
  # Own pairs (.tsv: label, id, id, without a header) have their texts here
  # (.jsonl, also .gz, with id and text); '' = in the pairs.
  data.documents = ''
  # Where data is prepared; '' = $TFDS_DATA_DIR or ~/tensorflow_datasets.
  data.directory = ''
  # May generated data take the place of data that cannot be had? The run
  # says so loudly, and result.json has stand_in = true.
  data.stand_in = True
  # Threads that read and tokenise; 0 = in the training thread.
  data.num_threads = 2
  # Batches made ahead of the training step; 0 = none.
  data.prefetch = 4
  # Leave out of an evaluation what does not fill its last batch, as LRA's code
  # does for some tasks.
  data.drop_remainder = False
  # The validation split is the test split, as LRA's code has it for Text, to
  # repeat its figures: what is chosen by it has no test score.
  data.validate_on_test = False
  # Share of bad rows of an own file (0 to 1) above which the run stops.
  data.max_bad_fraction = 0.0
  # Examples used of each split, a fixed random choice; 0 = all.
  data.train_examples = 0
  data.validation_examples = 0
  data.test_examples = 0
  return data


def train_keys() -> ml_collections.ConfigDict:
  train = ml_collections.ConfigDict()
  # Optimiser steps; 0 = none: what the run starts from is scored as it is.
  train.num_steps = 10_000
  # Examples in one step, over all devices and hosts.
  train.batch_size = 32
  # Examples in one evaluation step, over all devices and hosts.
  train.eval_batch_size = 64
  # Peak of 'constant' and 'cosine'; of 'rsqrt' the factor: the peak is
  # learning_rate / sqrt(warmup_steps).
  train.learning_rate = 1e-3
  # After linear warmup: 'constant'; 'rsqrt', ~ 1 / sqrt(step) (LRA); or
  # 'cosine', to 0 at num_steps.
  train.schedule = 'cosine'
  # Steps of linear warmup; 0 = none. A shorter run ends within it.
  train.warmup_steps = 1000
  # Decoupled (AdamW): parameters lose learning_rate * weight_decay a step.
  train.weight_decay = 0.0
  # What decays: 'all' parameters, or 'matrices' (not biases and norms).
  train.decay = 'matrices'
  # Adam: decay rates of the moments per step, and the divisor's addend.
  train.beta1 = 0.9
  train.beta2 = 0.999
  train.epsilon = 1e-8
  # Largest global norm of the gradient; 0 = no clipping.
  train.clip_norm = 0.0
  # Parts that a batch is computed in, one after the other, to save memory;
  # divides batch_size.
  train.accumulate_steps = 1
  # Steps between evaluations of the validation split.
  train.eval_every_steps = 1000
  # Steps between checkpoints.
  train.checkpoint_every_steps = 1000
  # Steps between rows of metrics.jsonl.
  train.log_every_steps = 100
  # Newest checkpoints that are kept; the best is kept beside them.
  train.keep_checkpoints = 2
  # On a NaN or infinite loss: 'abort'; 'skip' the update; or 'rollback' to
  # the last checkpoint and pass over the batches since.
  train.nonfinite = 'abort'
  # Which checkpoint is tested: the 'best' on validation, or the 'last'.
  train.select = 'best'
  return train


def pretrain_keys() -> ml_collections.ConfigDict:
  pretrain = ml_collections.ConfigDict()
  # Optimiser steps of a stage before the training, in which the model learns
  # to guess the tokens of the task's own inputs; 0 = none. The rest is as in
  # `train`.
  pretrain.num_steps = 0
  # What is guessed: hidden tokens ('masked') or the next one ('causal').
  pretrain.objective = 'masked'
  # Share of the tokens that 'masked' hides.
  pretrain.mask_fraction = 0.15
  # As in `train`.
  pretrain.learning_rate = 1e-3
  pretrain.warmup_steps = 1000
  return pretrain


def compress_keys() -> ml_collections.ConfigDict:
  compress = ml_collections.ConfigDict()
  # For --mode=compress; other modes leave this section alone. Name of the
  # recipe that the argument chose.
  compress.recipe = ''
  # The folder of a finished run, whose model is compressed; '' = the run of
  # this config, which is trained first, in WORKDIR/parent.
  compress.parent = ''
  # Of the training and the choices of the steps; -1 = that of the run.
  compress.seed = -1
  # Carry out beside the recipe what shows that its parts are of use: the same
  # without a teacher, with units chosen at random, with codes to the nearest.
  compress.controls = True
  # Batch x length of what is timed.
  compress.shapes = ('1x32', '8x128', '32x64')
  # The steps '0', '1', ...: `do` says what one does, and the other settings
  # are those of effformer.compress.recipe.
  compress.steps = ml_collections.ConfigDict()
  return compress
