"""Raw recordings as they are: files in folders and archives, their frames, and when each frame was taken.

`data.prepare` makes sets of them, `data.sync` compares their clocks, and mv2mae_jax's features/sources.py reads clips
from them, all in the same way. Nothing that trains loads this room.
Imports: data/store, data/catalog, console.
Used by: data/prepare, features, data/sync.py, data/catalog/__main__.py.
"""
