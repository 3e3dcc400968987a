"""The generated multi-view data set: people acting in rooms, seen by three calibrated cameras.

`python -m data.synthetic --help` generates one. actions -> actors -> renderer (rooms, textures, materials, cameras)
-> writer; design says which takes there are, generate runs over them, sheet shows them.
"""
