"""Retrieval: what its texts can be."""

import pytest

from effformer import config as config_lib
from effformer.errors import ConfigError
from effformer.tasks import retrieval


def test_rows_longer_than_the_texts_are_kept_are_refused(
  repository, monkeypatch
):
  monkeypatch.chdir(repository)
  config, _ = config_lib.load(
    'configs/lra_retrieval.py:linear,quick', {'data.max_length': 8193}
  )
  with pytest.raises(ConfigError, match=r'kept up to 8,192 bytes'):
    retrieval.make(config, dataset=None)
