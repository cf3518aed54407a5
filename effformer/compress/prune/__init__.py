"""Pruning: units, their scores, masks, and training that finds masks.

own = units.of(config, params, ('head', 'mlp'))
found = scores.taylor(loss, params, batches, own)
keep = masks.structured(found, 0.25)
masked = masks.apply(params, keep, own)         # as many numbers, some 0
config, params = shrink.shrink(config, params, keep)      # fewer numbers
"""
