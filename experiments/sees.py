"""What each mechanism sees: its Jacobian, on one row of random tokens.

  python -m experiments.sees --out=docs/plots/what_each_sees.png

    J[t, s] = |dy_t / dx_s|   (Frobenius norm over the widths)

for random tokens and random parameters, T = 64. The windows and blocks are
small, so that so few tokens show the pattern. colab/mechanisms.ipynb looks at
the same maps.
"""

import argparse
import functools
import io
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from effformer import attention, shapes
from effformer.report import plots

T, D = 64, 32
COLUMNS = 7
SMALL = {
  'local': {'window': 8},
  'linformer': {'rank': 8, 'max_length': T},
  'longformer': {'attention_window': 8, 'global_tokens': 2, 'block': 8},
  'bigbird': {'block': 4, 'num_random': 1},
  'sparse': {'stride': 8, 'columns': 1},
  'nystromformer': {'rank': 8, 'conv_width': 5},
  'synthesizer': {'max_length': T},
  'reformer': {'block': 8, 'num_buckets': 16},
  'sinkhorn': {'block': 8},
  'nsa': {
    'compress_block': 8,
    'compress_stride': 4,
    'block': 4,
    'num_selected': 4,
    'window': 8,
  },
}


def build(name: str, causal: bool = False) -> nn.Module:
  """The mechanism with two heads of 16 and the settings of SMALL."""
  own = {'num_heads': 2, 'head_width': D // 2, 'causal': causal}
  own |= SMALL.get(name, {})
  known = attention.settings(name)
  return attention.build(name, **{k: v for k, v in own.items() if k in known})


def sees(name: str, causal: bool = False) -> np.ndarray:
  """J [T, T] of the formula above: outputs are rows, inputs are columns."""
  module = build(name, causal)
  tokens = shapes.Tokens.from_lengths(np.array([T]), T)
  x_BTD = jax.random.normal(jax.random.key(0), (1, T, D))
  init = jax.jit(functools.partial(module.init, tokens=tokens))
  variables = init(jax.random.key(1), x_BTD)

  @jax.jit
  def strength(x_TD):
    _, pull = jax.vjp(
      lambda x_TD: module.apply(variables, x_TD[None], tokens=tokens)[0], x_TD
    )
    # One output at a time: XLA 0.10 for CPUs gets some reductions wrong when
    # all go backwards at once (`vmap`, so `jax.jacrev`, too).
    eye_NTD = jnp.eye(T * D).reshape(T * D, T, D)
    J_NS = jax.lax.map(lambda w_TD: (pull(w_TD)[0] ** 2).sum(axis=-1), eye_NTD)
    return jnp.sqrt(J_NS.reshape(T, D, T).sum(axis=1))

  return np.asarray(strength(x_BTD[0]))


def show(axis, name: str, J_TS: np.ndarray) -> None:
  """One map, logarithmic, four decades below its own largest value."""
  axis.imshow(np.log10(J_TS / J_TS.max() + 1e-6), vmin=-4, vmax=0, cmap='magma')
  axis.set_title(name, fontsize=9)
  axis.set_xticks([])
  axis.set_yticks([])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options = parser.parse_args()
  pyplot = plots.load_pyplot()
  names = [
    name
    for name, mechanism in attention.TABLE.items()
    if mechanism.supports.bidirectional
  ]
  rows = math.ceil(len(names) / COLUMNS)
  figure, axes = pyplot.subplots(
    rows, COLUMNS, figsize=(1.6 * COLUMNS, 1.75 * rows)
  )
  for axis in axes.flat[len(names) :]:
    axis.axis('off')
  for axis, name in zip(axes.flat, names, strict=False):
    show(axis, name, sees(name))
  figure.supxlabel('input token s', fontsize=9)
  figure.supylabel('output token t', fontsize=9)
  figure.tight_layout()
  options.out.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=90)
  # A quarter of the bytes of full colours.
  Image.open(buffer).convert('RGB').quantize(64).save(
    options.out, optimize=True
  )


if __name__ == '__main__':
  main()
