"""What every command has: --help, errors, progress, and processes that end with it. Imports no NumPy and no JAX.

Imports: nothing.
Used by: every room but models/kernels.
"""
