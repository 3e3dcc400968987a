"""Devices and processes: the mesh and where arrays lie on it, starting several processes, what each chip can do.

Only this room knows where arrays are placed. It imports no other room.
"""
