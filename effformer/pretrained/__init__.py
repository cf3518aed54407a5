"""Weights of published models in and out, without their frameworks.

    model = pretrained.load('FOLDER')   # config.json, model.safetensors
    vectors_BD = model.module.apply({'params': model.params}, ids_BT, lengths_B)
    pretrained.save(model, 'OTHER')     # in their form again
    pretrained.swap(model, 'linear', layers=(0, 1)).model

BERT (and MiniLM), RoBERTa, DistilBERT, GPT-2 and ViT; `find` says where a
folder comes from.
"""

from effformer.pretrained.model import FAMILIES, Pretrained, load, save
from effformer.pretrained.place import find, tokenizer
from effformer.pretrained.swapping import (
  Swapped,
  swap,
  swap_mixers,
  swapped_config,
)

__all__ = [
  'FAMILIES',
  'Pretrained',
  'Swapped',
  'find',
  'load',
  'save',
  'swap',
  'swap_mixers',
  'swapped_config',
  'tokenizer',
]
