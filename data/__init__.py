"""Everything before the device. The files of this folder turn a prepared set into batches; no JAX here or below.

Imports: data/store, data/catalog, console; sync.py also data/recordings.
Used by: models, objectives, evaluation, features, runs, report, train.py, run.py.
"""
