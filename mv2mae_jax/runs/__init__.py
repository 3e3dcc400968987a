"""A run that is not lost: checkpoints and their damage, the lock, resuming, preemption, and what is recorded of it.

Used by the loop, by evaluation and by every command that reads a run. Imports models/ and distributed/ only.
"""
