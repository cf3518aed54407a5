"""Counted operations against sums done by hand."""

import jax
import jax.numpy as jnp
import pytest

from effformer import cost

A, B, C, N = 3, 5, 7, 11


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_count_two_for_each_multiply_add():
  counted = cost.count(jnp.matmul, shape(A, B), shape(B, C))
  assert counted == cost.Count(2 * A * B * C, 0)
  batched = cost.count(jnp.matmul, shape(N, A, B), shape(N, B, C))
  assert batched.products == 2 * N * A * B * C


def test_convolutions_count_their_taps():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'),
      feature_group_count=A,
    )  # fmt: skip

  counted = cost.count(convolve, shape(2, N, A), shape(B, 1, A))
  assert counted.products == 2 * (2 * N * A) * B


def test_a_scan_counts_its_length():
  def power(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=N)[0]

  assert cost.count(power, shape(A, A)).products == N * 2 * A**3
  assert cost.count(jax.jit(power), shape(A, A)).products == N * 2 * A**3


def test_inner_programs_count_once():
  @jax.custom_vjp
  def square(x):
    return x @ x

  square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
  assert cost.count(square, shape(A, A)).products == 2 * A**3
  remat = jax.checkpoint(lambda x: (x @ x).sum())
  assert cost.count(remat, shape(A, A)).products == 2 * A**3
  gradient = cost.count(jax.grad(remat), shape(A, A))
  # The product again, and one for each factor.
  assert gradient.products >= 2 * 2 * A**3
  loss = cost.count(jax.grad(lambda x: square(x).sum()), shape(A, A))
  assert loss.products == 3 * 2 * A**3


def test_branches_count_as_the_dearest():
  def choose(p, x):
    return jax.lax.cond(p, lambda x: x @ x, lambda x: x, x)

  counted = cost.count(choose, jax.ShapeDtypeStruct((), bool), shape(A, A))
  assert counted.products == 2 * A**3


def test_a_traced_program_counts_the_same():
  square = jax.jit(lambda x: x @ x)
  assert cost.of_traced(square.trace(shape(A, A))).products == 2 * A**3


def test_a_loop_without_a_length_is_flagged():
  def loop(n, x):
    return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

  counted = cost.count(loop, jax.ShapeDtypeStruct((), jnp.int32), shape(A, A))
  assert counted.products == 2 * A**3
  assert not counted.is_bounded
  assert cost.count(jnp.matmul, shape(A, A), shape(A, A)).is_bounded


@pytest.mark.parametrize(
  ('function', 'others'),
  [
    (jnp.exp, A * B),
    (jnp.sum, A * B),
    (lambda x: x.reshape(-1), 0),
    (lambda x: x.T, 0),
    (lambda x: jax.lax.sort(x, dimension=1), A * B * 2.321928),
    (lambda x: jnp.fft.rfft(x, axis=1), 5 * A * B * 2.321928),
  ],
)
def test_the_rest_counts_its_numbers(function, others):
  counted = cost.count(function, shape(A, B))
  assert counted.products == 0
  assert counted.others == pytest.approx(others, rel=1e-5)


def test_triangular_solves_count_half_a_product():
  def solve(a, b):
    return jax.lax.linalg.triangular_solve(a, b, left_side=True, lower=True)

  assert cost.count(solve, shape(A, A), shape(A, B)).products == A * A * B
