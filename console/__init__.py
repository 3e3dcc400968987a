"""What people see of every command: its --help, its errors, its progress. Imports no NumPy and no JAX.

Imports: nothing.
Used by: every room but models/kernels.
"""
