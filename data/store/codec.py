"""How frames are stored, by name. Each codec has these functions:

encode(frame uint8[h, w, 3] RGB, quality) -> bytes
decode(bytes) -> uint8[h, w, 3] RGB; ValueError where the bytes are damaged
decode_window(list of bytes, (top, left, height, width)) -> iterator of such windows; faster if the codec allows it

`jpeg`: JPEG files; decoded around the crops and cropped on the host.
`dct`: JPEG's quantised coefficients, packed so that unpacking them takes hardly any time; decoded and cropped on the
accelerator (mv2mae_jax/models/stored_frames.py), or on the host if pixels are needed there.
"""

import types

from console.errors import UserError
from data.store import dct, jpeg

NAMES = ("jpeg", "dct")


def get(name: str) -> types.ModuleType:
    """The codec of that name; ValueError where there is none."""
    if name not in NAMES:
        raise UserError(f"unknown codec {name!r}: choose one of {', '.join(NAMES)}")
    return {"jpeg": jpeg, "dct": dct}[name]
