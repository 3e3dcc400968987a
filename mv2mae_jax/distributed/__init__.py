"""Devices and processes: the mesh and where arrays lie on it, starting several processes, what each chip can do.

Only this package places arrays. It imports no other one.
"""
