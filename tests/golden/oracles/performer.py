"""Performer, by performer-pytorch."""

from oracles import common
from oracles.linear import over_features
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, H, K
from performer_pytorch import performer_pytorch

NUM_FEATURES = 10


def files():
  omega = performer_pytorch.gaussian_orthogonal_random_matrix(NUM_FEATURES, K)

  def positive(q, k):
    return (
      performer_pytorch.softmax_kernel(
        x, projection_matrix=omega, is_query=is_query, eps=0.0
      )
      for x, is_query in ((q, True), (k, False))
    )

  def relu(q, k):
    return (
      performer_pytorch.generalized_kernel(x, projection_matrix=omega)
      for x in (q, k)
    )

  for file, features, causal in (
    ('performer', positive, False), ('performer-causal', positive, True),
    ('performer-relu', relu, False), ('performer-relu-causal', relu, True),
  ):  # fmt: skip
    yield by_features(file, features, causal, omega)


def by_features(file, features, causal, omega):
  layers = common.projections(seed=9)
  return record(
    file, 'performer',
    rows_alone(common.multihead(layers, over_features(features, causal))),
    common.four(*layers),
    {
      'num_heads': H, 'use_bias': True, 'causal': causal, 'chunk': 5,
      'num_features': NUM_FEATURES, 'features': features.__name__,
    },
    lengths=LENGTHS, packages=['performer-pytorch'],
    constant=omega.expand(H, -1, -1),
    source='performer-pytorch softmax_kernel, generalized_kernel, '
    'linear_attention',
    note='eps is 0 here, as in ours: 1e-4 in the features is no longer the '
    f'estimate. It has {ALONE}. The constant is its Omega, which ours is '
    'given.',
  )  # fmt: skip
