"""Trains for half an hour and looks for leaks of memory, open files, threads and processes.

    python -m benchmarks.soak --minutes=30 --workdir=/tmp/soak --data=demo_output/prepared

The demo's config (`make demo` makes its data), with reading processes, frequent checkpoints and evaluations. Every ten
seconds the whole tree of processes is looked at; the figures of the last third of the time must not exceed those of the
second third by more than ALLOWED. Writes soak.json. The committed one is in benchmarks/results/soak/.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiment import OUTPUT, ROOT, about_this_run
from console.command import ExitCode, Parser, execute
from console.errors import UserError

EVERY_SECONDS = 10
OVERRIDES = (
    "total_steps=10000000",
    "checkpoint.every_steps=200",
    "eval.every_steps=1000",
    "eval.max_takes=12",
    "eval.clips_per_element=1",
    "data.num_workers=1",
)
# The mean of the last third may exceed that of the second by so much: memory (MB), open files, threads, processes.
ALLOWED = {"memory_mb": 0.05, "open_files": 0.05, "threads": 0.05, "processes": 0.05}


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parent = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # has just ended
    found = [root]
    for process in found:
        found += [child for child, its in parent.items() if its == process]
    return found


def look(root: int) -> dict[str, float]:
    """Figures of a tree of processes, summed. Shared pages count in each process."""
    memory, files, threads, processes = 0.0, 0, 0, tree(root)
    for process in processes:
        try:
            status = Path(f"/proc/{process}/status").read_text()
            files += len(os.listdir(f"/proc/{process}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        lines = dict(line.split(":", 1) for line in status.splitlines())
        memory += int(lines.get("VmRSS", "0 kB").split()[0]) / 1e3
        threads += int(lines.get("Threads", "0"))
    return {"memory_mb": round(memory, 1), "open_files": files, "threads": threads, "processes": len(processes)}


def growth(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of the last third over that of the second, minus 1."""
    third = len(rows) // 3
    second, last = rows[third : 2 * third], rows[2 * third :]
    return {
        key: sum(row[key] for row in last) / len(last) / (sum(row[key] for row in second) / len(second)) - 1
        for key in ALLOWED
    }


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.soak", __doc__, exit_codes={ExitCode.FAILED: "something grows"})
    parser.add_argument("--minutes", type=float, default=30.0, help="to train (%(default)s)")
    parser.add_argument("--workdir", type=Path, required=True, help="for the run; emptied")
    parser.add_argument("--data", default="demo_output/prepared", help="the demo's prepared set")
    parser.add_argument("--output", type=Path, default=OUTPUT / "soak", help="folder of soak.json (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    if not Path(options.data, "prepared.json").exists():
        raise UserError(f"--data={options.data} is no prepared set; `make demo` makes demo_output/prepared.")
    shutil.rmtree(options.workdir, ignore_errors=True)
    options.workdir.mkdir(parents=True)
    command = ["run.py", "--config=configs/demo.py", f"--workdir={options.workdir / 'run'}"]
    command += [f"--config.{override}" for override in (f"data.dir={options.data}", *OVERRIDES)]
    rows, began = [], time.monotonic()
    with open(options.workdir / "log.txt", "w") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and time.monotonic() - began < 60 * options.minutes:
            time.sleep(EVERY_SECONDS)
            rows.append({"seconds": round(time.monotonic() - began, 1), **look(process.pid)})
        if process.poll() is not None:
            raise RuntimeError(f"The run ended by itself: see {options.workdir / 'log.txt'}.")
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=300)
    steps = [json.loads(line)["step"] for line in (options.workdir / "run" / "history.jsonl").read_text().splitlines()]
    record = {
        **about_this_run(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "steps": steps[-1],
        "exit_code": code,
        "growth": {key: round(value, 4) for key, value in growth(rows).items()},
        "allowed": ALLOWED,
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "soak.json").write_text(json.dumps(record) + "\n")
    print(f"{record['steps']} steps in {record['minutes']} minutes; growth {record['growth']}")
    too_much = {key: value for key, value in record["growth"].items() if value > ALLOWED[key]}
    if too_much or code not in (ExitCode.PREEMPTED, -signal.SIGTERM):
        sys.exit(f"not flat: {too_much}, exit code {code}")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.soak", main))
