"""S5, by s5-pytorch; the gated output of the paper in torch."""

import torch
import torch.nn.functional as F
from oracles import common
from oracles.record import ALONE, record, rows_alone
from oracles.sizes import LENGTHS, D
from s5 import s5_model

STATES = 6


def files():
  for causal in (True, False):
    module = s5_model.S5(D, STATES, bidir=not causal, dt_min=0.1, dt_max=1.0)
    gate = torch.nn.Linear(D, D)
    common.stir(gate, seed=16)
    stir_states(module.seq)
    yield gated('s5-causal' if causal else 's5', module, gate, causal)


def stir_states(ssm):
  rate = torch.complex(
    -0.5 - 0.3 * common.normal(STATES, seed=17).abs(),
    2 * common.normal(STATES, seed=18),
  )
  with torch.no_grad():
    ssm.Lambda.copy_(rate)
    ssm.B.copy_(common.normal(STATES, D, 2, seed=19) * D**-0.5)
    ssm.C.copy_(torch.view_as_complex(common.normal(*ssm.C.shape, 2, seed=20)))
    ssm.D.copy_(common.normal(D, seed=21))


def gated(file, module, gate, causal):
  def oracle(x):
    g = F.gelu(module(x), approximate='tanh')
    return g * torch.sigmoid(gate(g))

  return record(
    file, 's5', rows_alone(oracle), params_of(module.seq, gate, causal),
    {'state_width': 2 * STATES, 'hippo_blocks': 1, 'causal': causal,
     'chunk': 5},
    lengths=LENGTHS, packages=['s5-pytorch'],
    source='s5-pytorch S5, with the gated output of the paper in torch',
    note='its states come without their conjugates: our C is half of its. '
    f'It has {ALONE}.',
  )  # fmt: skip


def params_of(ssm, gate, causal):
  params = {
    'rate_real': ssm.Lambda.real, 'rate_turn': ssm.Lambda.imag,
    'log_step': ssm.log_step.reshape(-1), 'through': ssm.D,
    'input_real': ssm.B[..., 0].T, 'input_imaginary': ssm.B[..., 1].T,
    'gate': common.dense(gate),
  }  # fmt: skip
  # Ours has one of two conjugate states: y = 2 Re(C h).
  outputs = [c.T / 2 for c in ssm.C.chunk(1 if causal else 2, dim=1)]
  for name, c in zip(('past', 'future'), outputs, strict=False):
    params |= {f'{name}_real': c.real, f'{name}_imaginary': c.imag}
  return params
