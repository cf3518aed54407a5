"""A small tokenizer.json, as published models have one."""

import pathlib

import tokenizers
from tokenizers import models, pre_tokenizers, processors

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
CLS, SEP = 2, 3


def save_tokenizer(folder: pathlib.Path, words: tuple[str, ...]):
  """Writes tokenizer.json of these words, each with the number of its place.

  The special tokens come first. Padding and cutting are on, as published files
  have them.
  """
  vocabulary = {word: number for number, word in enumerate(SPECIAL + words)}
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[('[CLS]', CLS), ('[SEP]', SEP)],
  )
  made.add_special_tokens(list(SPECIAL))
  made.enable_padding(length=12)
  made.enable_truncation(max_length=4)
  made.save(str(folder / 'tokenizer.json'))
  return folder / 'tokenizer.json'
