"""effformer: efficient Transformers in JAX and Flax, under one contract."""

__version__ = '0.1.0'
