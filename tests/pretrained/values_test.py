"""Values of a config.json that cannot be used, and in which words."""

import re

import pytest

from effformer import pretrained
from tests.pretrained.golden_test import folder_of
from tests.pretrained.load_test import refusal, with_config

NAN, INFINITY = float('nan'), float('inf')


@pytest.fixture
def bert(tmp_path):
  return folder_of('bert-classifier', tmp_path / 'bert')


@pytest.mark.parametrize(
  ('name', 'values', 'words'),
  [
    ('bert-classifier', {'num_attention_heads': 5}, 'hidden_size=12'),
    ('distilbert-predictor', {'n_heads': 5}, 'n_heads=5, .* divide dim=12'),
    ('gpt2-predictor', {'n_head': 5}, 'n_head=5, .* divide n_embd=12'),
    ('vit-classifier', {'num_attention_heads': 5}, 'hidden_size=12'),
    ('bert-classifier', {'layer_norm_eps': '1e-12'}, "eps='1e-12'"),
    ('bert-classifier', {'layer_norm_eps': None}, 'layer_norm_eps=None'),
    ('bert-classifier', {'layer_norm_eps': NAN}, 'layer_norm_eps=nan'),
    ('bert-classifier', {'layer_norm_eps': INFINITY}, 'layer_norm_eps=inf'),
    ('bert-classifier', {'hidden_dropout_prob': 1}, 'dropout_prob=1;'),
    ('bert-classifier', {'hidden_dropout_prob': -0.1}, 'dropout_prob=-0.1'),
    (
      'bert-classifier',
      {'attention_probs_dropout_prob': False},
      'attention_probs_dropout_prob=False',
    ),
    ('distilbert-predictor', {'dropout': [0.1]}, r'dropout=\[0\.1\]'),
    ('distilbert-predictor', {'attention_dropout': ''}, "dropout=''"),
    ('gpt2-predictor', {'layer_norm_epsilon': 'x'}, "epsilon='x'"),
    ('gpt2-predictor', {'resid_pdrop': '0.1'}, "resid_pdrop='0.1'"),
    ('gpt2-predictor', {'attn_pdrop': '0.1'}, "attn_pdrop='0.1'"),
    ('vit-classifier', {'layer_norm_eps': 'x'}, "layer_norm_eps='x'"),
    ('vit-classifier', {'hidden_dropout_prob': 'x'}, "hidden_dropout_prob='x'"),
    (
      'vit-classifier',
      {'attention_probs_dropout_prob': 'x'},
      "attention_probs_dropout_prob='x'",
    ),
    ('vit-classifier', {'patch_size': 3}, 'patch_size=3, .* image_size=8'),
    ('vit-classifier', {'image_size': 1 << 20}, 'image_size=1048576; .* 8192'),
    ('roberta-predictor', {'max_position_embeddings': 2}, 'from 3 to'),
    ('bert-classifier', {'model_type': ['bert']}, r"model_type=\['bert'\]"),
    ('bert-classifier', {'hidden_act': ['gelu']}, r"hidden_act=\['gelu'\]"),
    ('bert-classifier', {'hidden_size': 12.0}, r'hidden_size=12\.0'),
    ('bert-classifier', {'vocab_size': 10**9}, 'vocab_size=1000000000; .* to'),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else None,
)
def test_a_value_that_cannot_be_used(tmp_path, name, values, words):
  folder = with_config(folder_of(name, tmp_path / 'model'), **values)
  assert re.search(words, refusal(folder))


def test_a_number_is_read_whatever_json_calls_it(bert):
  folder = with_config(bert, hidden_dropout_prob=0)
  model = pretrained.load(folder).config.model
  assert (model.dropout, type(model.dropout)) == (0, float)


@pytest.mark.parametrize('num_layers', [10**9, 1 << 24, 1000])
def test_no_layer_is_made_of_a_number_of_layers(bert, monkeypatch, num_layers):
  """Where there cannot be so many, it is seen before the first."""
  rules = pretrained.FAMILIES['bert'].rules

  def watched(config):
    for number, rule in enumerate(rules(config)):
      assert number < 100
      yield rule

  monkeypatch.setitem(
    pretrained.FAMILIES,
    'bert',
    pretrained.FAMILIES['bert']._replace(rules=watched),
  )
  text = refusal(with_config(bert, num_hidden_layers=num_layers))
  assert f'{num_layers}' in text.replace(',', '')


@pytest.mark.parametrize(
  ('name', 'key'),
  [
    ('bert-classifier', 'hidden_size'),
    ('bert-classifier', 'intermediate_size'),
    ('roberta-predictor', 'max_position_embeddings'),
    ('gpt2-predictor', 'n_inner'),
  ],
)
def test_a_size_that_no_memory_holds(tmp_path, name, key):
  folder = folder_of(name, tmp_path / 'model')
  text = refusal(with_config(folder, **{key: 12 << 20}))
  # Of RoBERTa's rows two are for no token.
  assert re.search('1258291[02]', text)
  assert 'not of one model' in text
