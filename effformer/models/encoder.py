"""The encoder: a list of facts per layer, and the stack that obeys it.

Hybrids, shared layers and pruned models are other lists, not other code. The
parameters of layer i stand at `layer_i` (of a share group at `shared_NAME`),
whatever runs around them, so that tools can take a model apart.
"""

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import attention, shapes
from effformer.models import layers, reversible

# A run of at least so many equal layers is compiled once and scanned. Below,
# unrolling is faster to run and about as fast to compile.
SCAN_FROM = 3

# As of the embedding of ids. Not 0: without positions, extra tokens that start
# alike would stay alike.
EXTRA_STDDEV = 1.0


@dataclasses.dataclass(frozen=True)
class LayerConfig:
  """What one block is.

  Attributes:
    mixer: row of `attention.TABLE`.
    settings: settings of the mixer, as sorted (name, value) pairs.
    mlp_width: F of the feed-forward part.
    activation: key of `layers.ACTIVATIONS`.
    conv_width: taps of the depthwise convolution before the mixer, 0 = none.
    mlp_chunk: tokens of a row that the feed-forward part works on together,
      0 = all; see `layers.FeedForward`.
    share: blocks with the same non-empty group have the same parameters.
  """

  mixer: str
  settings: tuple[tuple[str, Any], ...]
  mlp_width: int
  activation: str = 'gelu'
  conv_width: int = 0
  mlp_chunk: int = 0
  share: str = ''


class Block(nn.Module):
  """Mixer and feed-forward part, each with norm, dropout and residual.

  Pre-LN (`x + f(LN(x))`, Xiong et al. 2020) or post-LN (`LN(x + f(x))`,
  Vaswani et al. 2017).
  """

  layer: LayerConfig
  norm_order: str = 'pre'
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    tokens: shapes.Tokens,
    deterministic: bool,
    branch: str = '',
  ) -> jax.Array:
    """The output; with `branch` only what this adds to the residual stream.

    Branches, of pre-LN only, are 'mixer', with the convolution, and 'mlp'.
    """
    layer = self.layer
    mixer = attention.build(
      layer.mixer,
      module_name='mixer',
      dtype=self.dtype,
      **dict(layer.settings),
    )
    feed_forward = layers.FeedForward(
      layer.mlp_width,
      activation=layer.activation,
      dropout=self.dropout,
      chunk=layer.mlp_chunk,
      dtype=self.dtype,
      name='mlp',
    )
    before_BTD = x_BTD
    if layer.conv_width and branch != 'mlp':
      # On the residual stream: what it gathers reaches the layers above even
      # where the mixer averages it away.
      x_BTD = layers.DepthwiseConvolution(
        layer.conv_width, dtype=self.dtype, name='conv'
      )(x_BTD, tokens)
    if branch != 'mlp':
      x_BTD = self._residual(
        'norm_mixer',
        lambda h_BTD: mixer(h_BTD, tokens=tokens, deterministic=deterministic),
        x_BTD,
        deterministic,
      )
    if branch != 'mixer':
      x_BTD = self._residual(
        'norm_mlp',
        lambda h_BTD: feed_forward(h_BTD, deterministic=deterministic),
        x_BTD,
        deterministic,
      )
    return x_BTD - before_BTD if branch else x_BTD

  def _residual(self, name, function, x_BTD, deterministic):
    norm = nn.LayerNorm(dtype=self.dtype, name=name)
    drop = nn.Dropout(self.dropout)
    if self.norm_order == 'pre':
      update_BTD = function(norm(x_BTD))
      return x_BTD + drop(update_BTD, deterministic=deterministic)
    update_BTD = function(x_BTD)
    return norm(x_BTD + drop(update_BTD, deterministic=deterministic))


class Encoder(nn.Module):
  """A stack of blocks over embedded tokens, with the final norm of pre-LN.

  Attributes:
    layers: one `LayerConfig` a block.
    norm_order: 'pre' or 'post'.
    dropout: rate on each residual branch and hidden layer.
    dtype: compute dtype; parameters are float32.
    remat: recompute each block in the backward pass: where layers are scanned,
      activation memory of one block instead of all, at about a third more
      time. Unrolled layers gain nothing on the CPU, whose compiler merges the
      second computation with the first.
    reversible: two residual streams, float32, in place of one, which start
      alike and of which the mean comes out; see `reversible`. Activation
      memory of one block, whatever the depth. Another function than without,
      for pre-LN only; it has the same parameters.
    extra_tokens: so many learned vectors, parameters `extra_tokens`, stand
      before each row that has real tokens, and are left out of what is
      returned. Mixers with as many `global_tokens` make them the global tokens
      of BigBird's ETC; to others they are tokens like all. Positions within
      mixers count them, those added to the row before stay as they were. One
      segment a row only.
  """

  layers: tuple[LayerConfig, ...]
  norm_order: str = 'pre'
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  reversible: bool = False
  extra_tokens: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.extra_tokens < 0:
      raise ValueError(
        f'extra_tokens must be at least 0, got {self.extra_tokens}'
      )
    if self.reversible and (self.norm_order != 'pre' or self.remat):
      raise ValueError(
        "a reversible encoder needs norm_order 'pre' and no remat; got "
        f'{self.norm_order!r} and remat={self.remat}'
      )

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    tokens: shapes.Tokens,
    deterministic: bool = True,
  ) -> jax.Array:
    if self.extra_tokens:
      x_BTD, tokens = self._with_extra_tokens(x_BTD, tokens)
    names = [
      f'shared_{layer.share}' if layer.share else f'layer_{index}'
      for index, layer in enumerate(self.layers)
    ]
    blocks, params = {}, {}
    for name, layer in zip(names, self.layers, strict=True):
      if name not in blocks:
        blocks[name] = Block(
          layer, self.norm_order, self.dropout, self.dtype, parent=None
        )
        params[name] = self._block_params(name, blocks[name], x_BTD, tokens)
      elif blocks[name].layer != layer:
        raise ValueError(
          f'layers of share group {layer.share!r} differ: {layer} and '
          f'{blocks[name].layer}'
        )
    key = None if deterministic else self.make_rng('dropout')

    def apply(name, block_params, context, index, x_BTD, branch=''):
      tokens, key = context
      rngs = None
      if key is not None:
        key = jax.random.fold_in(key, index)
        # Their masks would be the same.
        key = jax.random.fold_in(key, 1) if branch == 'mlp' else key
        rngs = {'dropout': key}
      return blocks[name].apply(
        {'params': block_params},
        x_BTD,
        tokens=tokens,
        deterministic=deterministic,
        branch=branch,
        rngs=rngs,
      )

    runs = _runs(self.layers, names)
    if self.reversible:
      x_BTD = _apply_reversible(apply, runs, params, (tokens, key), x_BTD)
    else:
      if self.remat:
        apply = jax.checkpoint(apply, static_argnums=0)
      for run in runs:
        x_BTD = _apply_run(apply, run, params, (tokens, key), x_BTD)
    if self.extra_tokens:
      x_BTD = x_BTD[:, self.extra_tokens :]
    if self.norm_order == 'pre':
      x_BTD = nn.LayerNorm(dtype=self.dtype, name='norm_out')(x_BTD)
    return x_BTD

  def _with_extra_tokens(self, x_BTD, tokens):
    if tokens.is_packed:
      raise NotImplementedError(
        f'an encoder with extra_tokens={self.extra_tokens} does not support '
        'packing (tokens.is_packed is True): they would stand before the first '
        'segment only'
      )
    number, width = self.extra_tokens, x_BTD.shape[-1]
    extra_MD = self.param(
      'extra_tokens', nn.initializers.normal(EXTRA_STDDEV), (number, width)
    )
    extra_BMD = jnp.broadcast_to(
      extra_MD.astype(x_BTD.dtype)[None], (x_BTD.shape[0], number, width)
    )
    return jnp.concatenate([extra_BMD, x_BTD], axis=1), tokens.behind(number)

  def _block_params(self, name, block, x_BTD, tokens):
    if self.is_initializing():
      return self.param(name, _init_block, block, x_BTD, tokens)
    # Not by self.param: it would trace the initialiser at every call.
    return self.get_variable('params', name)


def _init_block(rng, block, x_BTD, tokens):
  variables = block.init(rng, x_BTD, tokens=tokens, deterministic=True)
  return variables['params']


def _runs(layers, names):
  """Consecutive blocks of equal configuration."""
  result = []
  for _, equal in itertools.groupby(enumerate(layers), lambda e: e[1]):
    indices = tuple(index for index, _ in equal)
    own = tuple(names[index] for index in indices)
    result.append(reversible.Run(own, indices, len(indices) >= SCAN_FROM))
  return tuple(result)


def _apply_run(apply, run, params, context, x_BTD):
  if not run.is_scanned:
    for name, index in zip(run.names, run.indices, strict=True):
      x_BTD = apply(name, params[name], context, index, x_BTD)
    return x_BTD
  name = run.names[0]
  shared, stacked = reversible.split(run, params)

  def body(x_BTD, element):
    own, index = element
    block_params = shared if own is None else own
    return apply(name, block_params, context, index, x_BTD), None

  elements = stacked, jnp.asarray(run.indices)
  return jax.lax.scan(body, x_BTD, elements)[0]


def _apply_reversible(apply, runs, params, context, x_BTD):
  # In a lower type, inputs made from outputs would be others than they were.
  x_BTD = x_BTD.astype(jnp.float32)
  pair = reversible.stack(
    functools.partial(apply, branch='mixer'),
    functools.partial(apply, branch='mlp'),
    runs,
    params,
    (x_BTD, x_BTD),
    context,
  )
  return (pair[0] + pair[1]) / 2
