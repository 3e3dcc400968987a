"""Raw recordings -> a prepared set: listing, clocks, boxes, encoding, shards and what is written beside them.

The command is `python -m data.prepare`. It may import data/store, data/catalog and console, and nothing that
trains. Only commands and tests import it; of the package, features/sources.py, to read raw videos in the same way.
"""
