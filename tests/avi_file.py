"""Empties the last entries of an AVI file, as happens if a camera stops before its recorder."""

import struct
from pathlib import Path


def empty_at_end(path: Path, num_entries: int) -> None:
    """Empties the last `num_entries` entries of the file's only video stream. The header still counts them."""
    data = path.read_bytes()
    movi, index = data.index(b"movi"), data.rindex(b"idx1")
    entries = data[index + 8 : index + 8 + struct.unpack_from("<I", data, index + 4)[0]]
    kept = entries[: len(entries) - 16 * num_entries]
    first = movi + struct.unpack_from("<I", entries, len(kept) + 8)[0]  # offset of the first chunk to empty
    assert data[first : first + 4] == b"00dc", data[first : first + 4]
    chunks = [b"00dc" + struct.pack("<I", 0)] * num_entries
    offsets = [struct.pack("<4sIII", b"00dc", 0, first - movi + 8 * i, 0) for i in range(num_entries)]
    index = kept + b"".join(offsets)
    changed = bytearray(data[:first] + b"".join(chunks) + b"idx1" + struct.pack("<I", len(index)) + index)
    struct.pack_into("<I", changed, 4, len(changed) - 8)
    struct.pack_into("<I", changed, movi - 4, first + 8 * num_entries - movi)
    path.write_bytes(changed)
