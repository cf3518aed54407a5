"""One training step of an encoder, ours and torch.nn.TransformerEncoder.

Pre-norm, GELU, exact attention, AdamW, no dropout, float32; the loss is the
mean of the squared outputs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

LENGTH, BATCH = 2048, 2
RATE, DECAY = 1e-4, 0.01


@dataclasses.dataclass(frozen=True)
class Size:
  """Of an encoder: layers, widths, heads."""

  name: str
  layers: int
  width: int
  heads: int
  mlp_width: int


SIZES = (
  Size('small', 4, 128, 4, 256),
  # ListOps of the LRA repository.
  Size('lra', 4, 512, 8, 1024),
)


def our_step(size: Size) -> Callable[[], Any]:
  import jax
  import numpy as np
  import optax

  from effformer.models import encoder
  from effformer.shapes import Tokens

  settings = (
    ('head_width', size.width // size.heads),
    ('num_heads', size.heads),
    ('use_bias', True),
  )
  layer = encoder.LayerConfig('full', settings, size.mlp_width)
  model = encoder.Encoder((layer,) * size.layers)
  tokens = Tokens.from_lengths(np.full(BATCH, LENGTH), LENGTH)
  x_BTD = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, size.width))
  params = jax.jit(functools.partial(model.init, tokens=tokens))(
    jax.random.key(0), x_BTD
  )
  optimiser = optax.adamw(RATE, weight_decay=DECAY)

  def loss(params, x_BTD):
    return (model.apply(params, x_BTD, tokens=tokens) ** 2).mean()

  def step(params, moments, x_BTD):
    gradient = jax.grad(loss)(params, x_BTD)
    updates, moments = optimiser.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments

  compiled = jax.jit(step, donate_argnums=(0, 1))
  state = [params, optimiser.init(params)]

  def call():
    state[:] = jax.block_until_ready(compiled(*state, x_BTD))

  return call


def torch_step(size: Size) -> Callable[[], Any]:
  import torch

  layer = torch.nn.TransformerEncoderLayer(
    size.width, size.heads, size.mlp_width, dropout=0.0, activation='gelu',
    batch_first=True, norm_first=True,
  )  # fmt: skip
  model = torch.nn.TransformerEncoder(
    layer, size.layers, torch.nn.LayerNorm(size.width),
    enable_nested_tensor=False,
  )  # fmt: skip
  optimiser = torch.optim.AdamW(
    model.parameters(), RATE, weight_decay=DECAY, fused=True
  )
  x_BTD = torch.randn(BATCH, LENGTH, size.width)

  def call():
    optimiser.zero_grad(set_to_none=True)
    (model(x_BTD) ** 2).mean().backward()
    optimiser.step()

  return call
