"""Sizes of the law suite: tiny, and all different."""

B, T, D, H, K = 2, 7, 12, 3, 4
# More padding than T tokens need.
LONGER = 9
