"""ListOps with the rule of the Long Range Arena, seeded and vectorised.

Tay et al., 2020 (arXiv 2011.04006), after Nangia and Bowman, 2018
(arXiv 1804.06028). A node is an operator with probability 1/4, else a digit;
at depth 10 always a digit. An operator (MIN, MAX, MED, SM, uniform) has 2 to
10 arguments (uniform). MED is the median rounded down, SM the sum modulo 10.
A tree counts two per operator and one per digit, and is kept if it counts
more than 500 and less than 2,000; about one draw in twelve is.

Example i is the first draw that is kept in the random stream of (seed, i), so
it depends on nothing else: not on workers, chunks or the other examples. Node
n of a draw (numbered by level) reads word n of the draw's SplitMix64 stream
(Steele, Lea and Flood, 2014), which NumPy evaluates for thousands of trees at
once. Two examples are equal with probability below 10^-300; `builders` checks
it all the same.

Deviations from LRA: the binary nesting by parentheses, which every reader
drops, is not written; the split is by example number instead of the order of a
Python set.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator

import numpy as np

from effformer.data import splitmix
from effformer.data.tokenizers import LISTOPS_SYMBOLS, ListOpsTokenizer
from effformer.errors import DataError

MAX_DEPTH = 10
MIN_ARGS, MAX_ARGS = 2, 10
MIN_LENGTH, MAX_LENGTH = 500, 2000  # both excluded
OPERATORS = (b'[MIN', b'[MAX', b'[MED', b'[SM')
NUM_CLASSES = 10

_OPERATOR_IDS = [LISTOPS_SYMBOLS.index(symbol) + 1 for symbol in OPERATORS]
_CLOSE_ID = LISTOPS_SYMBOLS.index(b']') + 1
_MIN, _MAX, _MED, _SM = range(4)
_CHUNK = 1024  # examples that are drawn at once; no effect on the result
_ATTEMPTS = 4  # draws per example and round; no effect on the result

# Bytes of 'digit ', of '[OP ' and of '] '.
_DIGIT_BYTES, _CLOSE_BYTES = 2, 2
_HEADER_BYTES = np.array([len(op) + 1 for op in OPERATORS])
_HEADERS = np.frombuffer(
  b''.join(op.ljust(4) for op in OPERATORS), np.uint8
).reshape(4, 4)


@dataclasses.dataclass
class _Level:
  """Nodes of equal depth of many trees, ordered by tree, siblings together.

  tree: which tree a node belongs to. word: its 64 random bits. args: its
  number of arguments, 0 for a digit.
  """

  tree: np.ndarray
  word: np.ndarray
  args: np.ndarray


def _keys(seed: int, examples: np.ndarray, attempts: np.ndarray) -> np.ndarray:
  """Stream key of each (example, attempt), uint64."""
  return splitmix.words(splitmix.keys(seed, examples), attempts)


def _grow(keys_B: np.ndarray) -> tuple[list[_Level], np.ndarray]:
  """Levels of the trees of `keys_B`, and the length of each.

  A tree that has reached MAX_LENGTH grows no further; its length is then at
  least MAX_LENGTH, and no more than that.
  """
  num_trees = len(keys_B)
  tree = np.arange(num_trees)
  counts_B = np.ones(num_trees, np.int64)
  first_B = np.zeros(num_trees, np.int64)
  length_B = np.zeros(num_trees, np.int64)
  levels = []
  for depth in range(1, MAX_DEPTH + 1):
    # Number of a node in its tree = place in level + offset of the tree.
    offset_B = first_B - (np.cumsum(counts_B) - counts_B)
    start_B = keys_B + splitmix.GOLDEN * offset_B.astype(np.uint64)
    word = splitmix.words(start_B[tree], np.arange(len(tree)))
    is_operator = (word & np.uint64(3)) == 0
    if depth == MAX_DEPTH:
      is_operator[:] = False
    args = np.where(
      is_operator,
      splitmix.below(word, 2, MAX_ARGS - MIN_ARGS + 1) + MIN_ARGS,
      0,
    )
    operators_B = np.bincount(tree[is_operator], minlength=num_trees)
    length_B += counts_B + operators_B
    first_B += counts_B
    counts_B = np.bincount(tree, args, num_trees).astype(np.int64)
    is_long_B = length_B + counts_B >= MAX_LENGTH
    if is_long_B.any():
      length_B[is_long_B] = np.maximum(length_B[is_long_B], MAX_LENGTH)
      counts_B[is_long_B] = 0
      args[is_long_B[tree]] = 0
    levels.append(_Level(tree, word, args))
    tree = np.repeat(tree, args)
    if not len(tree):
      break
  return levels, length_B


def _accepted_keys(seed: int, start: int, stop: int) -> tuple[np.ndarray, int]:
  """Key of the first kept draw of each example, and the number of draws."""
  keys_N = np.zeros(stop - start, np.uint64)
  pending = np.arange(stop - start)
  draws, attempt = 0, 0
  while len(pending):
    attempts = np.tile(np.arange(attempt, attempt + _ATTEMPTS), len(pending))
    keys = _keys(seed, np.repeat(pending, _ATTEMPTS) + start, attempts)
    _, length = _grow(keys)
    keep = ((length > MIN_LENGTH) & (length < MAX_LENGTH)).reshape(
      -1, _ATTEMPTS
    )
    first, found = np.argmax(keep, axis=1), keep.any(axis=1)
    rows = np.arange(len(pending))[found]
    keys_N[pending[found]] = keys.reshape(-1, _ATTEMPTS)[rows, first[found]]
    draws += int(np.where(found, first + 1, _ATTEMPTS).sum())
    pending = pending[~found]
    attempt += _ATTEMPTS
  return keys_N, draws


def _operator_values(op: np.ndarray, args: np.ndarray, child: np.ndarray):
  """Value of each operator; its arguments follow each other in `child`."""
  starts = np.cumsum(args) - args
  value = np.select(
    [op == _MIN, op == _MAX],
    [np.minimum.reduceat(child, starts), np.maximum.reduceat(child, starts)],
    np.add.reduceat(child, starts) % 10,
  )
  is_median = op == _MED
  if is_median.any():
    of_median = np.repeat(is_median, args)
    args = args[is_median]
    starts = np.cumsum(args) - args
    group = np.repeat(np.arange(len(args)), args)
    ordered = np.sort(group * 16 + child[of_median]) & 15
    low, high = ordered[starts + (args - 1) // 2], ordered[starts + args // 2]
    value[is_median] = (low + high) // 2
  return value


def _render(levels: list[_Level]) -> tuple[list[bytes], np.ndarray]:
  """Text and label of each tree."""
  values, sizes = [], []
  child_value = child_size = np.zeros(0, np.int64)
  for level in reversed(levels):
    is_operator = level.args > 0
    value = splitmix.below(level.word, 24, 10)
    size = np.full(len(value), _DIGIT_BYTES)
    if is_operator.any():
      op, args = _operator(level, is_operator)
      value[is_operator] = _operator_values(op, args, child_value)
      inner = np.add.reduceat(child_size, np.cumsum(args) - args)
      size[is_operator] = _HEADER_BYTES[op] + inner + _CLOSE_BYTES
    values.append(value)
    sizes.append(size)
    child_value, child_size = value, size
  values.reverse()
  sizes.reverse()

  offset = np.cumsum(sizes[0]) - sizes[0]
  ends = offset + sizes[0] - 1  # without the last space
  out = np.full(int(sizes[0].sum()), ord(' '), np.uint8)
  texts = list(zip(offset.tolist(), ends.tolist(), strict=True))
  for depth, level in enumerate(levels):
    is_operator = level.args > 0
    is_digit = ~is_operator
    out[offset[is_digit]] = values[depth][is_digit] + ord('0')
    if not is_operator.any():
      continue
    op, args = _operator(level, is_operator)
    start = offset[is_operator]
    for i in range(4):
      out[start + i] = _HEADERS[op, i]
    out[start + sizes[depth][is_operator] - _CLOSE_BYTES] = ord(']')
    size = sizes[depth + 1]
    before = np.cumsum(size) - size
    shift = start + _HEADER_BYTES[op] - before[np.cumsum(args) - args]
    offset = before + np.repeat(shift, args)
  data = out.tobytes()
  return [data[a:b] for a, b in texts], values[0]


def _operator(level: _Level, is_operator: np.ndarray):
  """Which operator, and how many arguments, of the operators of a level."""
  op = (level.word[is_operator] >> np.uint64(44)) & np.uint64(3)
  return op.astype(np.int64), level.args[is_operator]


def generate_chunk(seed: int, start: int, stop: int):
  """Examples start .. stop - 1.

  Returns:
    Texts (list of bytes), labels (int64 [N]), and the number of draws that it
    took to find them.
  """
  keys_N, draws = _accepted_keys(seed, start, stop)
  levels, _ = _grow(keys_N)
  texts, labels_N = _render(levels)
  return texts, labels_N, draws


def generate(
  seed: int, start: int, stop: int, *, num_workers: int = 2
) -> Iterator[tuple[bytes, int]]:
  """Text and label of the examples start .. stop - 1, in order.

  Args:
    seed: of the data set; another seed is another data set.
    start, stop: example numbers.
    num_workers: threads (NumPy lets go of the interpreter lock); it changes
      nothing but the time.
  """
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    ahead = collections.deque()
    for a in range(start, stop, _CHUNK):
      ahead.append(pool.submit(generate_chunk, seed, a, min(a + _CHUNK, stop)))
      if len(ahead) > num_workers:
        yield from _examples(ahead.popleft())
    while ahead:
      yield from _examples(ahead.popleft())


def _examples(future):
  texts, labels_N, _ = future.result()
  return zip(texts, labels_N.tolist(), strict=True)


def check(text: bytes) -> None:
  """Refuses what is not one whole expression, and says what is wrong.

  Raises:
    DataError: an unknown symbol, or the symbol (from 1) that is misplaced.
  """
  if b'(' in text or b')' in text:
    raise _malformed('leave out the parentheses')
  ids_T = ListOpsTokenizer().encode(text)
  is_open_T = np.isin(ids_T, _OPERATOR_IDS)
  is_close_T = ids_T == _CLOSE_ID
  depth_T = np.cumsum(is_open_T.astype(np.int64) - is_close_T)
  faults = []
  if len(surplus := np.flatnonzero(depth_T < 0)):
    faults.append((surplus[0], 'closes no operator'))
  if len(ends := np.flatnonzero(depth_T[:-1] == 0)):
    faults.append((ends[0] + 1, 'comes after the end of the expression'))
  if len(bare := np.flatnonzero(is_open_T[:-1] & is_close_T[1:])):
    faults.append((bare[0], 'has no arguments'))
  if faults:
    place, words = min(faults)
    symbol = LISTOPS_SYMBOLS[ids_T[place] - 1].decode()
    raise _malformed(f'symbol {place + 1}, {symbol!r}, {words}')
  if depth_T[-1]:
    raise _malformed(f'{depth_T[-1]} "]" missing at the end')


def _malformed(words: str) -> DataError:
  return DataError(
    f'not a ListOps expression: {words}; write it like [MAX 2 [MIN 4 7 ] ]'
  )


def evaluate(text: bytes) -> int:
  """The value of an expression, recomputed from its text with a stack.

  Raises:
    DataError: the text is not a well-formed expression.
  """
  stack: list[tuple[bytes, list[int]]] = [(b'', [])]
  for symbol in text.split(b' '):
    if symbol in OPERATORS:
      stack.append((symbol, []))
      continue
    if symbol == b']':
      operator, values = stack.pop()
      if not operator or not values:
        raise DataError('not a ListOps expression: misplaced "]".')
      value = _apply(operator, values)
    elif len(symbol) == 1 and symbol.isdigit():
      value = int(symbol)
    else:
      raise DataError(f'not a ListOps symbol: {symbol[:40]!r}.')
    stack[-1][1].append(value)
  if len(stack) != 1 or len(stack[0][1]) != 1:
    raise DataError('not a ListOps expression: "]" missing or text after it.')
  return stack[0][1][0]


def _apply(operator: bytes, values: list[int]) -> int:
  if operator == b'[MIN':
    return min(values)
  if operator == b'[MAX':
    return max(values)
  if operator == b'[SM':
    return sum(values) % 10
  ordered, count = sorted(values), len(values)
  return (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
