"""The only training loop, and its parts.

The parts that look after a run folder (`checkpoint`, `records`, `workdir`)
and after signals (`preemption`) know nothing of models, tasks or data.
"""
