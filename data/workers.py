"""The processes that write the shards."""

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import tqdm

from data import shards
from data.listing import PreparationError

_GO_ON = "Finished shards are kept: the same command goes on from here"
_num_started = None  # videos, counted by all workers; set in each worker
_at_work = None  # the file that names the video that this worker reads


def write_shards(
    jobs: Sequence[shards.Job],
    num_videos: int,
    settings: shards.Settings,
    input_dir: Path,
    output_dir: Path,
    num_workers: int,
) -> None:
    """Makes shards in worker processes, with a progress bar on a terminal.

    Args:
      jobs: the shards to make.
      num_videos: of the whole data set, the finished shards included.
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
    num_before = num_videos - sum(len(job.videos) for job in jobs)
    with (
        tqdm.tqdm(total=num_videos, initial=num_before, unit="video", disable=not sys.stderr.isatty()) as progress,
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
                progress.update(num_before + num_started.value - progress.n)
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
                    f"that was being read (then move it away): {at_work}. {_GO_ON}"
                ) from error
            raise


def _start_worker(num_started: multiprocessing.Value, output_dir: Path) -> None:
    global _num_started, _at_work
    _num_started = num_started
    _at_work = output_dir / f".video.{os.getpid()}.tmp"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_with_the_main_process, daemon=True).start()


def _exit_with_the_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_shard(job: shards.Job, settings: shards.Settings, input_dir: Path, output_dir: Path) -> None:
    shards.write(job, settings, input_dir, output_dir, _starting)
    _at_work.unlink()


def _starting(path: str) -> None:
    _at_work.write_text(path)
    with _num_started.get_lock():
        _num_started.value += 1
