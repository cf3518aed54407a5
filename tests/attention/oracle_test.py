"""Laws L5 and L6: each mechanism against its O(T^2) definition.

A new mechanism needs a row in `ORACLES`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effformer import attention
from effformer.shapes import Tokens
from tests.attention.cases import (
  CASES,
  GRADIENT_TOLERANCE,
  PACKED,
  ROTARY,
  B,
  Case,
  D,
  H,
  K,
  T,
  assert_close,
  call_of,
  each,
  module_of,
  normal,
  run,
  variables_of,
)

# L5: the dense definition of the same mechanism, outputs and gradients.


def seen(case, tokens):
  """bool [B, T, T]: the admissible pairs of a call."""
  segment_BT = tokens.segment_BT
  keep_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  keep_BTT &= (segment_BT > 0)[:, None, :]
  if case.is_causal:
    keep_BTT &= jnp.tri(T, dtype=bool)[None]
  return keep_BTT


def softmax_weights(logits_BHTT, keep_BTT):
  weights = jnp.where(keep_BTT[:, None], jnp.exp(logits_BHTT), 0.0)
  total = weights.sum(-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1.0)


def turn(case, x_BTHK, tokens):
  """Rotary positions as a product with complex numbers of size one."""
  if not case.settings.get('rotary'):
    return x_BTHK
  first, second = jnp.split(x_BTHK, 2, axis=-1)
  rate_K = 10_000.0 ** (-np.arange(K // 2) * 2.0 / K)
  angle = tokens.position_BT[:, :, None, None] * rate_K[None, None, None]
  turned = (first + 1j * second) * jnp.exp(1j * angle)
  return jnp.concatenate([turned.real, turned.imag], axis=-1)


def full_oracle(case, params, q, k, v, tokens):
  q, k = turn(case, q, tokens), turn(case, k, tokens)
  logits = jnp.einsum('bthk,bshk->bhts', q, k) / K**0.5
  attn = softmax_weights(logits, seen(case, tokens))
  return jnp.einsum('bhts,bshv->bthv', attn, v)


def local_oracle(case, params, q, k, v, tokens):
  q, k = turn(case, q, tokens), turn(case, k, tokens)
  logits = jnp.einsum('bthk,bshk->bhts', q, k) / K**0.5
  distance_TT = np.abs(np.arange(T)[:, None] - np.arange(T)[None])
  keep_BTT = seen(case, tokens) & (distance_TT < case.settings['window'])[None]
  attn = softmax_weights(logits, keep_BTT)
  return jnp.einsum('bhts,bshv->bthv', attn, v)


def linear_oracle(case, params, q, k, v, tokens):
  q, k = (jnp.where(x > 0, x + 1, jnp.exp(x)) for x in (q, k))
  keep = seen(case, tokens)[:, None]
  below = jnp.where(keep, jnp.einsum('bthk,bshk->bhts', q, k), 0.0)
  q, k = turn(case, q, tokens), turn(case, k, tokens)
  above = jnp.where(keep, jnp.einsum('bthk,bshk->bhts', q, k), 0.0)
  attn = above / (below.sum(-1, keepdims=True) + 1e-6)
  return jnp.einsum('bhts,bshv->bthv', attn, v)


def linformer_oracle(case, params, q, k, v, tokens):
  keep_BT11 = tokens.keep_BT[:, :, None, None]
  k, v = k * keep_BT11, v * keep_BT11
  e = params['mix_keys'][..., :T]
  f = params.get('mix_values', params['mix_keys'])[..., :T]
  e, f = (jnp.broadcast_to(x, (H, *x.shape[-2:])) for x in (e, f))
  logits = jnp.einsum('bthk,hms,bshk->bhtm', q, e, k) / K**0.5
  attn = jax.nn.softmax(logits, axis=-1)
  return jnp.einsum('bhtm,hms,bshv->bthv', attn, f, v) * keep_BT11


ORACLES = {
  'full': full_oracle,
  'linear': linear_oracle,
  'local': local_oracle,
  'linformer': linformer_oracle,
}


@each(CASES + ROTARY)
def test_equals_dense_definition(case):
  packed = PACKED if case.supports.packing else [[1] * T, [1] * 4 + [0] * 3]
  tokens = case.tokens(packed)
  keep_BT1 = tokens.keep_BT[..., None]
  sample_BTD = normal(B, T, D, seed=2)

  def oracle(variables, x_BTD):
    params = variables['params']
    q, k, v = (
      jnp.einsum('btd,dhk->bthk', x_BTD, params[name]['kernel'])
      for name in ('query', 'key', 'value')
    )
    o = ORACLES[case.name](case, params, q, k, v, tokens)
    return jnp.einsum('bthv,hvd->btd', o, params['out']['kernel'])

  def ours(variables, x_BTD):
    return module_of(case).apply(variables, x_BTD, tokens=tokens)

  def with_gradients(apply):
    def loss(variables, x_BTD):
      y_BTD = jnp.where(keep_BT1, apply(variables, x_BTD), 0.0)
      return (y_BTD * sample_BTD).sum(), y_BTD

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  inputs = variables_of(case), normal(B, T, D)
  (_, y_BTD), gradients = with_gradients(ours)(*inputs)
  (_, expected_BTD), expected_gradients = with_gradients(oracle)(*inputs)
  assert_close(y_BTD, expected_BTD)
  jax.tree.map(
    functools.partial(assert_close, tolerance=GRADIENT_TOLERANCE),
    gradients,
    expected_gradients,
  )


# L6: the setting in which a mechanism is softmax attention.


@pytest.mark.parametrize('is_causal', [False, True])
def test_local_with_a_wide_window_is_full(is_causal):
  full = Case('full').having(num_heads=H, form='dense', causal=is_causal)
  x_BTD, tokens = normal(B, T, D), full.tokens(PACKED)
  keep_BT = np.asarray(tokens.keep_BT)
  y_BTD = run(full, x_BTD, tokens)
  local = full.having(window=T)
  local = Case('local', tuple(p for p in local.extra if p[0] != 'form'))
  variables = variables_of(full)
  z_BTD = np.asarray(call_of(local)(variables, x_BTD, tokens))
  assert_close(z_BTD[keep_BT], y_BTD[keep_BT])


def test_linformer_with_a_permutation_is_full():
  full = Case('full').having(num_heads=H, form='dense')
  linformer = Case('linformer').having(num_heads=H, rank=T)
  x_BTD, tokens = normal(B, T, D), Tokens.from_lengths(np.full(B, T), T)
  permutation = jnp.eye(T)[np.random.default_rng(3).permutation(T)]
  params = variables_of(full)['params'] | {'mix_keys': permutation}
  z_BTD = call_of(linformer)({'params': params}, x_BTD, tokens)
  assert_close(z_BTD, run(full, x_BTD, tokens))


def test_every_mechanism_has_an_oracle():
  assert set(ORACLES) == set(attention.TABLE)
