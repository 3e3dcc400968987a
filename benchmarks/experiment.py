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
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from console.command import Parser, did_you_mean, nearest
from console.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
RESULTS = Path(__file__).parent / "results"  # committed; written where --output says so
OUTPUT = Path("benchmark_output")  # written otherwise, in the current folder

# Two-sided 95 % quantiles of Student's t by degrees of freedom (number of seeds - 1).
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated data set.

    Attributes:
      name: of its folder. Another data set has another name, so that none is taken for another.
      options: arguments of data.synthetic beside --output and --seed.
      short_side: of the prepared frames, pixels.
    """

    name: str
    options: Sequence[str]
    short_side: int

    def prepared(self, folder: Path) -> Path:
        """Where it lies, prepared."""
        return folder / self.name / "prepared"

    def prepare(self, folder: Path) -> Path:
        """Generates and prepares it as folder/name/raw and prepared, unless it is there: the prepared folder."""
        raw, prepared = folder / self.name / "raw", self.prepared(folder)
        if (prepared / "prepared.json").exists():
            return prepared
        for arguments in (
            ["data.synthetic", f"--output={raw}", "--seed=0", *self.options],
            [
                *("data.prepare", "--dataset=synthetic", f"--input={raw}", f"--output={prepared}"),
                f"--short_side={self.short_side}",
            ],
        ):
            subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True)
        return prepared


def run(config_name: str, overrides: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """One run of the project, in this process: the content of its metrics.json, with `seconds` of wall time.

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
    path = workdir / "metrics.json"
    if path.exists():
        record = json.loads(path.read_text())
        _check_settings(workdir, parsed, record["config"])
        return record
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    start = time.perf_counter()
    with open(workdir / "log.txt", "w") as log, contextlib.redirect_stdout(log):
        program.run(parsed)
    jax.clear_caches()  # a process does many runs, and this run's programs are not used again
    record = json.loads(path.read_text()) | {"seconds": round(time.perf_counter() - start, 1), "hardware": hardware()}
    shutil.rmtree(workdir / "features", ignore_errors=True)
    path.write_text(json.dumps(record, indent=2))
    return record


def _check_settings(workdir: Path, parsed: argparse.Namespace, was: dict[str, Any]) -> None:
    from mv2mae_jax import config as configs

    wanted = json.loads(configs.load(parsed.config, parsed.overrides).to_json())
    there, now = (dict(configs.flatten(config_dict.ConfigDict(config))) for config in (was, wanted))
    changed = [
        f"{key}: {there.get(key)} there, {now.get(key)} now"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of other settings ({'; '.join(changed)}). Give another --folder, or remove it "
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
    names = text.split(",")
    if unknown := set(names) - set(known):
        hint = did_you_mean([near for name in sorted(unknown) for near in nearest(name, known, 1)])
        parser.error(f"there is no {', '.join(sorted(unknown))} among {', '.join(known)}.{hint}")
    return names


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval by Student's t over the seeds)."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, T95[n - 1] * math.sqrt(variance / n)


def compare(lower: Sequence[float], upper: Sequence[float]) -> str:
    """'holds' if the interval of the differences upper - lower, paired by seed, lies above 0, 'reversed' if below.

    'null' if it holds 0, and always with a single seed.
    """
    mean, half = interval([up - low for low, up in zip(lower, upper, strict=True)])
    if mean - half > 0:
        return "holds"
    return "reversed" if mean + half < 0 else "null"
