"""The generated multi-view data set: actors, actions, rooms, cameras, renderer and writer. `python -m data.synthetic --help`."""
