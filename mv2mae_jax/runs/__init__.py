"""What keeps a run from being lost: checkpoints and their damage, the lock, resuming, preemption, and its records.

Used by the loop, by evaluation and by every command that reads a run. Imports models/, distributed/, config and data/.
"""
