"""What method.py and ablations.py share: the data, pre-training runs, their measurements, and intervals.

Every part of an experiment is a run of the project itself, in a directory of its own with its `metrics.json`. A part
whose file exists is not repeated, so a stopped benchmark can be continued.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from console.command import Parser, did_you_mean, nearest
from console.errors import UserError
from data.store import digests
from data.store.whole_files import write_whole

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
RESULTS = Path(__file__).parent / "results"  # committed; written where --output says so
OUTPUT = Path("benchmark_output")  # written otherwise, in the current folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated data set."""

    name: str  # of its folder. Another data set has another name, so that none is taken for another.
    options: Sequence[str]  # arguments of data.synthetic beside --output and --seed
    short_side: int  # of the prepared frames, pixels

    @property
    def num_takes(self) -> int:
        return next(int(option.partition("=")[2]) for option in self.options if option.startswith("--takes="))

    def prepared(self, folder: Path) -> Path:
        """Where it lies, prepared."""
        return folder / self.name / "prepared"

    def prepare(self, folder: Path) -> Path:
        """Generates and prepares it as folder/name/raw and prepared, unless it is there: the prepared folder."""
        raw, prepared = folder / self.name / "raw", self.prepared(folder)
        if (prepared / "prepared.json").exists():
            return prepared
        run_python("-m", "data.synthetic", f"--output={raw}", "--seed=0", *self.options)
        paths = (f"--input={raw}", f"--output={prepared}")
        run_python("-m", "data.prepare", "--dataset=synthetic", *paths, f"--short_side={self.short_side}")
        return prepared


def run_python(*arguments: str, quiet: bool = False) -> None:
    """A process of this project's; raises CalledProcessError where it fails. `quiet`: without its output."""
    output = subprocess.DEVNULL if quiet else None
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=output)


def run(config_name: str, overrides: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """One run of the project, in this process: the content of its metrics.json, with `seconds` of wall time.

    A run that is there is not repeated, unless its encoder (`init_from`) was trained again since.

    Args:
      config_name: of a file in configs/ without its ending, with a variant where it has some: 'benchmark',
        'ablations:temperature=60'.
      overrides: config keys and values; None leaves the config's.
      workdir: of the run; its output goes to log.txt there.

    Raises:
      ValueError: as of run.py; or workdir holds a finished run of other settings.
    """
    import jax

    import run as program

    file, colon, variant = config_name.partition(":")
    arguments = [f"--config={CONFIGS / file}.py{colon}{variant}", f"--workdir={workdir}"]
    arguments += [f"--config.{key}={value}" for key, value in overrides.items() if value is not None]
    parsed = program.make_parser().parse_args([*arguments, "--config.log.report=False"])
    path, source = workdir / "metrics.json", str(overrides.get("init_from") or "")
    encoder = Path(source, "metrics.json")
    read_from = digests.sha256_of(encoder)[0] if source and encoder.is_file() else None
    record = read_record(path) if path.exists() else {}
    if "seconds" in record:  # otherwise it was stopped after the run's own file
        _check_settings(workdir, parsed, record["config"])
        if record.get("read_from") == read_from:
            return record
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    start = time.perf_counter()
    with open(workdir / "log.txt", "w") as log, contextlib.redirect_stdout(log):
        program.run(parsed)
    jax.clear_caches()  # a process does many runs, and this run's programs are not used again
    seconds = round(time.perf_counter() - start, 1)
    record = read_record(path) | {"seconds": seconds, "hardware": hardware(), "read_from": read_from}
    shutil.rmtree(workdir / "features", ignore_errors=True)
    write_whole(path, json.dumps(record, indent=2))
    return record


def read_record(path: Path) -> dict[str, Any]:
    """The content of a JSON file of results.

    Raises:
      ValueError: it was not written whole, or holds a number that is not finite.
    """
    try:
        return json.loads(path.read_text(), parse_constant=_not_finite)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}. Remove it, and it is measured again.") from error


def about_this_run() -> dict[str, str]:
    """What a record of results says of the code and the machine."""
    from mv2mae_jax.runs import metrics_file

    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    return {"git_revision": metrics_file.git_revision(), "machine": machine}


def _not_finite(name: str) -> None:
    raise UserError(f"it holds {name}")


def positive(text: str) -> int:
    """Of an option: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _check_settings(workdir: Path, parsed: argparse.Namespace, was: dict[str, Any]) -> None:
    from mv2mae_jax import config as configs

    wanted = json.loads(configs.load(parsed.config, parsed.overrides).to_json())
    if changed := sorted(configs.differences(was, wanted)):
        there, now = dict(configs.flatten(was)), dict(configs.flatten(wanted))
        told = "; ".join(f"{key}: {there.get(key)} there, {now.get(key)} now" for key in changed)
        raise UserError(
            f"{workdir} holds a run of other settings ({told}). Give another --folder, or remove it "
            "and what was measured on it."
        )


def hardware() -> str:
    """The devices that this process computes on."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} core(s) of {names[0]}"


def run_jobs(function: Callable, jobs: Sequence[Any], workers: int, cache: Path) -> Iterable[Any]:
    """`function(job)` for every job in `workers` processes, each with its share of the cores: results as they come.

    A result comes with the job: (job, result). The first failure is raised, after the jobs under way.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))
    shares = context.Queue()
    for worker in range(workers):
        shares.put(cores[worker::workers] or cores)
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(shares, str(cache))
    ) as pool:
        futures = {pool.submit(function, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(shares: multiprocessing.Queue, cache: str) -> None:
    os.sched_setaffinity(0, shares.get())
    # The same few programs are compiled for every seed.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # The first process would take three quarters of a GPU's memory, and leave too little for the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path.insert(0, str(ROOT))


def chosen(parser: Parser, text: str, known: Iterable[str]) -> list[str]:
    """The comma-separated names of an option, checked; ends the program where one is unknown."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := set(names) - set(known):
        hint = did_you_mean([near for name in sorted(unknown) for near in nearest(name, known, 1)])
        parser.error(f"there is no {', '.join(sorted(unknown))} among {', '.join(known)}.{hint}")
    return names


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval by Student's t over the seeds)."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, n - 1) * stats.sem(values))


def compare(lower: Sequence[float], upper: Sequence[float]) -> str:
    """'holds' if the interval of the differences upper - lower, paired by seed, lies above 0, 'reversed' if below.

    'null' if it holds 0, and always with a single seed.
    """
    mean, half = interval([up - low for low, up in zip(lower, upper, strict=True)])
    if mean - half > 0:
        return "holds"
    return "reversed" if mean + half < 0 else "null"
