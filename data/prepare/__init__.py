"""Raw recordings -> a prepared set: listing, clocks, boxes, encoding, shards and what is written beside them.

The command is `python -m data.prepare`. Nothing that trains loads this room. mv2mae_jax's features/sources.py reads raw
videos with it, so that they are read in the same way.
Imports: data/store, data/catalog, console.
Used by: features, data/sync.py, data/catalog/__main__.py.
"""
