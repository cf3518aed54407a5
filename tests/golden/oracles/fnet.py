"""FNet, by transformers."""

from oracles.record import record
from oracles.sizes import LENGTHS, B, D, T
from transformers import FNetConfig
from transformers.models.fnet import modeling_fnet


def files():
  config = FNetConfig(hidden_size=D, use_tpu_fourier_optimizations=False)
  module = modeling_fnet.FNetBasicFourierTransform(config)
  yield record(
    'fnet', 'fnet', lambda x, keep: module(x * keep[..., None])[0], {}, {},
    lengths=LENGTHS, packages=['transformers'], shape=(B, T + 1, D),
    source='transformers FNetBasicFourierTransform',
  )  # fmt: skip
