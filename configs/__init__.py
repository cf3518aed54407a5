"""Experiments as data: one file per experiment, all keys in `common`."""
