"""MV2MAE in JAX/Flax: motion-aware multi-view masked autoencoders for synchronised video.

The files here are a run's config, state and loop, and inference.py. Each folder is a room. Its docstring says what
lives there, what it imports and who uses it. tests/test_architecture.py compares this with the code.
"""

__version__ = "0.1.0"
