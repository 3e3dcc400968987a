"""What a run can be told: `*_base.py` hold every key with its reason, the other files what differs for an experiment.

Imports: console.
Used by: nothing; mv2mae_jax/config.py executes the file that --config names.
"""
