"""Tiny models of the families that `effformer.pretrained` reads.

Files as transformers writes them, of random weights: tensors under their names,
config.json, padded inputs and what comes out.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from oracles.record import described
from safetensors.numpy import load_file

B, T, D, H, F, VOCABULARY, CLASSES = 2, 7, 12, 3, 10, 31, 5
LENGTHS = np.array([7, 4], np.int32)
# Side, side of a patch, channels.
SIDE, PATCH, CHANNELS = 8, 4, 3

COMMON = dict(
  hidden_size=D, num_hidden_layers=2, num_attention_heads=H,
  intermediate_size=F, num_labels=CLASSES,
)  # fmt: skip
BERT = dict(
  **COMMON, vocab_size=VOCABULARY, max_position_embeddings=T + 2,
  type_vocab_size=2,
)  # fmt: skip
ROBERTA = dict(
  **COMMON, vocab_size=VOCABULARY, max_position_embeddings=T + 4,
  type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5,
)  # fmt: skip
DISTILBERT = dict(
  dim=D, n_layers=2, n_heads=H, hidden_dim=F, num_labels=CLASSES,
  vocab_size=VOCABULARY, max_position_embeddings=T + 2,
)  # fmt: skip
GPT2 = dict(
  n_embd=D, n_layer=2, n_head=H, n_inner=F, vocab_size=VOCABULARY,
  n_positions=T + 2, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
VIT = dict(
  **COMMON, image_size=SIDE, patch_size=PATCH, num_channels=CHANNELS,
)  # fmt: skip
MODELS = {
  'bert-embedder': ('BertModel', 'BertConfig', BERT),
  'bert-classifier': ('BertForSequenceClassification', 'BertConfig', BERT),
  'bert-predictor': ('BertForMaskedLM', 'BertConfig', BERT),
  'roberta-classifier': (
    'RobertaForSequenceClassification', 'RobertaConfig', ROBERTA,
  ),
  'roberta-predictor': ('RobertaForMaskedLM', 'RobertaConfig', ROBERTA),
  'distilbert-classifier': (
    'DistilBertForSequenceClassification', 'DistilBertConfig', DISTILBERT,
  ),
  'distilbert-predictor': (
    'DistilBertForMaskedLM', 'DistilBertConfig', DISTILBERT,
  ),
  'gpt2-predictor': ('GPT2LMHeadModel', 'GPT2Config', GPT2),
  'vit-classifier': ('ViTForImageClassification', 'ViTConfig', VIT),
}  # fmt: skip


def randomise(model):
  for name, value in model.named_parameters():
    is_scale = value.ndim == 1 and name.endswith('weight')
    value.data.normal_(1.0 if is_scale else 0.0, 0.4)
  if isinstance(model.config, transformers.RobertaConfig):
    # No token has these positions.
    model.roberta.embeddings.position_embeddings.weight.data[:2] = 0


def inputs_of(name, rng):
  """What ours takes, and what the oracle does."""
  if name.startswith('vit'):
    v = rng.integers(0, 256, (B, SIDE, SIDE, CHANNELS))
    pixels = torch.tensor(2 * v / 255 - 1, dtype=torch.float32)
    ours = {
      'ids': (v.reshape(B, -1) + 1).astype(np.int32),
      'lengths': np.full(B, v[0].size, np.int32),
    }
    return ours, {'pixel_values': pixels.permute(0, 3, 1, 2)}
  keep = np.arange(T) < LENGTHS[:, None]
  ids = np.where(keep, rng.integers(3, VOCABULARY, (B, T)), 1)
  ours = {'ids': ids.astype(np.int32), 'lengths': LENGTHS}
  theirs = {
    'input_ids': torch.tensor(ids),
    'attention_mask': torch.tensor(keep.astype(np.int64)),
  }
  if name.startswith('bert'):
    ours['types'] = (np.arange(T) >= 3).astype(np.int32)[None].repeat(B, 0)
    theirs['token_type_ids'] = torch.tensor(ours['types'].astype(np.int64))
  return ours, theirs


def files():
  for name, (model_class, config_class, settings) in MODELS.items():
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, model_class)(config).eval()
    randomise(model)
    ours, theirs = inputs_of(name, np.random.default_rng(0))
    with torch.no_grad():
      y = model(**theirs)[0].numpy()
    if y.ndim == 3:
      y = np.where((np.arange(T) < LENGTHS[:, None])[..., None], y, 0)
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      tensors = load_file(f'{folder}/model.safetensors')
      stored = json.loads(pathlib.Path(folder, 'config.json').read_text())
    arrays = {**ours, 'y': y}
    arrays |= {f'tensor/{key}': value for key, value in tensors.items()}
    yield described(
      f'pretrained/{name}', name, arrays, stored, ['transformers'],
      f'transformers {model_class}',
    )  # fmt: skip
