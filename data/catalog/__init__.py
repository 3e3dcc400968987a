"""The data sets by name: `data.catalog.get('ntu60')`; `python -m data.catalog ntu60` prints what a copy holds.

A catalogue says what the names of files mean, which classes there are, and the official splits.
Imports: console; __main__.py also data/recordings, data/prepare.
Used by: data, data/store, data/recordings, data/prepare, data/synthetic, features.
"""

import importlib

from console.command import did_you_mean, nearest
from console.errors import UserError
from data.catalog.base import EXTENSIONS, Catalog, Count, Cut, Row, Split, Video, composed

__all__ = ["EXTENSIONS", "NAMES", "OPTIONS", "Catalog", "Count", "Cut", "Row", "Split", "Video", "composed", "get"]

# name -> module and class; imported on demand
_CATALOGS = {
    "synthetic": ("data.catalog.synthetic", "Synthetic"),
    "ntu60": ("data.catalog.ntu", "NTU60"),
    "ntu120": ("data.catalog.ntu", "NTU120"),
    "etri": ("data.catalog.etri", "ETRI"),
    "etri_livinglab": ("data.catalog.etri", "LivingLab"),
    "nucla": ("data.catalog.nucla", "NUCLA"),
    "pkummd": ("data.catalog.pkummd", "PKUMMD"),
    "rocog": ("data.catalog.rocog", "RoCoG"),
    "folder": ("data.catalog.folder", "Folder"),
}
NAMES = tuple(_CATALOGS)
OPTIONS = {"pattern": "folder", "num_classes": "pkummd"}  # option -> the one data set that has it


def get(name: str, **options: object) -> Catalog:
    """The catalogue of a data set.

    Args:
      name: one of NAMES.
      **options: `pattern` for 'folder', `num_classes` for 'pkummd'; None stands for the default.

    Raises:
      ValueError: no such data set, an option of another one, or a value that it refuses.
    """
    if name not in _CATALOGS:
        hint = did_you_mean(nearest(name.replace("-", "").replace("_", ""), NAMES))
        raise UserError(f"unknown data set {name!r}; known are {', '.join(NAMES)}.{hint}")
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if OPTIONS[option] != name:
            raise UserError(f"--{option} is for {OPTIONS[option]}, not for {name}")
    module, catalog_class = _CATALOGS[name]
    return getattr(importlib.import_module(module), catalog_class)(**options)
