"""What people see of every command: its --help, its errors, its progress. Imports no NumPy and no JAX."""
