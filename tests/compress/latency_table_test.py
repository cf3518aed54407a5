"""What is measured, how often, and what is kept; times themselves are faked."""

import dataclasses
import json

import flax.linen as nn
import numpy as np
import pytest

from effformer import timing
from effformer.compress import latency_table
from effformer.compress.latency_table import Part
from effformer.errors import CheckpointError
from effformer.models import build
from effformer.models.block import LayerConfig
from tests.models.build_test import make_config

LAYERS = {'1': {'mlp_width': 7}, '2': {'share': 'a'}}
B, T = 2, 5


class Fake:
  """A machine on which a part takes what its sizes say."""

  def __init__(self, slow=1.0):
    self.slow = slow
    self.asked = []

  def __call__(self, parts):
    self.asked.append(list(parts))
    return [self.slow * milliseconds(part) for part in parts]


def milliseconds(part):
  width = {'mixer': 100, 'mlp': sum(x.mlp_width for x in part.layers), '': 999}
  return part.batch * part.length * width[part.branch]


def parts_of(layers=None, batch=B, length=T, **keys):
  rows = LAYERS if layers is None else layers
  return latency_table.parts(make_config('full', rows, **keys), batch, length)


def table(parts, path, measure):
  return latency_table.table(sum(parts, ()), path, measure=measure)


def test_every_layer_has_a_mixer_and_a_feed_forward_part():
  found = parts_of()
  assert [[part.branch for part in own] for own in found] == [
    ['mixer', 'mlp']
  ] * 3
  layers = build.layer_configs(make_config('full', LAYERS))
  for own, layer in zip(found, layers, strict=True):
    for part in own:
      assert part == Part(
        (layer,), part.branch, 12, 'layer', 'pre', 'float32', B, T
      )


@pytest.mark.parametrize(
  ('row', 'branches'),
  [
    ({'share': 'a'}, ''), ({'mlp_width': 8}, 'f'),
    ({'activation': 'relu'}, 'f'), ({'mlp_rank': 2}, 'f'),
    ({'conv_width': 2}, 'm'),
    ({'num_heads': 2}, 'm'), ({'head_width': 2}, 'm'), ({'mixer': 'fnet'}, 'm'),
  ],
  ids=str,
)  # fmt: skip
def test_parts_are_the_same_where_their_facts_are(row, branches):
  """Of what a layer has, its name and the other branch are no matter."""
  first, second, _ = parts_of({'1': row})
  for branch, one, other in zip('mf', first, second, strict=True):
    assert (one.key == other.key) == (branch not in branches)


def test_of_what_a_layer_is_only_the_group_is_no_fact():
  (parts, *_) = parts_of({'0': {'bottleneck': 6}})
  names = {name for part in parts for name in part.facts['layers'][0]}
  fields = {field.name for field in dataclasses.fields(LayerConfig)}
  assert names == fields - {'share'}


@pytest.mark.parametrize(
  'other',
  [
    {'batch': 3}, {'length': 4}, {'model__width': 9},
    {'model__norm': 'rms'}, {'model__norm_order': 'post'},
    {'model__dtype': 'bfloat16'},
  ],
  ids=str,
)  # fmt: skip
def test_parts_of_other_sizes_are_others(other):
  keys = {part.key for own in parts_of({}) for part in own}
  others = {part.key for own in parts_of({}, **other) for part in own}
  assert len(keys) == len(others) == 2
  assert not keys & others


def test_each_form_is_measured_once_and_then_known(tmp_path):
  path, fake = tmp_path / 'table.json', Fake()
  parts = parts_of()
  found = table(parts, path, fake)
  (asked,) = fake.asked
  assert [(p.branch, p.layers[0].mlp_width) for p in asked] == [
    ('mixer', 10), ('mlp', 10), ('mlp', 7),
  ]  # fmt: skip
  assert found == {part.key: milliseconds(part) for part in asked}
  every = sum(parts, ())
  assert latency_table.predicted(every, found) == B * T * (300 + 27)
  # From the file: by another machine of the same kind, nothing is asked.
  assert table(parts, path, Fake(slow=2)) == found
  # Only what is new is measured, and beside it all that was known stays.
  wider = parts_of({'0': {'mlp_width': 11}})
  again = Fake()
  assert table(wider, path, again)[wider[0][1].key] == B * T * 11
  assert [[p.layers[0].mlp_width for p in own] for own in again.asked] == [[11]]
  assert table(parts + wider, path, None).keys() > found.keys()


@pytest.mark.parametrize('fact', ['device', 'processor', 'threads', 'jax'])
def test_times_of_another_machine_are_not_taken(tmp_path, monkeypatch, fact):
  path, parts = tmp_path / 'table.json', parts_of()
  facts = latency_table.machine()
  assert facts['threads'] >= 1
  here = table(parts, path, Fake())
  monkeypatch.setattr(
    latency_table, 'machine', lambda: {**facts, fact: 'another'}
  )
  fake = Fake(slow=3)
  there = table(parts, path, fake)
  assert len(fake.asked[0]) == 3
  assert there == {key: 3 * ms for key, ms in here.items()}
  monkeypatch.undo()
  # Both are kept, apart.
  assert table(parts, path, None) == here
  assert len(json.loads(path.read_text())['machines']) == 2


DAMAGED = {
  'cut': (lambda text: text[:-9], 'cannot be read'),
  'list': (lambda text: '[]', 'no JSON object'),
  'other': (lambda text: '{"steps": 3}', 'no table of latencies'),
  'word': (lambda text: text.replace('1000.0', '"soon"'), 'no table of lat'),
  'nan': (lambda text: text.replace('1000.0', '"NaN"'), 'no table of lat'),
  'below': (lambda text: text.replace('1000.0', '-1.0'), 'no table of lat'),
}


@pytest.mark.parametrize('kind', DAMAGED)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, kind):
  path = tmp_path / 'table.json'
  table(parts_of(), path, Fake())
  change, words = DAMAGED[kind]
  text = change(path.read_text())
  assert text != path.read_text()
  path.write_text(text)
  with pytest.raises(CheckpointError, match=words) as caught:
    table(parts_of(), path, Fake())
  assert 'elete it' in str(caught.value)
  assert path.read_text() == text


def test_what_cannot_be_written_is_said(tmp_path):
  with pytest.raises(CheckpointError, match='cannot write'):
    table(parts_of(), tmp_path / 'no_folder' / 'table.json', Fake())


def test_what_a_program_that_computes_nothing_takes_is_taken_off(monkeypatch):
  """Medians of the rounds, in milliseconds, and none below 0."""
  parts = [part for own in parts_of({})[:1] for part in own]
  parts += [part._replace(batch=3) for part in parts]

  def rounds(programs, number):
    assert number == latency_table.ROUNDS
    shapes = [np.shape(program()) for program in programs]
    assert shapes == [(B, T, 12)] * 2 + [(3, T, 12)] * 2 + [
      (B, T, 12),
      (3, T, 12),
    ]
    slow = (1.0, 30.0, 2.0)
    seconds = (0.007, 0.004, 0.009, 0.001, 0.0005, 0.002)
    return [[own * factor for factor in slow] for own in seconds]

  monkeypatch.setattr(timing, 'rounds', rounds)
  assert latency_table.measured(parts) == pytest.approx([13, 7, 14, 0])


@pytest.mark.parametrize(
  ('branch', 'norm_order', 'called'),
  [
    ('mixer', 'pre', ['mixer']), ('mlp', 'pre', ['mlp']),
    ('mixer', 'post', ['mixer']), ('', 'pre', ['mixer', 'mlp'] * 3),
  ],
)  # fmt: skip
def test_a_program_is_of_the_part_alone(branch, norm_order, called):
  """Of an encoder, of every layer: none of them is scanned."""
  layers = build.layer_configs(make_config('full'))
  part = Part(
    layers if branch == '' else layers[:1], branch, 12, 'rms',
    norm_order, 'float32', B, T,
  )  # fmt: skip
  names, widths = [], set()

  def watch(call, arguments, keywords, context):
    name, is_call = context.module.name, context.method_name == '__call__'
    is_run = is_call and not context.module.is_initializing()
    if is_run and name in ('mixer', 'mlp'):
      names.append(name)
    if is_call and name == 'in':
      widths.add(context.module.features)
    return call(*arguments, **keywords)

  with nn.intercept_methods(watch):
    run = latency_table.program(part)
  # An encoder that makes its parameters runs, too.
  assert names == called * (1 if branch else 2)
  assert widths == ({10} if 'mlp' in called else set())
  found = np.asarray(run())
  assert found.shape == (B, T, 12)
  assert np.isfinite(found).all()
  assert np.abs(found).max() > 0


def test_the_sum_of_the_parts_beside_the_whole(tmp_path):
  fake = Fake()
  config = make_config('full', LAYERS)
  both = latency_table.predicted_and_measured(
    config, B, T, tmp_path / 'table.json', measure=fake
  )
  assert both == (B * T * (300 + 27), B * T * 999)
  (whole,) = fake.asked[-1]
  assert whole.layers == build.layer_configs(config)
  # The whole is measured now, and not kept.
  latency_table.predicted_and_measured(
    config, B, T, tmp_path / 'table.json', measure=fake
  )
  assert [len(own) for own in fake.asked] == [3, 1, 1]
