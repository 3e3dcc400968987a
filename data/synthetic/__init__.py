"""The generated multi-view data set: people acting in rooms, seen by three calibrated cameras.

`python -m data.synthetic --help` says how to generate one. actions -> actors -> renderer (rooms, textures, materials,
cameras) -> writer. `design` says which takes there are, `generate` makes them, and `sheet` shows them.
Imports: data/catalog, data/store, console.
Used by: nothing; it is a command.
"""
