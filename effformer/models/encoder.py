"""The encoder: a list of facts per layer, and the stack that obeys it.

Hybrids, shared layers and pruned models are other lists, not other code. The
parameters of layer i stand at `layer_i` (of a share group at `shared_NAME`),
whatever runs around them, so that tools can take a model apart.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer import shapes
from effformer.models import norms, reversible
from effformer.models.block import Block, LayerConfig, State

# A run of at least so many equal layers is compiled once and scanned. Below,
# unrolling is faster to run and about as fast to compile.
SCAN_FROM = 3

# As of the embedding of ids. Not 0: without positions, extra tokens that start
# alike would stay alike.
EXTRA_STDDEV = 1.0


class Encoder(nn.Module):
  """A stack of blocks over embedded tokens, with the final norm of pre-LN.

  Attributes:
    layers: one `LayerConfig` a block.
    norm_order: 'pre' or 'post'.
    norm: one of `norms.KINDS`.
    norm_epsilon: added to the variance in each norm.
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
    layer_drop: probability of each block to be the identity in a training step,
      for all rows alike, without scaling (LayerDrop, Fan et al. 2019,
      1909.11556): a model that is to lose layers later. Not where reversible.
    extra_tokens: so many learned vectors, parameters `extra_tokens`, stand
      before each row that has real tokens, and are left out of what is
      returned. Mixers with as many `global_tokens` make them the global tokens
      of BigBird's ETC; to others they are tokens like all. Positions within
      mixers count them, those added to the row before stay as they were. One
      segment a row only.
    unrolled: layers that are alike are not scanned, so that what they compute
      can be looked at from outside. The same function; longer to compile.
  """

  layers: tuple[LayerConfig, ...]
  norm_order: str = 'pre'
  norm: str = 'layer'
  norm_epsilon: float = 1e-6
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  reversible: bool = False
  layer_drop: float = 0.0
  extra_tokens: int = 0
  unrolled: bool = False

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
    narrow = {layer.bottleneck for layer in self.layers} - {0}
    if self.reversible and narrow:
      raise ValueError(
        'a reversible encoder has branches of its stream, which blocks with '
        f'bottleneck={max(narrow)} have not'
      )
    if not 0 <= self.layer_drop < 1 or (self.reversible and self.layer_drop):
      raise ValueError(
        'layer_drop must be in [0, 1), and 0 in a reversible encoder; got '
        f'{self.layer_drop} and reversible={self.reversible}'
      )

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    tokens: shapes.Tokens,
    deterministic: bool = True,
  ) -> jax.Array:
    """All tokens at once."""
    return self._run(x_BTD, tokens, deterministic, None)[0]

  def extend(
    self, x_BTD: jax.Array, state: State, *, tokens: shapes.Tokens
  ) -> tuple[jax.Array, State]:
    """Further tokens of a stream, see `contract.Mixer.extend`; no dropout.

    Raises:
      NotImplementedError: with extra tokens, or for mixers without streams.
    """
    if self.extra_tokens:
      raise NotImplementedError(
        f'an encoder with extra_tokens={self.extra_tokens} does not support '
        'streaming'
      )
    return self._run(x_BTD, tokens, True, state)

  @nn.nowrap
  def init_state(
    self, params: Any, batch_size: int, max_length: int, width: int
  ) -> State:
    """The state of a stream before its first token.

    Args:
      params: of this encoder.
      batch_size: B, rows.
      max_length: real tokens of a row that the state must have room for.
      width: D.
    """
    result = []
    for run in self._runs(params):
      states = [
        self._block(self.layers[index]).init_state(
          params[name], batch_size, max_length, width
        )
        for name, index in zip(run.names, run.indices, strict=True)
      ]
      if run.is_scanned:
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
      result.append(states)
    return tuple(result)

  @nn.nowrap
  def _runs(self, params):
    runs = _runs(self.layers, layer_names(self.layers), params)
    if self.unrolled:
      runs = tuple(run._replace(is_scanned=False) for run in runs)
    return runs

  @nn.nowrap
  def _block(self, layer):
    return Block(
      layer,
      norm_order=self.norm_order,
      norm=self.norm,
      norm_epsilon=self.norm_epsilon,
      dropout=self.dropout,
      dtype=self.dtype,
      parent=None,
    )

  @nn.compact
  def _run(self, x_BTD, tokens, deterministic, state):
    if self.extra_tokens:
      x_BTD, tokens = self._with_extra_tokens(x_BTD, tokens)
    names, blocks, params = layer_names(self.layers), {}, {}
    for name, layer in zip(names, self.layers, strict=True):
      if name not in blocks:
        blocks[name] = self._block(layer)
        params[name] = self._block_params(name, blocks[name], x_BTD, tokens)
      elif blocks[name].layer != layer:
        raise ValueError(
          f'layers of share group {layer.share!r} differ: {layer} and '
          f'{blocks[name].layer}'
        )
    key = None if deterministic else self.make_rng('dropout')

    def apply(name, block_params, context, index, x_BTD, state, branch=''):
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
        state=state,
        rngs=rngs,
      )

    if self.layer_drop and key is not None:
      apply = functools.partial(_apply_or_skip, apply, self.layer_drop)
    runs, context = self._runs(params), (tokens, key)
    if self.reversible and state is None:
      x_BTD = _apply_reversible(apply, runs, params, context, x_BTD)
    elif self.reversible:
      pair = (x_BTD.astype(jnp.float32),) * 2
      step = functools.partial(_reversible_step, apply)
      pair, state = _apply_runs(step, runs, params, context, pair, state)
      x_BTD = (pair[0] + pair[1]) / 2
    else:
      if self.remat:
        apply = jax.checkpoint(apply, static_argnums=0)
      x_BTD, state = _apply_runs(apply, runs, params, context, x_BTD, state)
    if self.extra_tokens:
      x_BTD = x_BTD[:, self.extra_tokens :]
    if self.norm_order == 'pre':
      norm = norms.norm(
        self.norm, self.norm_epsilon, dtype=self.dtype, name='norm_out'
      )
      x_BTD = norm(x_BTD)
    return x_BTD, state

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


def layer_names(layers: tuple[LayerConfig, ...]) -> list[str]:
  """Where the parameters of each layer stand; a share group has one place."""
  return [
    f'shared_{layer.share}' if layer.share else f'layer_{index}'
    for index, layer in enumerate(layers)
  ]


def _init_block(rng, block, x_BTD, tokens):
  variables = block.init(rng, x_BTD, tokens=tokens, deterministic=True)
  return variables['params']


def _runs(layers, names, params):
  """Consecutive blocks of equal configuration and parameters of equal form."""
  forms = {name: _form(params[name]) for name in set(names)}
  result = []
  for _, equal in itertools.groupby(
    range(len(layers)), lambda index: (layers[index], forms[names[index]])
  ):
    indices = tuple(equal)
    own = tuple(names[index] for index in indices)
    result.append(reversible.Run(own, indices, len(indices) >= SCAN_FROM))
  return tuple(result)


def _form(params):
  """What has to be equal for parameters to be stacked.

  Those of compressed models differ where layers have other grids.
  """
  leaves, structure = jax.tree.flatten(params)
  return structure, tuple((x.shape, x.dtype) for x in leaves)


def _apply_runs(apply, runs, params, context, x, state):
  """What comes out of the last layer, and the state after it."""
  after = []
  for run, own in zip(runs, state or (None,) * len(runs), strict=True):
    x, own = _apply_run(apply, run, params, context, x, own)
    after.append(own)
  return x, None if state is None else tuple(after)


def _apply_run(apply, run, params, context, x, state):
  if not run.is_scanned:
    after = []
    states = state or (None,) * len(run.names)
    for name, index, own in zip(run.names, run.indices, states, strict=True):
      x, own = apply(name, params[name], context, index, x, own)
      after.append(own)
    return x, after
  name = run.names[0]
  shared, stacked = reversible.split(run, params)

  def body(x, element):
    own, index, state = element
    block_params = shared if own is None else own
    return apply(name, block_params, context, index, x, state)

  return jax.lax.scan(body, x, (stacked, jnp.asarray(run.indices), state))


def _apply_or_skip(apply, rate, name, block_params, context, index, x, state):
  """A block, or the identity with probability `rate`."""
  key = jax.random.fold_in(jax.random.fold_in(context[1], index), 2)
  return jax.lax.cond(
    jax.random.bernoulli(key, rate),
    lambda: (x, state),
    lambda: apply(name, block_params, context, index, x, state),
  )


def _reversible_step(apply, name, block_params, context, index, pair, state):
  """One layer on further tokens, as `reversible.stack` has it."""
  x1, x2 = pair
  call = functools.partial(apply, name, block_params, context, index)
  added, state = call(x2, state, branch='mixer')
  y1 = x1 + added
  added, _ = call(y1, None, branch='mlp')
  return (y1, x2 + added), state


def _apply_reversible(apply, runs, params, context, x_BTD):
  # In a lower type, inputs made from outputs would be others than they were.
  x_BTD = x_BTD.astype(jnp.float32)
  mixer, mlp = (
    lambda *arguments, branch=branch: apply(*arguments, None, branch=branch)[0]
    for branch in ('mixer', 'mlp')
  )
  pair = reversible.stack(
    mixer,
    mlp,
    runs,
    params,
    (x_BTD, x_BTD),
    context,
  )
  return (pair[0] + pair[1]) / 2
