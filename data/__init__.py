"""Everything before the device: catalogues, preparation, the input pipeline. NumPy only, no JAX."""
