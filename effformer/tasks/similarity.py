"""How alike two sentences are, by the vectors that one encoder makes of them.

With unit vectors a and b of the two and a score s from 0 to 5 that people gave
(STS-B, Cer et al. 2017, 1708.00055),

    loss = (cos(a, b) - s / 5)^2,  cos(a, b) = a . b

the regression objective of Reimers & Gurevych 2019, 1908.10084, section 3. The
score of the task is Pearson's correlation of cos(a, b) and s over a split.
"""

import jax.numpy as jnp
import ml_collections
import numpy as np

from effformer import data, scores
from effformer.data.dataset import TEXTS, Source, read_all
from effformer.data.sentence_pairs import HIGHEST, PER_POINT
from effformer.data.tokenizers import Tokenizer
from effformer.models import build
from effformer.pretrained import tokenizer
from effformer.tasks import classification, correlation
from effformer.tasks.task import Task, stacked

_HIGHEST_LABEL = HIGHEST * PER_POINT


def make(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Task:
  """The task `similarity`, on the user's own pairs.

  `label_B` of a batch is the score in thousandths, 0 to 5000.
  """
  subwords = tokenizer(config.data.tokenizer)
  max_length = config.data.max_length
  model = build.text_embedder(config, subwords.vocab_size, causal=False)

  def vectors(params, batch, **keywords):
    e_ND = model.apply({'params': params}, **stacked(batch), **keywords)
    return jnp.split(e_ND, 2)

  def compared(vectors, batch):
    """Cosines and scores / 5."""
    a_BD, b_BD = vectors
    y_B = batch['label_B'].astype(jnp.float32) / _HIGHEST_LABEL
    return (a_BD * b_BD).sum(axis=-1), y_B

  def init(key):
    ids_BT = jnp.zeros((1, max_length), jnp.int32)
    return model.init(key, ids_BT, jnp.full((1,), max_length))['params']

  def objective(params, batch, key, step):
    pairs = vectors(
      params, batch, deterministic=False, step=step, rngs={'dropout': key}
    )
    cosine_B, y_B = compared(pairs, batch)
    return jnp.mean((cosine_B - y_B) ** 2), {}

  def measure(params, batch):
    cosine_B, y_B = compared(vectors(params, batch), batch)
    return {
      'loss': (cosine_B - y_B) ** 2,
      **correlation.moments(cosine_B, y_B),
    }

  return Task(
    config.task,
    dataset,
    subwords.encode,
    model,
    init,
    objective,
    measure,
    None,
    lambda: measure_floors(dataset.splits['test'], subwords, max_length),
    classification.TWO_TEXTS,
    select=scores.PEARSON,
    summarise=correlation.summarise,
    score=scores.PEARSON,
    stacks_texts=True,
    embed=lambda params, batch: jnp.stack(vectors(params, batch), axis=1),
  )


def measure_floors(
  evaluated: Source, subwords: Tokenizer, max_length: int
) -> dict[str, float]:
  """Pearson's r of what two sets of subwords A and B tell; nothing is fitted.

  shared_subwords: |A and B| / |A or B| (Jaccard 1912), without the special
  tokens, which stand in every text. lengths: minus the difference of the
  numbers of tokens.
  """
  special = set(subwords.encode(b'').tolist())
  shared, lengths, labels = [], [], []
  for example in read_all(evaluated):
    a_T, b_T = (subwords.encode(example[name], max_length) for name in TEXTS)
    a, b = (set(ids_T.tolist()) - special for ids_T in (a_T, b_T))
    shared.append(len(a & b) / max(len(a | b), 1))
    lengths.append(-abs(len(a_T) - len(b_T)))
    labels.append(example['label'])
  return {
    name: correlation.pearson(np.array(values), np.array(labels))
    for name, values in (('shared_subwords', shared), ('lengths', lengths))
  }


def in_points(cosine: float) -> float:
  """The score, 0 to 5, that the loss would have a cosine be."""
  return HIGHEST * min(max(cosine, 0.0), 1.0)
