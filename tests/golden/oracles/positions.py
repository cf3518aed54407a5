"""T5 buckets, ALiBi slopes and rotary positions, by transformers."""

import torch
from oracles import common
from oracles.record import described
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention


def files():
  ahead = torch.arange(-300, 301)
  arrays = {'ahead': ahead}
  for causal in (False, True):
    for buckets, furthest in ((32, 128), (16, 64), (32, 100)):
      arrays[f'buckets-{int(causal)}-{buckets}-{furthest}'] = (
        T5Attention._relative_position_bucket(
          ahead, not causal, buckets, furthest
        ).to(torch.int32)
      )
  for heads in range(1, 17):
    # Slope times position: the second position has the slope itself.
    alibi = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
    arrays[f'slopes-{heads}'] = alibi[:, 0, 1]
  position = torch.tensor([0, 1, 2, 30, 500, 4000])
  x = common.normal(1, 1, len(position), 8, seed=8)
  turned = common.rotation(8)(x, position)
  arrays |= {'position': position, 'x': x[0, 0], 'turned': turned[0, 0]}
  yield described(
    'positions', 'positions', arrays, {}, ['transformers'],
    'transformers T5 buckets, Bloom slopes, Llama rotary positions',
  )  # fmt: skip
