"""Scripts that make every number we publish; run as python -m experiments.X."""
