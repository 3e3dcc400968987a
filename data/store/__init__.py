"""How a prepared set lies on disk and comes back: takes and views, frame codecs, the frame index, digests, the truth.

Preparation writes by it, and the pipeline (data/pipeline.py, data/samples.py) reads by it. It may import data/catalog.
"""
