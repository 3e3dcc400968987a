"""What differs between tasks: initialisation, randomness, loss, evaluation. The loop is the same (train.py)."""
