"""What is timed and counted; times themselves are faked."""

import jax
import numpy as np
import pytest

from effformer import config as config_lib
from effformer import cost, errors, timing
from effformer.compress import latency, speed, tensors
from effformer.compress.artefact import Compressed
from effformer.compress.grid import Grid
from effformer.compress.speed import Shape
from effformer.models import build
from tests.models.build_test import make_config

D, F, LAYERS, Y, C = 12, 10, 4, 11, 3
SHAPES = (Shape(1, 5), Shape(3, 16))


def model(kind='classifier', **keys):
  keys = {'model__num_layers': LAYERS, 'mixer__form': 'dense', **keys}
  config = make_config('full', **keys)
  module = build.of_kind(kind, config, Y, C)
  ids_BT = np.ones((1, 5), 'i4')
  inputs = (ids_BT, np.array([5])) * (1 + (kind == 'pair_classifier'))
  params = jax.jit(module.init)(jax.random.key(0), *inputs)['params']
  return Compressed(config, kind, Y, C, False, jax.device_get(params), '0' * 64)


@pytest.fixture(scope='module')
def parent():
  return model()


@pytest.fixture(scope='module')
def half():
  return model(model__num_layers=LAYERS // 2)


def rounded(own, bits=8, activations=''):
  plan = tensors.uniform_plan(own.params, Grid(bits))
  params = tensors.quantise(own.params, plan)
  return own._replace(params=params, activations=activations)


def by_hand(batch, length, layers, rows=1):
  """Products of the four projections, of scores and values, of the MLP."""
  each = 4 * length * D * D + 2 * length**2 * D + 2 * length * D * F
  return batch * rows * layers * each


def test_words_are_shapes():
  assert speed.shape('8x128') == Shape(8, 128)
  assert str(Shape(8, 128)) == '8 x 128'


# What a program computes.


@pytest.mark.parametrize('where', SHAPES, ids=str)
def test_products_are_those_by_hand(parent, half, where):
  for own, layers in ((parent, LAYERS), (half, LAYERS // 2)):
    facts = speed.program(own, where).facts
    head = where.batch * D * C
    assert facts['multiply_adds'] == by_hand(*where, layers) + head
    for name in ('xla_flops', 'temporary_bytes', 'argument_bytes'):
      assert facts[name] > 0, name
    # The counts of XLA are of other things as well, but not of fewer.
    assert facts['xla_flops'] > 1.5 * facts['multiply_adds']


def test_the_output_is_that_of_the_model(parent):
  where = Shape(3, 7)
  for own in (parent, rounded(parent)):
    found = speed.program(own, where).run()
    inputs = speed._inputs(own, where)
    wanted = own.module.apply({'params': own.numbers}, *inputs)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_both_texts_of_a_pair_count():
  own = model('pair_classifier', model__pair_head='nli')
  facts = speed.program(own, Shape(2, 5)).facts
  head = 2 * (4 * D) * C
  assert facts['multiply_adds'] == by_hand(2, 5, LAYERS, rows=2) + head


@pytest.mark.parametrize('kind', ['classifier', 'pair_classifier', 'embedder'])
def test_rows_are_full(kind):
  own = Compressed({}, kind, Y, C, False, {}, '')
  found = speed._inputs(own, Shape(3, 8))
  assert len(found) == (4 if kind == 'pair_classifier' else 2)
  for ids_BT, lengths_B in zip(found[::2], found[1::2], strict=True):
    assert ids_BT.shape == (3, 8)
    assert lengths_B.tolist() == [8] * 3
    # Neither padding nor what stands for the unknown; of all others some.
    assert 2 <= ids_BT.min() < ids_BT.max() < Y


def seen(monkeypatch, own, where=SHAPES[0]):
  """The traced program, as its operations are counted, and its facts."""
  traces, count = [], cost.of_traced

  def watch(traced):
    traces.append(traced)
    return count(traced)

  monkeypatch.setattr(cost, 'of_traced', watch)
  facts = speed.program(own, where).facts
  monkeypatch.undo()
  (traced,) = traces
  return traced.jaxpr, facts


def test_layers_are_not_scanned(monkeypatch, parent):
  jaxpr, _ = seen(monkeypatch, parent)
  assert 'scan[' not in str(jaxpr)
  # They are alike, and elsewhere they are.
  ids_BT = np.ones((1, 5), 'i4')
  plain = jax.make_jaxpr(parent.module.apply)(
    {'params': parent.params}, ids_BT, np.array([5])
  )
  assert 'scan[' in str(plain)


def test_codes_are_arguments_of_the_program(monkeypatch, parent):
  (numbers, plain), (codes, facts) = (
    seen(monkeypatch, own) for own in (parent, rounded(parent))
  )
  kinds = {str(aval.dtype) for aval in numbers.in_avals}
  assert kinds == {'float32', 'int32'}
  assert 'int8' in {str(aval.dtype) for aval in codes.in_avals}
  # Nothing is left to be a constant of the program.
  assert not codes.consts
  assert facts['argument_bytes'] < plain['argument_bytes'] / 2
  assert facts['multiply_adds'] == plain['multiply_adds']


def test_integers_are_multiplied_where_inputs_are_rounded(monkeypatch, parent):
  jaxprs = [
    str(seen(monkeypatch, rounded(parent, activations=activations))[0])
    for activations in ('', 'dynamic')
  ]
  found = ['preferred_element_type=int32' in jaxpr for jaxpr in jaxprs]
  assert found == [False, True]


def test_a_length_that_cannot_be_is_explained(parent):
  config = config_lib.changed(
    parent.config, {'model.position': 'learned', 'data.max_length': 9}
  )
  own = parent._replace(config=config)
  with pytest.raises(errors.ConfigError) as caught:
    speed.program(own, Shape(2, 10))
  first, second = str(caught.value).splitlines()
  assert 'rows of 10 ids' in first
  assert 'max_length=9' in first
  assert '--config.compress.shapes=1x9' in second


# What is said of the times.


SECONDS = {
  # Rounds of the parent, of another one and of the parent once more.
  'parent': (0.010, 0.012, 0.020, 0.014, 0.016),
  'small': (0.005, 0.004, 0.010, 0.007, 0.002),
  'control': (0.010, 0.010, 0.040, 0.014, 0.008),
}


@pytest.fixture
def faked(monkeypatch):
  """Fixed times; the rounds that were asked for."""
  asked = []

  def rounds(programs, number):
    asked.append((list(programs), number))
    names = ['parent', 'small', 'control']
    if len(programs) == 2:
      names.remove('small')
    return [list(SECONDS[name]) for name in names]

  monkeypatch.setattr(timing, 'rounds', rounds)
  return asked


def test_rows_of_every_shape(faked, parent, half):
  after = []
  rows = speed.compare(
    {'parent': parent, 'small': half}, SHAPES, lambda: after.append(len(faked))
  )
  assert after == [1, 2]
  for programs, number in faked:
    assert number == latency.ROUNDS
    # The control is the parent's own program.
    assert programs[2] is programs[0]
    assert programs[1] is not programs[0]
  assert [(row['model'], row['batch'], row['length']) for row in rows] == [
    (name, *where) for where in SHAPES for name in SECONDS
  ]
  for row in rows:
    own, first = np.array(SECONDS[row['model']]), np.array(SECONDS['parent'])
    ratio = np.sort(first / own)
    assert row['ratio'] == pytest.approx(ratio[2])
    assert row['ratio_p25'] == pytest.approx(ratio[1])
    assert row['ratio_p75'] == pytest.approx(ratio[3])
    middle = np.sort(own)[2]
    assert row['p50_ms'] == pytest.approx(1000 * middle)
    assert row['p90_ms'] == pytest.approx(1000 * np.percentile(own, 90))
    assert row['rows_per_second'] == pytest.approx(row['batch'] / middle)
    layers = LAYERS // 2 if row['model'] == 'small' else LAYERS
    where = Shape(row['batch'], row['length'])
    assert row['multiply_adds'] == by_hand(*where, layers) + where.batch * D * C
    ratio = row['xla_flops'] / (2 * row['multiply_adds'])
    assert row['counts_agree'] == (0.9 <= ratio <= 1.1)
  by_name = {row['model']: row for row in rows[:3]}
  for name in ('multiply_adds', 'xla_flops', 'argument_bytes'):
    assert by_name['control'][name] == by_name['parent'][name]
    assert by_name['small'][name] < by_name['parent'][name]


@pytest.mark.parametrize(
  ('flops', 'agree'),
  [(2000.0, True), (2190.0, True), (1810.0, True), (2210.0, False),
   (1790.0, False), (None, None), (0.0, None)],
)  # fmt: skip
def test_counts_agree_within_a_tenth(flops, agree):
  facts = {'multiply_adds': 1000, 'xla_flops': flops}
  assert speed._agree(facts) is agree


def test_asked_to_stop_it_stops_between_shapes(faked, half):
  def stop():
    raise errors.Preempted('now')

  with pytest.raises(errors.Preempted):
    speed.compare({'parent': half}, SHAPES, stop)
  assert len(faked) == 1
