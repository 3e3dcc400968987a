"""The paper's ablations on the generated data set: one change of configs/benchmark.py at a time.

    python -m benchmarks.ablations                      # all; stopped and started again, it continues
    python -m benchmarks.ablations --only=mask_ratio    # one
    python -m benchmarks.ablations --list               # what they are, without running anything
    python -m benchmarks.ablations --check              # what is measured and what is missing; exit 1 if something is

They are the variants of configs/ablations.py. All are pre-trained on the training people from every camera
and measured on other people (`xsub`) with frozen features: what is compared is the direction, with two seeds per
variant unless --seeds asks for more. Results: benchmarks/results/ablations/. A variant that is a row of
benchmarks/method.py is read from its results where they are there.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import experiment, method, method_results
from benchmarks.experiment import OUTPUT, RESULTS, positive
from benchmarks.method_rows import PRESETS, ROWS, Preset
from configs import ablations as variants
from configs.ablations import ABLATIONS
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data.store.whole_files import write_whole

NAMES = tuple(ABLATIONS)
COLUMNS = {name: method_results.COLUMNS[name] for name in ("pose", "ridge", "recall_1")}
PRESET = PRESETS["cpu"]
USUAL = ("ess_fraction", "0.5")  # configs/benchmark.py as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(method.Job):
    """One variant of an ablation with one seed; the row is what configs/ablations.py calls it, 'mask_ratio=0.7'."""

    preset: str = "cpu"

    @property
    def name_and_variant(self) -> tuple[str, str]:
        name, _, variant = self.row.partition("=")
        return name, variant

    @property
    def overrides(self) -> dict[str, Any]:
        name, variant = self.name_and_variant
        return ABLATIONS[name].variants[variant]

    @property
    def settings(self) -> Preset:
        sizes = ("model.width", "model.depth", "model.num_heads")
        return dataclasses.replace(
            PRESET, downstream={key: value for key, value in self.overrides.items() if key in sizes}
        )

    @property
    def run_folder(self) -> Path:
        return self.folder / "ablations" / f"{self.row}_seed{self.seed}"

    @property
    def encoder(self) -> str:
        return str(self.run_folder / "pretraining")


def measure(job: Job) -> dict[str, Any]:
    """Pre-trains a variant and reads out its frozen encoder."""
    common = {"data.dir": job.prepared, "seed": job.seed}
    pretrained = experiment.run(f"ablations:{job.row}", common, Path(job.encoder))
    name, variant = job.name_and_variant
    return {
        "ablation": name,
        "variant": variant,
        "seed": job.seed,
        "overrides": job.overrides,
        "columns": method.frozen(job),
        "pretraining": pretrained["metrics"],
        "hardware": pretrained["hardware"],
        "git_revision": pretrained["git_revision"],
    }


@functools.cache
def row_of(name: str, variant: str) -> tuple[Preset, str] | None:
    """(preset, row) of benchmarks/method.py with the config of a variant, if there is one: it is not measured twice."""
    config = variants.get_config(f"{name}={variant}")
    alike = [other for other in PRESETS.values() if (other.data, other.clips) == (PRESET.data, PRESET.clips)]
    rows = ((preset, row) for preset in alike for row in preset.rows if ROWS[row] is not None)
    return next((found for found in rows if variants.change(found[0].pretraining | ROWS[found[1]]) == config), None)


def result_file(results: Path, name: str, variant: str, seed: int) -> Path:
    return results / f"{name}_{variant}_seed{seed}.json"


def read(results: Path, name: str, variant: str, seed: int) -> dict[str, Any] | None:
    """A record, of benchmarks/method.py if it is a row there; None if it is not there.

    Raises:
      ValueError: it is damaged, or of a variant that has changed.
    """
    path = result_file(results, name, variant, seed)
    if not path.exists():
        found = row_of(name, variant)
        return found and method_results.read_one(results.parent / f"method_{found[0].name}", *found, seed)
    record, now = experiment.read_record(path), json.loads(json.dumps(ABLATIONS[name].variants[variant]))
    if record.get("overrides") != now:
        raise UserError(f"{path} was measured with {record.get('overrides')}; the variant is {now} now. Remove it.")
    return record


def planned(names: list[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    for name in names:
        for variant in ABLATIONS[name].variants:
            for seed in range(seeds):
                yield name, variant, seed


def check(results: Path, seeds: int) -> int:
    """Prints in one line what is measured; 1 if anything is missing."""
    plan = list(planned(list(NAMES), seeds))
    missing = [part for part in plan if not read(results, *part)]
    listed = ", ".join(f"{name}/{variant} seed {seed}" for name, variant, seed in missing)
    print(f"{len(plan) - len(missing)} of {len(plan)} measured" + (f"; MISSING: {listed}" if missing else ""))
    return 1 if missing else 0


def write_table(results: Path, seeds: int) -> None:
    """results/README.md: our numbers beside the paper's direction."""
    lines = [
        "# ablations",
        "",
        f"Written by `python -m benchmarks.ablations`. The data and the setting of method_cpu: {PRESET.clips:,} clips "
        "of pre-training, frozen features read out on other people. The steps are as many for all, of 64 samples each, "
        "so two source views make it 300,000 clips. The value after ± is the half width of the 95 % interval "
        "(Student's t); that of two seeds is very wide. Means of different seeds are not compared: the second column "
        "takes from each seed's pose what the same seed has in the setting of method_cpu. The two may have been "
        "measured on different machines (`hardware` in each file), which round differently.",
    ]
    titles = [COLUMNS["pose"], "seed by seed", *list(COLUMNS.values())[1:]]
    seed_range = range(max(seeds, len(PRESET.seeds)))
    usual = {seed: record for seed in seed_range if (record := read(results, *USUAL, seed))}
    for name in NAMES:
        lines += ["", f"## {name}", "", f"The paper: {ABLATIONS[name].paper}", ""]
        lines += ["| | " + " | ".join(titles) + " | seeds |", "|---|" + "---|" * (len(titles) + 1)]
        for variant in ABLATIONS[name].variants:
            records = {seed: record for seed in seed_range if (record := read(results, name, variant, seed))}
            cells = [method_results.cell(records, column) or "not measured" for column in COLUMNS]
            cells.insert(1, "" if records == usual else method_results.differences(usual, records, "pose"))
            lines.append(f"| {variant} | " + " | ".join(cells) + f" | {len(records)} |")
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
        for name, variant, _ in planned(names, 1):
            print(f"{name:<16} {variant:<17} {ABLATIONS[name].variants[variant]}")
        return 0
    folder = options.folder.absolute()
    PRESET.data.prepare(folder)
    results.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(row=f"{name}={variant}", seed=seed, folder=folder)
        for name, variant, seed in planned(names, options.seeds)
        if not read(results, name, variant, seed)
    ]
    for job, record in experiment.run_jobs(measure, jobs, options.workers, folder / "programs"):
        write_whole(result_file(results, *job.name_and_variant, job.seed), json.dumps(record, indent=2) + "\n")
        print(f"{job.row} seed {job.seed}: {record['columns']}", flush=True)
    write_table(results, options.seeds)
    return check(results, options.seeds)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.ablations", main))
