"""The processes that write the shards."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2

from console import progress
from data import raw_video, shards
from data.listing import PreparationError

_GO_ON = "Finished shards are kept: the same command goes on from here"
_num_started = None  # videos, counted by all workers; set in each worker
_at_work = None  # the file that names the video that this worker reads
_began = 0.0  # seconds of processor time when it began with that
# [ours] Beyond what `raw_video` allows a video: it looks between two frames, so only a decoder that never comes to the
# next one is still at work then.
_GRACE_CPU_SECONDS = 60


def write_shards(
    jobs: Sequence[shards.Job],
    num_files: int,
    settings: shards.Settings,
    input_dir: Path,
    output_dir: Path,
    num_workers: int,
) -> None:
    """Makes shards in worker processes, with a progress bar.

    Args:
      jobs: the shards to make.
      num_files: raw videos of the whole data set, those in finished shards included.
      settings: see `shards.write`, as for the folders.
      input_dir: with the raw videos.
      output_dir: of the prepared set.
      num_workers: processes at most.

    Raises:
      PreparationError: the disk is full, a video has vanished, or a process was killed; finished shards stay.
    """
    context = multiprocessing.get_context("spawn")
    num_started = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    num_before = num_files - sum(job.num_files for job in jobs)
    with (
        progress.Bar(num_files, "preparing", "videos", initial=num_before) as bar,
        concurrent.futures.ProcessPoolExecutor(
            min(num_workers, len(jobs)),
            mp_context=context,
            initializer=_start_worker,
            initargs=(num_started, output_dir),
        ) as executor,
    ):
        pending = {executor.submit(_write_shard, job, settings, input_dir, output_dir) for job in jobs}
        try:
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                bar.advance_to(num_before + num_started.value)
                for future in done:
                    future.result()
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
                process.join()
            if isinstance(error, OSError):
                raise PreparationError(f"cannot write to {output_dir}: {error}. {_GO_ON}") from error
            if isinstance(error, BrokenProcessPool):
                at_work = ", ".join(sorted(path.read_text() for path in output_dir.glob(".video.*.tmp")))
                raise PreparationError(
                    "a worker process was killed: perhaps for memory (then give fewer --workers), perhaps by a video "
                    f"that was being read and crashed the decoder or held it for more than "
                    f"{raw_video.MAX_CPU_SECONDS + _GRACE_CPU_SECONDS} s (then move it away): {at_work}. {_GO_ON}"
                ) from error
            raise


def _start_worker(num_started: multiprocessing.Value, output_dir: Path) -> None:
    global _num_started, _at_work
    _num_started = num_started
    _at_work = output_dir / f".video.{os.getpid()}.tmp"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    cv2.setNumThreads(1)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Ends this process with the main process, or when a video holds it for ever."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and time.process_time() - _began < raw_video.MAX_CPU_SECONDS + _GRACE_CPU_SECONDS:
        parent.join(timeout=1.0)
    os._exit(1)


def _write_shard(job: shards.Job, settings: shards.Settings, input_dir: Path, output_dir: Path) -> None:
    shards.write(job, settings, input_dir, output_dir, _starting)
    _at_work.unlink()


def _starting(path: str) -> None:
    global _began
    _began = time.process_time()
    _at_work.write_text(path)
    with _num_started.get_lock():
        _num_started.value += 1
