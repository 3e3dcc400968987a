"""Frames that are decoded once: small sets are kept in memory that the reading processes share."""

import mmap
import os
import weakref

import numpy as np

from data.store import buffers, descriptors


class FrameCache:
    """Room for all frames of some records, filled by whoever first reads a frame; see `Prepared.in_memory`.

    The room is one anonymous file (memfd); its pages take memory when they are first written. Other processes of this
    machine get a descriptor of it. On systems without such files they keep nothing.
    """

    def __init__(self, frame_shapes: np.ndarray, num_frames: np.ndarray, records: np.ndarray, dtype: type):
        """Reserves addresses, no memory.

        Args:
          frame_shapes: int[all records, k], the shape of each record's frames.
          num_frames: int[all records].
          records: int[...], those that are kept.
          dtype: of one byte.
        """
        sizes = np.zeros(len(num_frames), np.int64)
        sizes[records] = num_frames[records] * np.prod(frame_shapes[records], axis=1, dtype=np.int64)
        marks = np.where(sizes > 0, num_frames, 0)
        # The file begins with the marks: one byte for each frame, 0 while the frame is not there yet.
        self._mark_ends, self._ends = np.cumsum(marks), np.sum(marks) + np.cumsum(sizes)
        self._shapes, self._num_frames, self._dtype = frame_shapes, num_frames, dtype
        self.num_bytes = int(self._ends[-1])
        self._listener, self._process = "", 0  # where other processes ask for the file; see descriptors.py
        self._descriptor = os.memfd_create("frames") if buffers.SHAREABLE else -1
        if buffers.SHAREABLE:
            os.ftruncate(self._descriptor, self.num_bytes)
            weakref.finalize(self, os.close, self._descriptor)
        self._bytes = np.frombuffer(mmap.mmap(self._descriptor, self.num_bytes), np.uint8)

    def __getstate__(self) -> dict:
        if buffers.SHAREABLE and not self._listener:
            self._listener, self._process = descriptors.offer(self), os.getpid()
        return self.__dict__ | {"_bytes": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        if self._descriptor == -1:
            return
        self._descriptor = descriptors.fetch(self._process, self._listener, 0)
        weakref.finalize(self, os.close, self._descriptor)
        self._bytes = np.frombuffer(mmap.mmap(self._descriptor, self.num_bytes), np.uint8)
        self._listener = ""  # the name belongs to another process

    def descriptor(self, number: int) -> int:
        """For data/store/descriptors.py: of the only file. Whoever gets it may write, too."""
        assert number == 0, number
        return self._descriptor

    def of(self, record: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The room of a record, None if its frames are not kept.

        Returns:
          Frames, dtype[num_frames, *shape], and marks uint8[num_frames], 0 while a frame is not there yet. A writer
          fills in the frame first and marks it afterwards, so that no thread or process meets half a frame.
        """
        num_frames, shape = int(self._num_frames[record]), self._shapes[record]
        end, mark_end = int(self._ends[record]), int(self._mark_ends[record])
        first = int(self._ends[record - 1]) if record else int(self._mark_ends[-1])
        if self._bytes is None or first == end:
            return None
        frames = self._bytes[first:end].view(self._dtype).reshape(num_frames, *shape)  # (n, *shape)
        return frames, self._bytes[mark_end - num_frames : mark_end]
