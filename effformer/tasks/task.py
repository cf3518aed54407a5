"""A task: data, features, model, loss, measures, floors, as one plain value."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effformer import data, scores


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop needs to know, and all it knows, of a problem.

  Attributes:
    name: row of `tasks.TABLE`.
    dataset: the splits and where they came from.
    encode: (text, max_length) -> ids [T], at most max_length of them.
    model: the network.
    init: key -> params.
    objective: (params, batch, key, step, *frozen) -> (loss, values), means over
      the batch; step is the number of training steps so far.
    measure: (params, batch) -> per-example values [B] of an evaluation; where
      `tokens` is among them, the others are means over so many tokens.
    predict: (params, batch) -> probabilities of the classes [B, C]; of the
      batch only the arrays of `inputs` are read. None without classes.
    floors: () -> name -> score on the test split of trivial models.
    inputs: names in a batch of what the model takes, in order.
    select: the measure whose best validation value names the best step.
    is_lower_better: whether the lowest value is the best, not the highest.
    decode: ids [T] -> text, where the model continues texts; else None.
    encode_pair: (text, other, max_length) -> ids and types of both texts in one
      row; None where the texts of a pair are rows of their own.
    frozen: pytrees of arrays that the objective needs and no step changes, such
      as the parameters of a teacher.
    summarise: means of what `measure` gives, over a split -> what is shown of
      them, such as measures that are no means.
    score: the measure that people are shown, times 100, and that floors are of;
      see `scores`.
    stacks_texts: whether the network takes both texts of each example as rows
      of one batch, see `stacked`.
    embed: (params, batch) -> e_B2D, the unit vectors of both texts, where the
      task is about these; else None.
  """

  name: str
  dataset: data.Dataset
  encode: Callable[[bytes, int], np.ndarray]
  model: nn.Module
  init: Callable[[jax.Array], Any]
  objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  measure: Callable[[Any, Any], dict[str, jax.Array]]
  predict: Callable[[Any, Any], jax.Array] | None
  floors: Callable[[], dict[str, float]]
  inputs: tuple[str, ...] = ('ids_BT', 'lengths_B')
  select: str = 'accuracy'
  is_lower_better: bool = False
  decode: Callable[[np.ndarray], bytes] | None = None
  encode_pair: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
  summarise: Callable[[dict[str, Any]], dict[str, Any]] = dict
  frozen: tuple[Any, ...] = ()
  score: str = scores.ACCURACY
  stacks_texts: bool = False
  embed: Callable[[Any, Any], jax.Array] | None = None

  @property
  def num_texts(self) -> int:
    """How many texts an example has."""
    return 1 + ('other_ids_BT' in self.inputs or self.encode_pair is not None)

  def arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the network for a batch."""
    if self.stacks_texts:
      return stacked(batch)
    return {name: batch[name] for name in self.inputs}


def stacked(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
  """B pairs as rows of 2 B texts: all first ones, then all second ones."""
  return {
    name: jnp.concatenate([batch[name], batch[f'other_{name}']])
    for name in ('ids_BT', 'lengths_B')
  }
