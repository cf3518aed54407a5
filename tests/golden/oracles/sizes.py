"""Sizes, where an oracle leaves the choice."""

B, T, D, H = 2, 24, 12, 3
K = D // H
LENGTHS = (T, T - 7)
