"""How a prepared set lies on disk and is read: takes and views, frame codecs, the frame index, digests, the truth.

Preparation writes with it; the pipeline (data/pipeline.py, data/samples.py) reads with it. `whole_files` and `digests`
serve files of any kind.
Imports: data/catalog, console.
Used by: data, data/recordings, data/prepare, data/synthetic, evaluation, features, inference.py, runs, monitoring,
report, topology, torch_export, config_checks.py.
"""
