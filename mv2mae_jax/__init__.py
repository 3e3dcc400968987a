"""MV2MAE in JAX/Flax: motion-aware multi-view masked autoencoders for synchronised video."""

__version__ = "0.1.0"
