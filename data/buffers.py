"""The memory of batches: used again once nothing refers to it, and shared by the processes that read with the trainer.

Fresh memory for every batch costs more than reading and unpacking coefficients does, in pages that the kernel clears
and maps; so does copying a batch from one process to the other. Here an array lives in a buffer that is marked as
taken. The mark is cleared when the array and all of its views are gone, wherever that is: whoever keeps a batch, JAX
included while it copies to a device or aliases the memory on a CPU, keeps its buffer, and no batch ever changes.

Between processes goes an address alone. Buffers are anonymous files (memfd): nothing is left behind by a process that
is killed, and the size of /dev/shm, 64 MB in a container of Docker, does not matter.
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

SHAREABLE = hasattr(os, "memfd_create")  # Linux
MIN_BYTES = 2**16  # [ours] smaller arrays are pickled
_HEADER = mmap.PAGESIZE  # one byte of which says whether the buffer is taken; the rest aligns what follows
_FREE, _TAKEN = 0, 1


class Unreachable(OSError):
    """The memory of another process cannot be opened: it has ended, or the system hides the files of processes."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an array lies, for another process of this machine."""

    process: int
    buffer: int  # number in that process
    descriptor: int  # of the buffer's file, in that process
    shape: tuple[int, ...]
    dtype: np.dtype


class Buffers:
    """Gives memory to arrays, from any thread. Goes to another process as a fresh, empty one."""

    def __init__(self):
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._buffers: list[_Buffer] = []
        self._lent: dict[int, _Buffer] = {}  # by the identity of the array that all arrays in it are views of

    def __reduce__(self) -> tuple:
        return Buffers, ()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """As `np.empty`."""
        dtype = np.dtype(dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < MIN_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            buffer = next((b for b in self._buffers if b.num_bytes == num_bytes and b.memory[0] == _FREE), None)
            if buffer is None:
                buffer = _Buffer.create(next(self._numbers), num_bytes)
                self._buffers.append(buffer)
            buffer.memory[0] = _TAKEN
        whole = _whole(buffer.memory)
        self._lent[id(whole)] = buffer
        weakref.finalize(whole, self._take_back, id(whole)).atexit = False
        return whole.view(dtype).reshape(shape)

    def _take_back(self, identity: int) -> None:
        buffer = self._lent.pop(identity, None)
        if buffer is not None:  # not shared
            buffer.memory[0] = _FREE

    def share(self, batch: Any) -> Any:
        """Arrays of a batch -> their addresses. The arrays must not be used any more: who opens them owns them."""
        if not SHAREABLE:
            return batch  # grain copies what it is given
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
        return Address(os.getpid(), buffer.number, buffer.descriptor, array.shape, array.dtype)


class Opener:
    """Opens what `Buffers.share` of other processes has made addresses of."""

    def __init__(self):
        self._opened: dict[tuple[int, int], mmap.mmap] = {}

    def __call__(self, batch: Any) -> Any:
        """Addresses of a batch -> arrays.

        Raises:
          Unreachable: for the first array in a buffer, if the other process has ended.
        """
        return _map_arrays(self._array, batch)

    def _array(self, found: np.ndarray | Address) -> np.ndarray:
        if not isinstance(found, Address):
            return found
        key = found.process, found.buffer
        if key not in self._opened:
            path = f"/proc/{found.process}/fd/{found.descriptor}"
            try:
                descriptor = os.open(path, os.O_RDWR)
            except OSError as error:
                raise Unreachable(f"the memory of process {found.process} cannot be opened: {error}") from error
            self._opened[key] = mmap.mmap(descriptor, 0)
            os.close(descriptor)
        whole = _whole(self._opened[key])
        weakref.finalize(whole, self._opened[key].__setitem__, 0, _FREE).atexit = False
        return whole.view(found.dtype).reshape(found.shape)


@dataclasses.dataclass(frozen=True)
class _Buffer:
    number: int
    descriptor: int  # -1 where it cannot be shared
    num_bytes: int
    memory: mmap.mmap

    @classmethod
    def create(cls, number: int, num_bytes: int) -> "_Buffer":
        if not SHAREABLE:
            return cls(number, -1, num_bytes, mmap.mmap(-1, _HEADER + num_bytes))
        descriptor = os.memfd_create("batch")
        os.ftruncate(descriptor, _HEADER + num_bytes)
        buffer = cls(number, descriptor, num_bytes, mmap.mmap(descriptor, _HEADER + num_bytes))
        weakref.finalize(buffer, os.close, descriptor)  # what is mapped stays
        return buffer


def _whole(memory: mmap.mmap) -> np.ndarray:
    """What a buffer holds, uint8[num_bytes]: as long as a view of this array is left, it is too."""
    return np.frombuffer(memory, np.uint8, offset=_HEADER)


def _map_arrays(function: Callable[[Any], Any], batch: Any) -> Any:
    """Of a batch, whose values are arrays or dictionaries of them."""
    if isinstance(batch, dict):
        return {key: _map_arrays(function, value) for key, value in batch.items()}
    return function(batch)
