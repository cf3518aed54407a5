"""FNet, as products with matrices of cosines and sines."""

import numpy as np

SMALL = [{'unitary': True}, {}]


def definition(case, variables, x_BTD, tokens):
  assert not variables
  x_BTD = x_BTD * tokens.keep_BT[..., None]
  cos_TT, sin_TT = waves(x_BTD.shape[1])
  cos_DD, sin_DD = waves(x_BTD.shape[2])
  y_BTD = cos_TT @ (x_BTD @ cos_DD) - sin_TT @ (x_BTD @ sin_DD)
  if case.settings.get('unitary'):
    y_BTD = y_BTD / (x_BTD.shape[1] * x_BTD.shape[2]) ** 0.5
  return y_BTD


def waves(size):
  angle = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
  return np.cos(angle).astype('f4'), np.sin(angle).astype('f4')
