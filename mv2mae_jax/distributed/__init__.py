"""Devices and processes: the mesh and where arrays lie on it, starting several processes, what each chip can do.

The one place that knows placement. Imports no other room.
"""
