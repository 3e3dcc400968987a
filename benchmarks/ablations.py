"""The paper's ablations on the generated data set: one change of configs/benchmark.py at a time.

    python -m benchmarks.ablations                      # all; stopped and started again, it continues
    python -m benchmarks.ablations --only=mask_ratio    # one
    python -m benchmarks.ablations --list               # what they are, without running anything
    python -m benchmarks.ablations --check              # what is measured and what is missing; exit 1 if something is

They are the variants of configs/ablations.py. All are pre-trained on the training people from every camera
and measured on other people (`xsub`) with frozen features: what is compared is the direction, with two seeds per
variant unless --seeds asks for more. Results: benchmarks/results/ablations/.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import experiment, method
from benchmarks.experiment import OUTPUT, RESULTS, interval, positive
from benchmarks.method_rows import PRESETS
from configs.ablations import ABLATIONS
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data.store.whole_files import write_whole

NAMES = tuple(ABLATIONS)
COLUMNS = {  # in a record's metrics, title, factor of the unit shown
    "geometry/r2": ("3D pose, R²", 1),
    "ridge/top_1": ("classes from all tokens, top-1 (%)", 100),
    "retrieval/recall_1": ("recall@1 (%)", 100),
}
Job = tuple[str, str, dict[str, Any], int, Path]  # ablation, variant, overrides, seed, folder
PRESET = PRESETS["cpu"]


def measure(job: Job) -> dict[str, Any]:
    """Pre-trains a variant and probes its encoder."""
    name, variant, overrides, seed, folder = job
    common = {"data.dir": PRESET.data.prepared(folder), "seed": seed}
    runs = folder / "ablations" / f"{name}_{variant}_seed{seed}"
    pretrained = experiment.run(f"ablations:{name}={variant}", common, runs / "pretraining")
    sizes = {key: value for key, value in overrides.items() if key in ("model.width", "model.depth", "model.num_heads")}
    probing = method.PROBING | {"init_from": runs / "pretraining", "probe.kinds": ("geometry", "ridge", "retrieval")}
    probed = experiment.run("probe", common | method.sizes() | sizes | probing, runs / "probe")
    return {
        "ablation": name,
        "variant": variant,
        "seed": seed,
        "overrides": overrides,
        "metrics": {key: probed["metrics"][key] for key in COLUMNS},
        "pretraining": pretrained["metrics"],
        "seconds": {"pretraining": pretrained["seconds"], "probe": probed["seconds"]},
        "hardware": probed["hardware"],
        "git_revision": probed["git_revision"],
    }


def result_file(results: Path, name: str, variant: str, seed: int) -> Path:
    return results / f"{name}_{variant}_seed{seed}.json"


def read(results: Path, name: str, variant: str, seed: int) -> dict[str, Any] | None:
    """A record; None if it is not there.

    Raises:
      ValueError: it is damaged, or of a variant that has changed.
    """
    path = result_file(results, name, variant, seed)
    if not path.exists():
        return None
    record, now = experiment.read_record(path), json.loads(json.dumps(ABLATIONS[name].variants[variant]))
    if record.get("overrides") != now:
        raise UserError(f"{path} was measured with {record.get('overrides')}; the variant is {now} now. Remove it.")
    return record


def planned(names: list[str], seeds: int) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    for name in names:
        for variant, overrides in ABLATIONS[name].variants.items():
            for seed in range(seeds):
                yield name, variant, overrides, seed


def check(results: Path, seeds: int) -> int:
    """Prints in one line what is measured; 1 if anything is missing."""
    plan = [(name, variant, seed) for name, variant, _, seed in planned(list(NAMES), seeds)]
    missing = [part for part in plan if not read(results, *part)]
    listed = ", ".join(f"{name}/{variant} seed {seed}" for name, variant, seed in missing)
    print(f"{len(plan) - len(missing)} of {len(plan)} measured" + (f"; MISSING: {listed}" if missing else ""))
    return 1 if missing else 0


def write_table(results: Path) -> None:
    """results/README.md: our numbers beside the paper's direction."""
    lines = [
        "# ablations",
        "",
        f"Written by `python -m benchmarks.ablations`. The data and the setting of method_cpu: {PRESET.clips:,} clips "
        "of pre-training, frozen features read out on other people; with the 95 % interval where there are several "
        "seeds.",
    ]
    for name in NAMES:
        lines += [
            "",
            f"## {name}",
            "",
            f"The paper: {ABLATIONS[name].paper}",
            "",
            "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        ]
        lines += ["|---|" + "---|" * len(COLUMNS)]
        for variant in ABLATIONS[name].variants:
            there = results.glob(f"{name}_{variant}_seed*.json")
            seeds = sorted(int(path.stem.rpartition("seed")[2]) for path in there)
            records = [read(results, name, variant, seed) for seed in seeds]
            cells = []
            for column, (_, factor) in COLUMNS.items():
                mean, half = interval([factor * r["metrics"][column] for r in records]) if records else (0.0, 0.0)
                digits = 3 if factor == 1 else 1
                error = f" ± {half:.{digits}f}" if len(records) > 1 else ""
                cells.append(f"{mean:.{digits}f}{error}" if records else "not measured")
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    (results / "README.md").write_text("\n".join(lines) + "\n")


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.ablations", __doc__, exit_codes={ExitCode.FAILED: "a result is missing"})
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=positive, default=2, metavar="K", help="seeds 0 to K - 1 (%(default)s)")
    parser.add_argument("--folder", type=Path, default=OUTPUT, help="data and runs (%(default)s)")
    parser.add_argument("--output", type=Path, help="where results go (FOLDER/results/ablations)")
    parser.add_argument("--workers", type=positive, default=2, help="processes that share the machine (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the variants and stop")
    parser.add_argument("--check", action="store_true", help="only look at the committed results, or those in --output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    names = experiment.chosen(parser, options.only, NAMES)
    results = options.output or (RESULTS if options.check else options.folder / "results") / "ablations"
    if options.check:
        return check(results, options.seeds)
    if options.list:
        for name, variant, overrides, _ in planned(names, 1):
            print(f"{name:<16} {variant:<16} {overrides}")
        return 0
    folder = options.folder.absolute()
    PRESET.data.prepare(folder)
    results.mkdir(parents=True, exist_ok=True)
    jobs = [(*job, folder) for job in planned(names, options.seeds)]
    jobs = [job for job in jobs if not read(results, job[0], job[1], job[3])]
    for (name, variant, _, seed, _), record in experiment.run_jobs(measure, jobs, options.workers, folder / "programs"):
        write_whole(result_file(results, name, variant, seed), json.dumps(record, indent=2) + "\n")
        print(f"{name} {variant} seed {seed}: {record['metrics']}", flush=True)
    write_table(results)
    return check(results, options.seeds)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.ablations", main))
