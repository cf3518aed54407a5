"""docs/laws.md: which law was tested how often on which mechanism.

  python -m experiments.law_table
  python -m experiments.law_table --reports=fast.xml,slow.xml

Runs tests/attention and tests/golden, the slow tests too, and counts those that
passed; or counts what `pytest --junitxml` wrote before. A failure or an error
ends the script with exit code 1 and leaves the file alone.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

from effformer import attention

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / 'docs' / 'laws.md'
SUITES = ('tests/attention', 'tests/golden')
# Test function -> law, in the order of the columns.
LAWS = {
  'test_content_of_padding_is_ignored': 'L1',
  'test_more_padding_changes_nothing': "L1'",
  'test_no_token_sees_the_future': 'L2',
  'test_segments_are_isolated': 'L3',
  'test_promise_of_one_segment_changes_nothing': 'L3',
  'test_stream_equals_call_for_every_split': 'L4',
  'test_stream_by_single_tokens_and_by_parts': 'L4',
  'test_padding_leaves_the_state_as_it_was': 'L4',
  'test_equals_dense_definition': 'L5',
  'test_heads_one_by_one_equal_dense_definition': 'L5',
  'test_row_without_tokens_gives_zero_and_no_gradient': 'L7',
  'test_empty_context_gives_zero': 'L7',
  'test_order_of_sources_matters_only_where_declared': 'L8',
  'test_constant_values_come_back_only_where_declared': 'L9',
  'test_grouped_queries_share_keys_and_values': 'grouped',
  'test_capability_is_there_or_refused': 'declared',
  'test_memory_is_linear_where_declared': 'memory',
  'test_operations_are_linear_where_declared': 'operations',
  'test_bfloat16_is_close_to_float32': 'bfloat16',
}
OWN, GOLDEN = 'own', 'golden'
ABOUT = """\
# Which law is tested on which mechanism

Made by `python -m experiments.law_table`: numbers of tests that passed.

L1 the content of padding is ignored · L1' more padding changes nothing · L2 no
token sees the future · L3 packed segments are isolated · L4 a stream equals the
causal call, for every split · L5 the fast form equals the dense definition of
the same mechanism, with gradients · L7 nothing to attend to gives 0 and no
gradient · L8 the order of a set changes nothing (or does, where not declared) ·
L9 constant values come back (or do not) · grouped: fewer heads of keys and
values · declared: capabilities work, and what is not declared is refused ·
memory, operations: grow linearly with the tokens (or do not) · bfloat16: close
to float32 · own: limits (L6) and properties of this mechanism ·
golden: equal to a public implementation.
"""


def cases(paths: list[pathlib.Path]):
  """(file, test function, words of the parameters) of what passed."""
  for path in paths:
    for case in ET.parse(path).getroot().iter('testcase'):
      if any(case.find(word) is not None for word in ('failure', 'error')):
        raise SystemExit(f'{path}: {case.get("name")} failed')
      if case.find('skipped') is None:
        name, _, rest = case.get('name').partition('[')
        yield case.get('classname'), name, re.split(r'[^\w]+', rest)


def counted(paths: list[pathlib.Path]) -> dict[str, collections.Counter]:
  result = {name: collections.Counter() for name in attention.TABLE}
  for where, test, words in cases(paths):
    room, _, file = where.rpartition('.')
    if file == 'golden_test':
      column = GOLDEN
    elif room.endswith('mechanisms'):
      column, words = OWN, [file.removesuffix('_test')]
    else:
      column = LAWS.get(test)
    mechanism = next((word for word in words if word in result), None)
    if column and mechanism:
      result[mechanism][column] += 1
  return result


def run_tests(folder: pathlib.Path) -> list[pathlib.Path]:
  """The reports of the plain tests, and of those that need optimisation."""
  reports = []
  for name, words in {
    'plain': ['-m', 'not optimised'],
    'optimised': ['-m', 'optimised', '--optimised'],
  }.items():
    reports.append(folder / f'{name}.xml')
    subprocess.run(
      [sys.executable, '-m', 'pytest', *SUITES, *words,
       f'--junitxml={reports[-1]}'],
      cwd=ROOT,
    )  # fmt: skip
  return reports


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reports', help='files of pytest, by commas')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    if options.reports:
      reports = [pathlib.Path(path) for path in options.reports.split(',')]
    else:
      reports = run_tests(pathlib.Path(folder))
    counts = counted(reports)
  columns = [*dict.fromkeys(LAWS.values()), OWN, GOLDEN]
  lines = [
    '| mechanism | ' + ' | '.join(columns) + ' |',
    '| --- |' + ' --- |' * len(columns),
  ]
  for name, counter in counts.items():
    cells = [str(counter[column] or '') for column in columns]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  TARGET.write_text(ABOUT + '\n' + '\n'.join(lines) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
