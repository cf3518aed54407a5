"""What most mechanisms are made of: pure functions on one head of one example.

softmax: tiles of softmax attention; chunked: over all keys, linear in memory;
blocks: over a table of blocks; copies: among tokens sorted by hashes; band: to
the nearest tokens; recurrence: sums over the past with decay and delta rule;
diagonal: states with constant decay, one by one; compressed: keys that stand
for blocks of tokens; own_block: among the tokens of a block; positions: rotary
positions and biases of the logits.
"""
