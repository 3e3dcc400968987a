"""Raw recordings -> a prepared set: listing, clocks, boxes, encoding, shards and what is written beside them.

The command is `python -m data.prepare`. It may import data/store, data/catalog and console, and nothing that
trains. Only commands, tests and mv2mae_jax's features/sources.py import it; the last reads raw videos in the same way.
"""
