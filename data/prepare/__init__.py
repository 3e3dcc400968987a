"""Raw recordings -> a prepared set: pairs of frames, boxes, encoding, shards and what is written beside them.

The command is `python -m data.prepare`. Nothing that trains loads this room.
Imports: data/recordings, data/store, data/catalog, console.
Used by: data/catalog/__main__.py.
"""
