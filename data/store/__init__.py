"""How a prepared set lies on disk and is read: takes and views, frame codecs, the frame index, digests, the truth.

Preparation writes with it; the pipeline (data/pipeline.py, data/samples.py) reads with it. It may import data/catalog.
"""
