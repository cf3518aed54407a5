"""Token ids to vectors: of each token, or of the whole text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from effformer.models import classifier


class Embedder(classifier.Pooled):
  """Vectors of texts: `e = p / |p|` with p = pool(trunk(ids)).

  The dot product of two of them is their cosine (Reimers & Gurevych 2019,
  1908.10084).
  """

  @nn.compact
  def __call__(
    self,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    *,
    types_BT: jax.Array | None = None,
    deterministic: bool = True,
    step: jax.Array | None = None,
  ) -> jax.Array:
    """e_BD, float32, of length 1 (0 for a row of zeros)."""
    pooled_BD = self._pooled(ids_BT, lengths_B, deterministic, step, types_BT)
    norm_B1 = jnp.linalg.norm(pooled_BD, axis=-1, keepdims=True)
    return pooled_BD / jnp.maximum(norm_B1, 1e-12)
