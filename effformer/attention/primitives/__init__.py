"""What most mechanisms are made of: pure functions on one head of one example.

softmax: tiles of softmax attention; chunked: over all keys, linear in memory;
blocks: over a table of blocks; band: to the nearest tokens; recurrence: sums over the past with decay and
delta rule; positions: rotary positions and biases of the logits.
"""
