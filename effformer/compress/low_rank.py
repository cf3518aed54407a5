"""Matrices and tables as products of two thinner ones.

    W ~ A B          W [k, n],  A [k, r],  B [r, n]

has fewer numbers, and fewer operations, where r < k n / (k + n). With W =
U D V^T the first r singular values and vectors give the nearest product in the
sum of squares (Eckart & Young 1936):

    A = U_r D_r^1/2          B = D_r^1/2 V_r^T

Where the inputs x of W are known, the error of its outputs is made small and
not its own. With S = sum x x^T + damp * mean(diag) I = Q L Q^T, and L^1/2 Q^T W
= U D V^T,

    A = Q L^-1/2 U_r D_r^1/2          B = D_r^1/2 V_r^T

has the least tr((W - A B)^T S (W - A B)) of all products of rank r: the sum of
the other D_i^2. Directions in which no input lies cost nothing then. (SVD-LLM,
Wang et al. 2024, 2403.07378, section 3, with this square root in place of a
Cholesky factor.)
"""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from effformer import config as config_lib
from effformer.compress import tensors
from effformer.compress.calibrate import Moments
from effformer.errors import ConfigError
from effformer.models import build, encoder
from effformer.shapes import Array

DAMP = 1e-3
EMBEDDING = 'embedding'
# Its path; that of the vectors of types ends in the same name.
TABLE = 'embedding/embedding'


def worth(k: int, n: int, rank: int) -> bool:
  """Whether a product of this rank has fewer numbers than a matrix [k, n]."""
  return rank * (k + n) < k * n


def rank_for(k: int, n: int, share: float) -> int:
  """The greatest rank whose product has this share of the numbers of [k, n].

  At least 1, also where that has more.

  Args:
    k, n: of the matrix.
    share: above 0, at most 1.
  """
  if not 0 < share <= 1:
    raise ValueError(f'a share is above 0 and at most 1, not {share}')
  return max(int(share * k * n / (k + n)), 1)


def product(
  w_KN: Array, rank: int, gram_KK: Array | None = None, *, damp: float = DAMP
) -> tuple[np.ndarray, np.ndarray]:
  """a_KM and b_MN, float32, whose product is nearest to a matrix.

  Args:
    w_KN: the matrix.
    rank: M, from 1 to that of a full one.
    gram_KK: sum of x x^T of its inputs; None for the sum of squares of w_KN.
    damp: share of the mean of the diagonal that is added to it, above 0.

  Raises:
    ValueError: no such rank or damp, or a Gram matrix of another shape.
  """
  w_KN = np.asarray(w_KN, np.float64)
  k, n = w_KN.shape
  if not 1 <= rank <= min(k, n):
    raise ValueError(f'a rank of [{k}, {n}] is 1 to {min(k, n)}, not {rank}')
  roots_K, basis_KK = np.ones(k), np.eye(k)
  if gram_KK is not None:
    roots_K, basis_KK = _root(np.asarray(gram_KK, np.float64), k, damp)
  left_KR, values_R, right_RN = np.linalg.svd(
    roots_K[:, None] * (basis_KK.T @ w_KN), full_matrices=False
  )
  # Evenly, so that neither is much larger than the other.
  half_M = np.sqrt(values_R[:rank])
  a_KM = basis_KK @ (left_KR[:, :rank] / roots_K[:, None]) * half_M[None]
  b_MN = half_M[:, None] * right_RN[:rank]
  return a_KM.astype(np.float32), b_MN.astype(np.float32)


def factorise(
  config: ml_collections.ConfigDict,
  params: Any,
  rank: int | Mapping[str, int],
  *,
  moments: Mapping[str, Moments] | None = None,
  damp: float = DAMP,
) -> tuple[ml_collections.ConfigDict, Any]:
  """The model whose feed-forward kernels, or embedding, are products.

  Its config has `mlp_rank` in `model.layers`, and `model.embedding_width`.

  Args:
    config: of the model.
    params: of the model, numbers.
    rank: of all feed-forward parts; or of each place that is named:
      'encoder/layer_0/mlp' (of a share group 'encoder/shared_NAME/mlp'), both
      kernels, and 'embedding', the table of tokens.
    moments: from `calibrate.collect`, of the feed-forward kernels; None for the
      nearest products of the kernels themselves. The table, whose inputs are
      ids, is always the latter.
    damp: see `product`.

  Raises:
    ConfigError: there is no such place, it is a product already, or the product
      would not have fewer numbers.
    ValueError: there are no moments of a kernel.
  """
  flat = dict(tensors.flatten(params))
  layers = build.layer_configs(config)
  names = [f'encoder/{name}/mlp' for name in encoder.layer_names(layers)]
  if not isinstance(rank, Mapping):
    rank = dict.fromkeys(names, rank)
  rows = {index: row.to_dict() for index, row in config.model.layers.items()}
  changes = {}
  for place, own in rank.items():
    if place == EMBEDDING and TABLE in flat:
      _factorise_table(flat, own, config.model.embedding_width)
      changes['model.embedding_width'] = own
      continue
    if place not in names:
      raise ConfigError(
        f'there is no {place} that could be a product of two matrices.\nPlaces '
        f'of this model are {", ".join(dict.fromkeys(names))}, and '
        f'{EMBEDDING} where it looks ids up.'
      )
    _factorise_mlp(flat, place, own, layers[names.index(place)], moments, damp)
    for index, name in enumerate(names):
      if name == place:
        rows[str(index)] = {**rows.get(str(index), {}), 'mlp_rank': own}
  config = config_lib.changed(config, {'model.layers': rows, **changes})
  return config, flax.traverse_util.unflatten_dict(flat, sep='/')


def _root(gram_KK, k, damp):
  """L^1/2 and Q, of the damped matrix."""
  if damp <= 0:
    raise ValueError(f'damp has to be above 0, got {damp}')
  if gram_KK.shape != (k, k):
    raise ValueError(
      f'a matrix of {k} inputs needs their Gram matrix, got {gram_KK.shape}'
    )
  values_K, basis_KK = np.linalg.eigh(gram_KK)
  # Of inputs that were all 0 it is not known which matter.
  mean = np.mean(np.diagonal(gram_KK)) or 1.0
  # Sums in float32 may come out below 0.
  return np.sqrt(np.maximum(values_K, 0) + damp * mean), basis_KK


def _factorise_mlp(flat, place, rank, layer, moments, damp):
  _check_new(place, layer.mlp_rank)
  for name in ('in', 'out'):
    path = f'{place}/{name}/kernel'
    w_KN = np.asarray(flat[path])
    _check_worth(path, w_KN.shape, rank)
    gram_KK = None
    if moments is not None:
      if path not in moments:
        raise ValueError(f'there are no moments of the inputs of {path}')
      gram_KK = moments[path].gram_KK
    flat[f'{place}/{name}_low/kernel'], flat[path] = product(
      w_KN, rank, gram_KK, damp=damp
    )


def _factorise_table(flat, rank, width):
  _check_new(EMBEDDING, width)
  table_YD = np.asarray(flat[TABLE])
  _check_worth(TABLE, table_YD.shape, rank)
  flat[TABLE], flat['embedding_out/kernel'] = product(table_YD, rank)


def _check_new(place, rank):
  if rank:
    raise ConfigError(
      f'{place} is a product of rank {rank} already.\nStart from the model '
      'before, or leave it out.'
    )


def _check_worth(path, shape, rank):
  most = (shape[0] * shape[1] - 1) // sum(shape)
  if not 1 <= rank <= most:
    raise ConfigError(
      f'{path} {list(shape)} as a product of rank {rank} would not be smaller.'
      f'\nUse a rank from 1 to {most}.'
      if most
      else f'{path} {list(shape)} is too small to be a product.'
    )
