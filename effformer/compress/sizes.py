"""How large a model is: numbers, bytes on disk and in memory, by component."""

from typing import Any

import numpy as np

from effformer.compress import halves, tensors
from effformer.compress.tensors import QTensor

COMPONENTS = ('embedding', 'attention', 'feed_forward', 'norms', 'head')


def sizes(params: Any, disk_bytes: int) -> dict[str, Any]:
  """Counts of the numbers of a model and the bytes they take.

  Layers that share parameters have them once. Both halves of a matrix count
  (`halves`): two numbers for each weight.

  Args:
    params: numbers and `QTensor`s.
    disk_bytes: of all files of the model.

  Returns:
    parameters, those that are not 0 (`nonzero`), disk_bytes, memory_bytes (of
    the arrays once they are loaded: a code takes a byte, however few bits it
    has on disk), and components: name -> parameters, packed_bytes (as stored)
    and memory_bytes.
  """
  components = {
    name: {'parameters': 0, 'packed_bytes': 0, 'memory_bytes': 0}
    for name in COMPONENTS
  }
  nonzero = 0
  for path, x in tensors.flatten(params).items():
    if isinstance(x, QTensor):
      arrays = (x.codes, x.scale, x.zero, x.inputs)
      memory, packed = sum(a.nbytes for a in arrays), x.packed_bytes
      numbers = np.asarray(tensors.dequantised(x))
    else:
      numbers = np.asarray(x)
      memory = packed = numbers.nbytes
    nonzero += int(np.count_nonzero(numbers))
    own = components[component(path)]
    own['parameters'] += numbers.size
    own['packed_bytes'] += packed
    own['memory_bytes'] += memory
  return {
    'parameters': sum(own['parameters'] for own in components.values()),
    'nonzero': nonzero,
    'disk_bytes': disk_bytes,
    'memory_bytes': sum(own['memory_bytes'] for own in components.values()),
    'components': components,
  }


def component(path: str) -> str:
  """Which of `COMPONENTS` a parameter belongs to."""
  parts = halves.place(path).split('/')
  if parts[0].startswith('head'):
    return 'head'
  if any(part.startswith('norm') for part in parts):
    return 'norms'
  if 'mixer' in parts or 'conv' in parts:
    return 'attention'
  # Those of bottlenecks, too, go from token to the same token.
  is_dense = 'mlp' in parts or 'bottleneck' in parts
  return 'feed_forward' if is_dense else 'embedding'
