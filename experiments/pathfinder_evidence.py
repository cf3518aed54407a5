"""Is it Pathfinder? A picture sheet, and what does and does not tell the label.

  python -m experiments.pathfinder_evidence --sheet=docs/plots/pathfinder.png \
    --csv=experiments/results/pathfinder.csv

Of each difficulty at 32 x 32: the share of label 1; for single numbers read off
the image, accuracy of the best function of the number (label by label over 40
equal parts of the training images), which is 50 % for a number that tells
nothing; the floors of the task; and a convolution of three layers, which sees
the contours and should be above chance and below perfect. Accuracy in percent
on images that nothing was fitted to.
"""

import argparse
import functools
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from effformer import data
from effformer.data import pathfinder
from effformer.data.dataset import MemorySource
from effformer.data.pathfinder_settings import DIFFICULTIES, SETTINGS
from effformer.tasks import floors
from effformer.train import result
from experiments import table

SIZE = 32
PARTS = 40
EPOCHS = 6
BATCH = 64
SEEDS = (0, 1, 2)
# Of a quantity; the seed follows.
CONVOLUTION = 'convolution, seed '
LEARNING_RATE = 1e-3


def numbers(scene: pathfinder.Geometry) -> dict[str, np.ndarray]:
  """What a reader with a ruler finds out about two discs."""
  x_N2, y_N2 = scene.disc_x_N2 - SIZE / 2, scene.disc_y_N2 - SIZE / 2
  outward_N2 = np.maximum(np.abs(x_N2), np.abs(y_N2))
  sideways_N2 = np.minimum(np.abs(x_N2), np.abs(y_N2))
  middle_x_N, middle_y_N = x_N2.mean(axis=1), y_N2.mean(axis=1)
  return {
    'distance of the discs': np.hypot(
      x_N2[:, 0] - x_N2[:, 1], y_N2[:, 0] - y_N2[:, 1]
    ),
    'nearest edge of the outer disc': outward_N2.max(axis=1),
    'nearest edge of the inner disc': outward_N2.min(axis=1),
    'other axis, both discs': sideways_N2.sum(axis=1),
    'distance of their middle from the centre': np.hypot(
      middle_x_N, middle_y_N
    ),
  }


def by_parts(x_N: np.ndarray, label_N: np.ndarray, num_train: int) -> float:
  """Accuracy of the majority label of each of `PARTS` equal parts."""
  edges = np.quantile(x_N[:num_train], np.arange(1, PARTS) / PARTS)
  part_N = np.digitize(x_N, edges)
  ones_P = np.bincount(part_N[:num_train], label_N[:num_train], PARTS)
  all_P = np.bincount(part_N[:num_train], minlength=PARTS)
  guess_N = (2 * ones_P > all_P)[part_N[num_train:]]
  return float((guess_N == label_N[num_train:]).mean())


class Convolution(nn.Module):
  """Three 3 x 3 convolutions with pooling, one hidden layer."""

  @nn.compact
  def __call__(self, x_NHWC):
    for channels in (16, 32, 64):
      x_NHWC = nn.relu(nn.Conv(channels, (3, 3))(x_NHWC))
      x_NHWC = nn.max_pool(x_NHWC, (2, 2), (2, 2))
    x_ND = nn.relu(nn.Dense(128)(x_NHWC.reshape(len(x_NHWC), -1)))
    return nn.Dense(2)(x_ND)


def convolution(images_NHW, label_N, num_train: int, epochs: int, seed: int):
  """Accuracy of `Convolution` after so many passes over the training images."""
  model = Convolution()
  num_steps = epochs * (num_train // BATCH)
  optimiser = optax.adamw(
    optax.cosine_decay_schedule(LEARNING_RATE, num_steps), weight_decay=0.01
  )
  params = model.init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 1)))

  def logits(params, images_NHW):
    return model.apply(params, images_NHW[..., None] / 255.0 - 0.1)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, images_NHW, label_N):
    def loss(params):
      return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, images_NHW), label_N
      ).mean()

    updates, state = optimiser.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state, rng = optimiser.init(params), np.random.default_rng(seed)
  for _ in range(epochs):
    order_N = rng.permutation(num_train)
    for start in range(0, num_train - BATCH + 1, BATCH):
      chosen = order_N[start : start + BATCH]
      params, state = step(params, state, images_NHW[chosen], label_N[chosen])
  guess = jax.jit(lambda params, x_NHW: logits(params, x_NHW).argmax(-1))
  right = [
    np.asarray(guess(params, images_NHW[start : start + 1000]))
    == label_N[start : start + 1000]
    for start in range(num_train, len(images_NHW), 1000)
  ]
  return float(np.concatenate(right).mean())


def measure(difficulty: str, num_train: int, num_test: int, epochs: int):
  """(quantity, percent or other value) of one difficulty."""
  setting, count = SETTINGS[SIZE, difficulty], num_train + num_test
  start = time.process_time()
  scene = pathfinder.geometry(setting, 0, 0, count)
  images_NHW = pathfinder.draw(setting, scene)
  yield 'ms an image', 1e3 * (time.process_time() - start) / count
  label_N = scene.label_N.astype(np.int32)
  yield 'share of label 1', 100 * label_N.mean()
  for name, x_N in numbers(scene).items():
    yield name, 100 * by_parts(x_N, label_N, num_train)
  light_N = images_NHW.sum(axis=(1, 2), dtype=np.int64)
  yield 'sum of all pixels', 100 * by_parts(light_N, label_N, num_train)
  examples = [
    {'text': x_HW.tobytes(), 'label': int(label_N[n]), 'id': str(n)}
    for n, x_HW in enumerate(images_NHW)
  ]
  train = MemorySource(examples[:num_train])
  test = MemorySource(examples[num_train:])
  bag = floors.bag_of_tokens(train, test, data.ByteTokenizer(), SIZE**2)
  yield 'bag of pixels', 100 * bag
  yield 'linear in the pixels', 100 * floors.linear(train, test)
  for seed in SEEDS:
    score = convolution(images_NHW, label_N, num_train, epochs, seed)
    yield f'{CONVOLUTION}{seed}', 100 * score


def sheet(path: pathlib.Path, seed: int = 0) -> None:
  """Hard images of all sizes: four of label 1, then four of label 0."""
  rows = []
  for size in (32, 64, 128, 256):
    images_NHW, label_N = pathfinder.generate(
      SETTINGS[size, 'hard'], seed, 0, 24
    )
    shown = [
      images_NHW[n]
      for label in (1, 0)
      for n in np.flatnonzero(label_N == label)[:4]
    ]
    enlarged = [
      np.kron(x_HW, np.ones((256 // size,) * 2, np.uint8)) for x_HW in shown
    ]
    rows.append(
      np.concatenate([np.pad(x, 2, constant_values=96) for x in enlarged], 1)
    )
  whole = Image.fromarray(np.concatenate(rows))
  whole.resize((whole.width // 2, whole.height // 2), Image.BOX).save(
    path, optimize=True
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--train', type=int, default=40_000)
  parser.add_argument('--test', type=int, default=10_000)
  parser.add_argument('--epochs', type=int, default=EPOCHS)
  parser.add_argument('--difficulties', default=','.join(DIFFICULTIES))
  parser.add_argument('--csv', type=pathlib.Path, help='write the figures')
  parser.add_argument('--sheet', type=pathlib.Path, help='write the pictures')
  options = parser.parse_args()
  if options.sheet:
    sheet(options.sheet)
  for difficulty in filter(None, options.difficulties.split(',')):
    rows = []
    for quantity, value in measure(
      difficulty, options.train, options.test, options.epochs
    ):
      row = {
        'difficulty': difficulty,
        'quantity': quantity,
        'value': f'{value:.2f}',
        'train': options.train,
        'test': options.test,
        'commit': result.commit(),
      }
      print(row, flush=True)
      rows.append(row)
    table.merge(options.csv, rows, 'difficulty', 'quantity')


if __name__ == '__main__':
  main()
