"""Kills a run many times at random moments, and compares its end with that of an undisturbed run.

    python -m benchmarks.faults --kills=50 --workdir=/tmp/faults
    python -m benchmarks.faults --kills=0 --fuzz=2000 --workdir=/tmp/faults

The tiny model is trained once without and once with disturbance. The disturbed run is started by the same command until
it is done, and each time killed by SIGKILL (every fourth time by SIGTERM) after a random time. The signals thus fall
into start-up, compilation, steps, saves and evaluations. A preparation of videos is treated alike. Then parameters,
optimiser state, average, metrics history, results and the files of the prepared set must be equal bit for bit. With
--fuzz, thousands of mutated videos, sets, checkpoints and configs follow. Writes faults.json and fuzz.json; the
committed ones are in benchmarks/results/faults/.
"""

import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.experiment import OUTPUT, about_this_run, run_python
from console.command import ExitCode, Parser, execute
from data.store import takes
from tests import faults, fuzz

# Enough steps for strikes in all phases; checkpoints, evaluations and log rows at steps of their own.
OPTIONS = (
    "total_steps=60",
    "checkpoint.every_steps=7",
    "eval.every_steps=20",
    "log.every_steps=9",
    "optimizer.ema_decay=0.9",
    "data.num_workers=1",
)
SIGTERM_EVERY = 4


def strike(command: list[str], seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Starts a command in a process group of its own and sends it a signal: (exit code, output up to then)."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=faults.ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(timeout=300)
        output.seek(0)
        return process.returncode, output.read()


def phase(output: str) -> str:
    """Where a run was when its output ended."""
    lines = output.splitlines()
    if "eval at step" in output and not lines[-1].startswith("step "):
        return "after an evaluation"
    if any(line.startswith(("step ", "Stopped")) for line in lines):
        return "steps"
    return "compilation or first steps" if any(line.startswith("devices ") for line in lines) else "start-up"


def train_undisturbed(folder: Path, prepared: Path) -> Path:
    """Trains FOLDER/whole to its end."""
    run_python("run.py", *faults.arguments(folder / "whole", prepared, *OPTIONS), quiet=True)
    return folder / "whole"


def kill_run(folder: Path, prepared: Path, kills: int, draw: random.Random) -> Iterator[list[dict]]:
    """Trains FOLDER/disturbed with at least `kills` strikes in one or more runs; compares each end.

    Yields:
      After each end, for each strike so far: signal, seconds after the start, exit code, phase.
    """
    strikes, began = [], time.monotonic()
    whole = train_undisturbed(folder, prepared)
    duration = time.monotonic() - began
    while len(strikes) < kills:
        disturbed = folder / "disturbed"
        shutil.rmtree(disturbed, ignore_errors=True)
        command = ["run.py", *faults.arguments(disturbed, prepared, *OPTIONS)]
        while True:
            number = signal.SIGTERM if len(strikes) % SIGTERM_EVERY == SIGTERM_EVERY - 1 else signal.SIGKILL
            seconds = draw.uniform(0, duration) if len(strikes) < kills else 3600.0
            began = time.monotonic()
            code, output = strike(command, seconds, number)
            if code == 0:  # how long it takes when the compilation is cached
                duration = min(duration, time.monotonic() - began)
                break
            if code not in (-signal.SIGKILL, -signal.SIGTERM, ExitCode.PREEMPTED):
                raise RuntimeError(f"exit code {code} after {number.name} at {seconds:.1f} s:\n{output}")
            at = phase(output)
            strikes.append({"signal": number.name, "seconds": round(seconds, 2), "exit_code": code, "phase": at})
            print(f"{len(strikes)}: {number.name} after {seconds:.1f} s: {at}", flush=True)
        faults.assert_same_end(whole, disturbed)
        print(f"An end equal bit for bit after {len(strikes)} strikes.", flush=True)
        yield strikes


def kill_preparation(folder: Path, raw: Path, kills: int, draw: random.Random) -> list[dict]:
    """The same for `python -m data.prepare`: the files of the set are those of an undisturbed preparation."""
    common = ["-m", "data.prepare", "--dataset=synthetic", f"--input={raw}", "--short_side=40", "--workers=2"]
    began = time.monotonic()
    run_python(*common, f"--output={folder}/whole")
    duration, strikes = time.monotonic() - began, []
    output, code = folder / "disturbed", None
    while code != 0:
        seconds = draw.uniform(0, duration) if len(strikes) < kills else 3600.0
        code, said = strike([*common, f"--output={output}"], seconds, signal.SIGKILL)
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"exit code {code}:\n{said}")
        if code == 0 and len(strikes) < kills:
            shutil.rmtree(output)  # finished before the strike: from the start
            code = None
        elif code != 0:
            strikes.append({"signal": "SIGKILL", "seconds": round(seconds, 2), "exit_code": code})
    files = [
        {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        for made in (folder / "whole", output)
    ]
    assert files[0] == files[1]
    return strikes


def fuzz_all(folder: Path, raw: Path, output: Path, cases: int) -> None:
    """Thousands of mutated inputs, counted in fuzz.json; an AssertionError or any other exception is a failure.

    Args:
      folder: for what is mutated.
      raw: videos; a prepared set and a finished run are made of them first.
      cases: of each kind, and for each base config; a tenth as many of prepared sets, each of which is read as a whole.
    """
    began, prepared = time.monotonic(), folder / "set"
    run_python("-m", "data.prepare", "--dataset=synthetic", f"--input={raw}", "--short_side=40", f"--output={prepared}")
    run = train_undisturbed(folder, prepared)
    seeds = fuzz.video_seeds(folder)
    used, aside = 0, 0
    for seed in range(cases // 200):
        counts = fuzz.prepare_mutated_videos(folder / "videos", seeds, seed, num_takes=200)
        used, aside = used + counts[0], aside + counts[1]
    small = folder / "videos" / "prepared"
    takes.RETRY_AFTER_SECONDS = ()  # what is damaged here stays so
    read, refused = fuzz.read_mutated_set(small, seed=1, cases=cases // 10)
    step = max((run / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    fuzz.check_mutated_step(step, seed=2, cases=cases)
    bases = [str(path) for path in sorted((faults.ROOT / "configs").glob("*_base.py"))]
    accepted = sum(fuzz.validate_random_config(base, seed, str(prepared)) for base in bases for seed in range(cases))
    num_configs = cases * len(bases)
    counts = {
        "videos": {"mutated": cases // 200 * 200, "views_used": used, "views_in_quarantine": aside},
        "prepared_sets": {"mutated": cases // 10, "clips_read_unchanged": read, "clips_refused": refused},
        "checkpoints": {"mutated": cases, "detected": cases},
        "configs": {"random": num_configs, "accepted": accepted, "refused": num_configs - accepted},
    }
    write_record(output / "fuzz.json", {"minutes": round((time.monotonic() - began) / 60, 1), **counts})
    print(f"{counts}: {output / 'fuzz.json'}")


def write_record(path: Path, found: dict[str, object]) -> None:
    record = {"date": datetime.date.today().isoformat(), **about_this_run(), **found}
    path.write_text(json.dumps(record, indent=1) + "\n")


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.faults", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="for the runs; emptied")
    parser.add_argument("--kills", type=int, default=50, help="of the run; a fifth as many more of the preparation")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="decides when to strike (%(default)s)")
    parser.add_argument("--fuzz", type=int, default=0, metavar="CASES", help="e.g. 2000 of each kind")
    parser.add_argument("--output", type=Path, default=OUTPUT / "faults", help="folder of what it writes (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    shutil.rmtree(options.workdir, ignore_errors=True)
    raw = options.workdir / "raw"
    run_python("-m", "data.synthetic", f"--output={raw}", "--takes=24", "--seed=1", "--resolution=64x48")
    options.output.mkdir(parents=True, exist_ok=True)
    if options.kills:
        strike_all(options.workdir, raw, options.output, options.kills, options.seed)
    if options.fuzz:
        fuzz_all(options.workdir / "fuzz", raw, options.output, options.fuzz)


def strike_all(workdir: Path, raw: Path, output: Path, kills: int, seed: int) -> None:
    """Strikes at a preparation and at runs; each end that was equal bit for bit is recorded in faults.json."""
    draw, began = random.Random(seed), time.monotonic()
    (workdir / "preparations").mkdir()
    preparation = kill_preparation(workdir / "preparations", raw, kills // 5, draw)
    record = {"seed": seed, "options": OPTIONS, "preparation": preparation}
    prepared = workdir / "preparations" / "whole"
    # An end that differs is an AssertionError: what is in the file was equal bit for bit.
    for ends, strikes in enumerate(kill_run(workdir / "runs", prepared, kills, draw), start=1):
        minutes = round((time.monotonic() - began) / 60, 1)
        record |= {"equal_ends": ends, "run": strikes, "minutes": minutes}
        write_record(output / "faults.json", record)
    print(f"{len(record['run'])} strikes at the run, {len(preparation)} at the preparation: {output / 'faults.json'}")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.faults", main))
