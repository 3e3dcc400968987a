"""Raw multi-view videos -> a prepared set: JPEG frames in random-access shards, with a manifest.

`python -m data.prepare --help` tells how. The output folder holds
  DATASET-takes.array_record-*   one record per view, readable by TFDS too (dataset_info.json, features.json)
  manifest.parquet               one row per record, in the records' order
  prepared.json                  what was prepared, how, and how much; written last
  quarantine.csv                 the videos left out: path, take, reason
  SHA256SUMS                     digests of all files, as `sha256sum --check` and --verify read them
  plan.json, parts/              what an interrupted preparation goes on from
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import tqdm

from data import catalog, codec, metadata, shards
from data.catalog import folder
from data.listing import Listing, PreparationError, list_videos

# [ours] A shard of NTU is then about 250 MB (192 views of about 1.3 MB), and the work of a few minutes is what an
# interruption costs.
MAX_TAKES_PER_SHARD = 64
MIN_SHARDS = 16  # [ours] so that a small set keeps several workers busy, too
SHOWN = 10  # of a list in the report

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_QUARANTINED = 3


def prepare(
    *,
    dataset: str,
    input_dir: Path,
    output_dir: Path,
    pattern: str | None = None,
    short_side: int = 170,
    quality: int = 90,
    workers: int = 1,
    max_length_difference: int = 20,
) -> dict:
    """Prepares a data set, or goes on with a preparation that was interrupted.

    Args:
      dataset: a name of `data.catalog`.
      input_dir: with the raw videos.
      output_dir: of the prepared set; made if missing.
      pattern: of the file names, for the data set 'folder'.
      short_side: of the stored frames, pixels; smaller videos stay as they are.
      quality: of JPEG, 1 to 100.
      workers: processes; the files written do not depend on it.
      max_length_difference: between the views of a take, frames.

    Returns:
      What prepared.json says.

    Raises:
      ValueError: an argument is wrong.
      PreparationError: the input or the output does not let it go on.
    """
    names = catalog.get(dataset, **({"pattern": pattern} if pattern else {}))
    names, listing = list_videos(names, input_dir)
    settings = shards.Settings(
        dataset=dataset,
        pattern=getattr(names, "pattern", ""),
        class_names=names.class_names,
        codec=codec.NAME,
        short_side=short_side,
        quality=quality,
        max_length_difference=max_length_difference,
        needs_pairs=names.needs_pairs,
    )
    jobs = plan_shards(listing)
    with _locked(output_dir):
        _begin(settings, jobs, output_dir)
        accounts = _run(jobs, settings, input_dir, output_dir, workers)
        return metadata.write(settings, listing, accounts, output_dir)


def plan_shards(listing: Listing) -> list[shards.Job]:
    """Cuts the takes, in order of their names, into shards; a function of the listing alone."""
    takes = sorted({video.take for video in listing.videos})
    takes_per_shard = min(MAX_TAKES_PER_SHARD, math.ceil(len(takes) / MIN_SHARDS))
    shard_of_take = {take: index // takes_per_shard for index, take in enumerate(takes)}
    num_shards = math.ceil(len(takes) / takes_per_shard)
    members: list[list[tuple[catalog.Video, int]]] = [[] for _ in range(num_shards)]
    for video, size in zip(listing.videos, listing.num_bytes, strict=True):
        members[shard_of_take[video.take]].append((video, size))
    return [
        shards.Job(shard=shard, num_shards=num_shards, videos=videos, num_bytes=sizes)
        for shard, (videos, sizes) in enumerate(zip(*group, strict=True) for group in members)
    ]


@contextlib.contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """Makes the output folder and keeps other preparations out of it."""
    (output_dir / shards.PARTS).mkdir(parents=True, exist_ok=True)
    with open(output_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreparationError(f"another preparation is at work in {output_dir}; wait for it") from None
        yield


def _begin(settings: shards.Settings, jobs: Sequence[shards.Job], output_dir: Path) -> None:
    """Writes the plan, or checks that the one in the output folder is this one."""
    takes = sorted({video.take for job in jobs for video in job.videos})
    plan = {"format_version": metadata.FORMAT_VERSION, "settings": dataclasses.asdict(settings), "takes": takes}
    plan = json.loads(json.dumps(plan))
    path = output_dir / "plan.json"
    if path.exists():
        _check_same_plan(json.loads(path.read_bytes()), plan, output_dir)
    else:
        shards.write_atomically(path, json.dumps(plan, indent=1).encode())
    for leftover in [*output_dir.glob(".*.tmp"), *(output_dir / shards.PARTS).glob(".*.tmp")]:
        leftover.unlink()  # of a process that was killed; the lock says that none is at work


def _check_same_plan(before: dict, now: dict, output_dir: Path) -> None:
    advice = f"Choose another --output, or delete {output_dir} if it is no longer wanted"
    if before["format_version"] != now["format_version"]:
        raise PreparationError(f"{output_dir} was prepared by another version of this program. {advice}")
    differences = [
        f"{key} was {before['settings'].get(key)!r}, now {value!r}"
        for key, value in now["settings"].items()
        if before["settings"].get(key) != value
    ]
    if differences:
        raise PreparationError(f"{output_dir} was prepared with other settings: {'; '.join(differences)}. {advice}")
    new, gone = sorted(set(now["takes"]) - set(before["takes"])), sorted(set(before["takes"]) - set(now["takes"]))
    if new or gone:
        examples = ", ".join((new + gone)[:SHOWN])
        raise PreparationError(
            f"{output_dir} was prepared from other takes: {len(new)} are new, {len(gone)} gone ({examples}). {advice}"
        )


def _run(
    jobs: Sequence[shards.Job], settings: shards.Settings, input_dir: Path, output_dir: Path, workers: int
) -> list[dict]:
    """The accounts of all shards, in order; makes those that are missing."""
    accounts = {job.shard: shards.finished(job, settings, output_dir) for job in jobs}
    missing = [job for job in jobs if accounts[job.shard] is None]
    num_videos = sum(len(job.videos) for job in jobs)
    num_done = num_videos - sum(len(job.videos) for job in missing)
    if not missing:
        return [accounts[job.shard] for job in jobs]
    _forget_the_end(output_dir)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with (
        tqdm.tqdm(total=num_videos, initial=num_done, unit="video", disable=not sys.stderr.isatty()) as progress,
        concurrent.futures.ProcessPoolExecutor(
            min(workers, len(missing)), mp_context=context, initializer=_start_worker, initargs=(counter,)
        ) as executor,
    ):
        futures = [executor.submit(_write_shard, job, settings, input_dir, output_dir) for job in missing]
        pending = set(futures)
        try:
            while pending:
                done, pending = concurrent.futures.wait(
                    pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                progress.update(num_done + counter.value - progress.n)
                for future in done:
                    account = future.result()
                    accounts[missing[futures.index(future)].shard] = account
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return [accounts[job.shard] for job in jobs]


_counter = None  # of finished videos, shared with the main process; set in each worker


def _start_worker(counter: multiprocessing.Value) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    cv2.setNumThreads(1)
    threading.Thread(target=_exit_with_the_main_process, daemon=True).start()


def _exit_with_the_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(EXIT_ERROR)


def _write_shard(job: shards.Job, settings: shards.Settings, input_dir: Path, output_dir: Path) -> dict:
    return shards.write(job, settings, input_dir, output_dir, _count_video)


def _count_video() -> None:
    with _counter.get_lock():
        _counter.value += 1


def _forget_the_end(output_dir: Path) -> None:
    """While shards are missing, the folder must not look prepared."""
    (output_dir / "prepared.json").unlink(missing_ok=True)


def report(prepared: dict, output_dir: Path) -> str:
    """The end report: what went in, out and aside."""
    counts = prepared["counts"]
    lines = [
        f"in     {counts['videos_in']} videos of {counts['takes_in']} takes, {counts['bytes_in'] / 1e6:.1f} MB",
        f"out    {counts['videos']} videos of {counts['takes']} takes, {counts['frames']} frames, "
        f"{counts['bytes'] / 1e6:.1f} MB in {len(prepared['shards'])} shards: {output_dir}",
        f"aside  {counts['quarantined']} videos, listed with reasons in {output_dir / 'quarantine.csv'}"
        if counts["quarantined"]
        else "aside  none",
    ]
    lines += _shorten([f"{entry['path']}: {entry['reason']}" for entry in prepared["quarantine"]])
    if prepared["unmatched"]:
        lines.append(f"not of this data set: {len(prepared['unmatched'])} files")
        lines += _shorten(prepared["unmatched"])
    return "\n".join(lines)


def _shorten(items: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return [f"  {item}" for item in items[:SHOWN]] + more


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse_arguments(arguments)
    try:
        prepared = prepare(
            dataset=options.dataset,
            input_dir=options.input,
            output_dir=options.output,
            pattern=options.pattern,
            short_side=options.short_side,
            quality=options.quality,
            workers=options.workers,
            max_length_difference=options.max_length_difference,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    print(report(prepared, options.output))
    num_quarantined = prepared["counts"]["quarantined"]
    if num_quarantined > options.max_quarantined:
        print(
            f"{num_quarantined} videos in quarantine, more than --max_quarantined={options.max_quarantined}: the "
            f"prepared set is complete without them; exit code {EXIT_QUARANTINED} says so",
            file=sys.stderr,
        )
        return EXIT_QUARANTINED
    return 0


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Raw multi-view videos -> JPEG frames in random-access shards, with a manifest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m data.prepare --dataset=ntu60 --input=nturgb+d_rgb --output=prepared/ntu60 --workers=16
  python -m data.prepare --dataset=folder --pattern='{take}_cam{view}.mp4' --input=videos --output=prepared/mine
  python -m data.prepare --dataset=folder --pattern='{label}/{take}/{view}' --input=videos --output=prepared/mine

An interrupted preparation goes on when the same command is given again.

exit codes:
  0  prepared
  1  stopped by the input or the output (no videos, disk full, ...); what is done is not done again
  2  wrong arguments
  3  prepared, but more than --max_quarantined videos were left out: see quarantine.csv in the output folder
  130  interrupted by Ctrl-C""",
    )
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(catalog.NAMES)}")
    parser.add_argument("--input", required=True, type=Path, metavar="DIR", help="folder with the raw videos")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the prepared set")
    parser.add_argument(
        "--pattern",
        help="for --dataset=folder: file names below --input, of the fields {take} and {view} and optionally {label} "
        f"and {{subject}}; without an extension it takes every video (default: '{folder.DEFAULT_PATTERN}')",
    )
    parser.add_argument(
        "--short_side", type=_positive, default=170, metavar="PIXELS", help="of the frames stored (170)"
    )
    parser.add_argument("--quality", type=_quality, default=90, metavar="Q", help="of JPEG, 1 to 100 (90)")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (all CPUs)")
    parser.add_argument(
        "--max_length_difference",
        type=_not_negative,
        default=20,
        metavar="FRAMES",
        help="views of a take that differ in length by more go to the quarantine (20: NTU's largest is 18)",
    )
    parser.add_argument(
        "--max_quarantined", type=_not_negative, default=0, metavar="K", help="more than K left out: exit code 3 (0)"
    )
    options = parser.parse_args(arguments)
    if options.pattern and options.dataset != "folder":
        parser.error(f"--pattern is for --dataset=folder; the names of {options.dataset} are known")
    return options


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def _quality(text: str) -> int:
    if not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to 100")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
