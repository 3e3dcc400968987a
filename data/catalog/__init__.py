"""The data sets by name: `data.catalog.get('ntu60')`."""

import difflib
import importlib

from data.catalog.base import Catalog, Row, Split, Video

__all__ = ["NAMES", "Catalog", "Row", "Split", "Video", "get"]

# name -> module and class; imported on demand
_CATALOGS = {
    "synthetic": ("data.catalog.synthetic", "Synthetic"),
    "ntu60": ("data.catalog.ntu", "NTU60"),
    "ntu120": ("data.catalog.ntu", "NTU120"),
    "folder": ("data.catalog.folder", "Folder"),
}
NAMES = tuple(_CATALOGS)


def get(name: str, **options: object) -> Catalog:
    """The catalogue of a data set; `options` go to it (`pattern` for 'folder'). Raises ValueError if there is none."""
    if name not in _CATALOGS:
        near = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), NAMES, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown data set {name!r}: {hint}known are {', '.join(NAMES)}")
    module, catalog_class = _CATALOGS[name]
    return getattr(importlib.import_module(module), catalog_class)(**options)
