"""Reads TensorBoard's event files. A record is a length, the length's checksum, the content and its checksum."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event


def read(folder: pathlib.Path) -> Iterator[Event]:
    """The events of a run, in the order in which TensorBoard reads them."""
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            content = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12])[0] == masked(data[:8]), path
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(content), path
            yield Event.FromString(content)
            data = data[16 + length :]


def masked(data: bytes) -> int:
    """CRC-32C, masked as in TFRecord files."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
