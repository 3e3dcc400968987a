"""The processes that write the shards."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2

from console import progress
from console.workers import without_ctrl_c
from data.prepare import shards
from data.prepare.options import Settings
from data.recordings import raw_video
from data.recordings.listing import PreparationError
from data.store.whole_files import remove_leftovers

_GO_ON = "Finished shards are kept: the same command continues from here"
_num_started = None  # videos, counted by all workers; set in each worker
_at_work = None  # the file that names the video that this worker reads
_refused: Mapping[str, str] = {}  # path -> reason, of videos that ended a worker before
_began = 0.0  # processor time in seconds when this worker began with its video
_began_on_clock = None  # the same in wall time; None while it has no video
# [ours] Beyond the limits of `raw_video`, which checks them between frames and between reads. A video that still runs
# after this has a decoder that never comes to the next frame, or a read that never ends.
_GRACE_CPU_SECONDS = 60
_GRACE_SECONDS = 60
_OVERTIME = 1  # the exit code of a worker that has ended itself
# [ours] Signals by which a decoder may end its process on a bad video. SIGKILL is not one: the kernel sends it when
# memory runs out.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def write_shards(
    jobs: Sequence[shards.Job],
    num_files: int,
    settings: Settings,
    input_dir: Path,
    output_dir: Path,
    num_workers: int,
) -> None:
    """Makes shards in worker processes, with a progress bar; settings and folders as of `shards.write`.

    Args:
      num_files: raw videos of the whole data set, those in finished shards included.
      num_workers: processes at most.

    Raises:
      PreparationError: the disk is full, a video has vanished, or a process was killed; finished shards stay.
    """
    missing, crashed, refused = set(jobs), set(), {}
    with progress.Bar(num_files, "preparing", "videos", initial=num_files - _num_files(jobs)) as bar:
        while missing:
            num_before = num_files - _num_files(missing)
            # Anew, and read without its lock: a worker that is killed while it counts keeps the lock for ever.
            num_started = multiprocessing.get_context("spawn").Value("q", 0)
            processes: set[multiprocessing.Process] = set()
            try:
                how = (output_dir, settings, input_dir, refused)
                with contextlib.closing(_run(missing, num_workers, num_started, processes, *how)) as finished:
                    for job in finished:
                        bar.advance_to(num_before + num_started.get_obj().value)
                        missing = missing - {job}
            except OSError as error:
                raise PreparationError(f"cannot write to {output_dir}: {error}. {_GO_ON}") from error
            except BrokenProcessPool as error:
                if not _blame(processes, output_dir, crashed, refused):
                    at_work = ", ".join(sorted(path.read_text() for path in output_dir.glob(".video.*.tmp")))
                    raise PreparationError(
                        "a worker process was killed: perhaps for memory (then give fewer --workers), perhaps by a "
                        f"video that was being read (then move it away): {at_work}. {_GO_ON}"
                    ) from error
                remove_leftovers(output_dir)


def _num_files(jobs: Iterable[shards.Job]) -> int:
    return sum(len(job.sizes) for job in jobs)


def _run(
    jobs: Collection[shards.Job],
    num_workers: int,
    num_started: multiprocessing.Value,
    processes: set[multiprocessing.Process],
    output_dir: Path,
    *arguments: object,
) -> Iterator[shards.Job | None]:
    """Each job when it is done, and None every half a second.

    Args:
      num_workers: as of `write_shards`.
      num_started: see `_num_started`.
      processes: receives the workers.
      *arguments: of `_write_shard`, after the job and the folder.
    """
    others = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(num_started, output_dir),
    )
    try:
        in_order = sorted(jobs, key=lambda job: job.shard)
        with without_ctrl_c():
            job_of = {executor.submit(_write_shard, job, output_dir, *arguments): job for job in in_order}
        processes |= set(multiprocessing.active_children()) - others
        pending = set(job_of)
        while pending:
            done, pending = concurrent.futures.wait(
                pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
            )
            yield None
            for future in done:
                future.result()
                yield job_of[future]
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(wait=isinstance(error, BrokenProcessPool), cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
            process.join()
        raise


def _blame(
    processes: Iterable[multiprocessing.Process], output_dir: Path, crashed: set[str], refused: dict[str, str]
) -> bool:
    """Whether a video has ended a worker. It is added to `refused` if it took too long or is in `crashed` already.

    The first crash may have been the machine's fault, so the video is tried once more.
    """
    blamed = False
    for process in processes:
        at_work = output_dir / f".video.{process.pid}.tmp"
        overtime = process.exitcode == _OVERTIME
        if not at_work.exists() or not (overtime or -(process.exitcode or 0) in _CRASHES):
            continue
        path, blamed = at_work.read_text(), True
        if overtime:
            refused[path] = (
                f"held the decoder for more than {raw_video.MAX_CPU_SECONDS + _GRACE_CPU_SECONDS} s of processor time, "
                f"or {raw_video.MAX_SECONDS + _GRACE_SECONDS} s in all"
            )
        elif path in crashed:
            refused[path] = f"crashes the decoder ({signal.Signals(-process.exitcode).name}), twice"
        crashed.add(path)
    return blamed


def _start_worker(num_started: multiprocessing.Value, output_dir: Path) -> None:
    global _num_started, _at_work
    _num_started = num_started
    _at_work = output_dir / f".video.{os.getpid()}.tmp"
    cv2.setNumThreads(1)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Ends this process when the main process ends, or when a video holds it for too long."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and not _is_overdue():
        parent.join(timeout=1.0)
    os._exit(_OVERTIME)


def _is_overdue() -> bool:
    began = _began_on_clock
    on_clock = 0.0 if began is None else time.monotonic() - began
    return (
        time.process_time() - _began >= raw_video.MAX_CPU_SECONDS + _GRACE_CPU_SECONDS
        or on_clock >= raw_video.MAX_SECONDS + _GRACE_SECONDS
    )


def _write_shard(
    job: shards.Job, output_dir: Path, settings: Settings, input_dir: Path, refused: Mapping[str, str]
) -> None:
    global _began_on_clock, _refused
    _refused = refused
    shards.write(job, settings, input_dir, output_dir, _starting)
    _began_on_clock = None
    _at_work.unlink()


def _starting(path: str) -> None:
    global _began, _began_on_clock
    _began, _began_on_clock = time.process_time(), time.monotonic()
    _at_work.write_text(path, encoding="utf-8")
    with _num_started.get_lock():
        _num_started.value += 1
    if path in _refused:
        raise raw_video.BadVideo(_refused[path])
