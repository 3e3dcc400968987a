"""The memory of batches. It is used again once nothing refers to it, and reading processes share it with the trainer.

Fresh memory for every batch costs more than reading and unpacking coefficients, because the kernel must clear and map
its pages. Copying a batch from one process to another costs as much. Here an array lives in a buffer that is marked as
taken. The mark is cleared when the array and all of its views are gone, in whichever process. Whoever keeps a batch
keeps its buffer, so no batch ever changes. This includes JAX while it copies to a device or aliases the memory on a
CPU.

Processes exchange addresses only. Buffers are anonymous files (memfd): nothing is left behind by a process that
is killed, and the size of /dev/shm, 64 MB in a container of Docker, does not matter.
A process that meets the address of a buffer for the first time asks the buffer's process for a descriptor
(descriptors.py), which is read-only. The marks have a file of their own, which both processes write to.
"""

import dataclasses
import itertools
import math
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from data.store import descriptors
from data.store.descriptors import Unreachable as Unreachable

SHAREABLE = hasattr(os, "memfd_create")  # Linux
MIN_BYTES = 2**16  # [ours] smaller arrays are pickled
MOST_BUFFERS = 2**20  # [ours] of a process; each has a mark of one byte
_FREE, _TAKEN = 0, 1
_MARKS = -1  # the number of the file that holds the marks


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an array lies, for another process of this machine."""

    process: int
    buffer: int  # number in that process
    listener: str  # the name to ask for its descriptor by, see descriptors.py
    shape: tuple[int, ...]
    dtype: np.dtype


class Buffers:
    """Gives memory to arrays; any thread may ask. Pickled to another process it arrives new and without buffers."""

    def __init__(self):
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._buffers: list[_Buffer] = []
        self._lent: dict[int, _Buffer] = {}  # by the identity of the array that all arrays in it are views of
        self._marks = _Buffer.create(_MARKS, MOST_BUFFERS, writable=True)
        self._listener = ""

    def __reduce__(self) -> tuple:
        return Buffers, ()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """As `np.empty`."""
        dtype, marks = np.dtype(dtype), self._marks.memory
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < MIN_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            buffer = next((b for b in self._buffers if b.num_bytes == num_bytes and marks[b.number] == _FREE), None)
            if buffer is None:
                buffer = _Buffer.create(next(self._numbers), num_bytes)
                self._buffers.append(buffer)
            marks[buffer.number] = _TAKEN
        whole = np.frombuffer(buffer.memory, np.uint8)  # this array lives as long as any view of it
        self._lent[id(whole)] = buffer
        weakref.finalize(whole, self._take_back, id(whole)).atexit = False
        return whole.view(dtype).reshape(shape)

    def _take_back(self, identity: int) -> None:
        buffer = self._lent.pop(identity, None)
        if buffer is not None:  # not shared
            self._marks.memory[buffer.number] = _FREE

    def share(self, batch: Any) -> Any:
        """Arrays of a batch -> their addresses. The caller must not use the arrays any more: the opener owns them."""
        if not SHAREABLE:
            return batch  # grain copies what it is given
        if not self._listener:
            self._listener = descriptors.offer(self)
        return _map_arrays(self._address, batch)

    def _address(self, array: np.ndarray) -> np.ndarray | Address:
        if array.nbytes < MIN_BYTES:
            return array
        buffer = self._lent.get(id(array.base))
        if buffer is None or array.nbytes != buffer.num_bytes or not array.flags.c_contiguous:
            copy = self.empty(array.shape, array.dtype)
            copy[...] = array
            array = copy
        buffer = self._lent.pop(id(array.base))
        return Address(os.getpid(), buffer.number, self._listener, array.shape, array.dtype)

    def descriptor(self, number: int) -> int:
        """For data/store/descriptors.py."""
        return (self._marks if number == _MARKS else self._buffers[number]).descriptor


class Opener:
    """Opens addresses made by `Buffers.share` in other processes. The arrays are read-only."""

    def __init__(self):
        self._opened: dict[tuple[str, int], mmap.mmap] = {}

    def __call__(self, batch: Any) -> Any:
        """Addresses of a batch -> arrays. Raises Unreachable for the first one in a buffer whose process has ended."""
        return _map_arrays(self._array, batch)

    def _array(self, found: np.ndarray | Address) -> np.ndarray:
        if not isinstance(found, Address):
            return found
        marks = self._memory(found, _MARKS, mmap.ACCESS_WRITE)
        whole = np.frombuffer(self._memory(found, found.buffer, mmap.ACCESS_READ), np.uint8)
        weakref.finalize(whole, marks.__setitem__, found.buffer, _FREE).atexit = False
        return whole.view(found.dtype).reshape(found.shape)

    def _memory(self, found: Address, number: int, access: int) -> mmap.mmap:
        key = found.listener, number
        if key not in self._opened:
            descriptor = descriptors.fetch(found.process, found.listener, number)
            self._opened[key] = mmap.mmap(descriptor, 0, access=access)
            os.close(descriptor)
        return self._opened[key]


@dataclasses.dataclass(frozen=True)
class _Buffer:
    number: int
    descriptor: int  # to hand over; -1 where it cannot be shared
    num_bytes: int
    memory: mmap.mmap

    @classmethod
    def create(cls, number: int, num_bytes: int, *, writable: bool = False) -> "_Buffer":
        """`writable` says whether those who get the descriptor may write."""
        if not SHAREABLE:
            return cls(number, -1, num_bytes, mmap.mmap(-1, num_bytes))
        descriptor = os.memfd_create("batch")
        os.ftruncate(descriptor, num_bytes)
        memory = mmap.mmap(descriptor, num_bytes)
        if not writable:
            read_only = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            os.close(descriptor)
            descriptor = read_only
        buffer = cls(number, descriptor, num_bytes, memory)
        weakref.finalize(buffer, os.close, descriptor)  # the mapping stays valid
        return buffer


def _map_arrays(function: Callable[[Any], Any], batch: Any) -> Any:
    """Of a batch, whose values are arrays or dictionaries of them."""
    if isinstance(batch, dict):
        return {key: _map_arrays(function, value) for key, value in batch.items()}
    return function(batch)
