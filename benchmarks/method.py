"""Does the method work? Each idea of MV2MAE against the variant without it, on a generated data set.

    python -m benchmarks.method --preset=cpu            # all rows; stopped and started again, it continues
    python -m benchmarks.method --preset=cpu --rows=random,cross_view --seeds=2
    python -m benchmarks.method --preset=furnished      # the main rows with one thing made harder; others: --help
    python -m benchmarks.method --rates=0.04,0.08 --rows=random   # fine-tuning at these rates, on held-out takes
    python -m benchmarks.method --check                 # what the committed results say; exit 1 if they are incomplete
    python -m benchmarks.method --quick                 # rehearses a preset: one seed, a hundredth of the clips

Rows are variants of one pre-training (configs/benchmark.py) with equal data, equal clips, equal batches and the same
encoder. It sees the training people without labels, from all cameras. Read-outs train on the training people and are
tested on others: `xsub` from all cameras, `unseen_camera` (the protocol xsub_xview) from camera 1 with read-outs that
were trained on cameras 2 and 3. They are 3D pose, joint velocities and classes by ridge regression of frozen tokens,
the attentive probe, retrieval of the same take from another camera, and fine-tuning with all labels and with a fifth,
by AdamW and by Muon.

Some read-outs are repeated after 12,500 clips, 25,000 and so on, for the curve. Read-outs choose their settings on
training people held out; no test score is looked at.

Results: one file per row and seed, a table, a plot and the curve. Those in benchmarks/results/method_PRESET/ are
committed.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import experiment
from benchmarks.experiment import OUTPUT, RESULTS, positive
from benchmarks.method_results import add_rates, check, plot, read, result_file, write_steps, write_table
from benchmarks.method_rows import (
    ADAMW_RATE,
    CLIPS_PER_STEP,
    FINE_TUNINGS,
    MAIN,
    PRESETS,
    RATE,
    RATE_AT_64,
    ROWS,
    SCRATCH_RATE,
    Preset,
)
from console.command import ExitCode, Parser, execute
from data.store.whole_files import write_whole

ON_THE_WAY = ("pose", "ridge", "recall_1", "ranked_before")  # the columns that are measured on the way
# Overrides of configs/probe.py.
PROBING = {
    "probe.pooling": "slices",
    "probe.standardize": True,
    "probe.learning_rates": (0.003, 0.01),
    "probe.weight_decays": (0.1,),
    "probe.epochs": 20,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One row with one seed."""

    row: str
    seed: int
    preset: str
    folder: Path

    @property
    def settings(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def run_folder(self) -> Path:
        """Presets share the read-outs of rows that are not pre-trained, where they share the data."""
        of = self.preset if ROWS[self.row] is not None else self.settings.data.name
        return self.folder / "runs" / of / f"{self.row}_seed{self.seed}"

    @property
    def prepared(self) -> Path:
        return self.settings.data.prepared(self.folder)

    @property
    def encoder(self) -> str:
        """What `init_from` is for the read-outs."""
        if ROWS[self.row] is None:
            return self.row
        return str(self.run_folder / "pretraining")


def pretrain(job: Job) -> dict[str, Any] | None:
    """Pre-trains a row: its record, or None where nothing is pre-trained."""
    overrides = ROWS[job.row]
    if overrides is None:
        return None
    overrides = job.settings.pretraining | overrides
    # Stated for 64 samples a step; a single-view sample is one clip, a cross-view sample two.
    samples = overrides.get("global_batch_size", 64)
    return experiment.run(
        "benchmark",
        {
            "data.dir": job.prepared,
            "total_steps": job.settings.steps,
            "eval.at_steps": tuple(job.settings.marks),
            "seed": job.seed,
            RATE: RATE_AT_64 * 64 / samples,
            **overrides,
        },
        job.run_folder / "pretraining",
    )


def probe(job: Job, protocol: str, kinds: Sequence[str], step: int | None = None) -> dict[str, float]:
    """Metrics of read-outs of a row's frozen encoder, after all clips or after `step` steps."""
    record = experiment.run(
        "probe",
        {
            "data.dir": job.prepared,
            "data.protocol": protocol,
            **sizes(),
            "init_from": job.encoder,
            "init_from_step": step,
            "seed": job.seed,
            "probe.kinds": tuple(kinds),
            **PROBING,
            **job.settings.downstream,
        },
        job.run_folder / ("_".join([protocol, *kinds]) + ("" if step is None else f"_step{step}")),
    )
    return record["metrics"]


def finetune(job: Job, column: str, trial_rate: float | None = None) -> float:
    """Top-1 on other people after fine-tuning, as a column of FINE_TUNINGS says.

    With `trial_rate`: at this learning rate, and on takes held out of the training people's.
    """
    (optimizer, few), trial = FINE_TUNINGS[column], {}
    chosen = SCRATCH_RATE if ROWS[job.row] is None else job.settings.finetune_rate
    rate, split, folder = ADAMW_RATE if optimizer == "adamw" else chosen[few], "test", column
    if trial_rate is not None:
        rate, split, folder = trial_rate, "held_out", f"{column}_rate{trial_rate:g}"
        trial = {"data.holdout_fraction": 0.1, "eval.split": split}
    record = experiment.run(
        "finetune_demo",
        {
            "data.dir": job.prepared,
            "data.protocol": "xsub",
            "data.labels_per_class": job.settings.labels_per_class if few else None,
            "data.label_seed": job.seed,
            **sizes(),
            "data.crop_scales": (1.0,),
            "model.drop_path": 0.0,
            "augment.randaugment_num_ops": 0,
            "init_from": "" if job.encoder == "random" else job.encoder,
            "seed": job.seed,
            "total_steps": job.settings.finetune_steps,
            "global_batch_size": 64,
            "optimizer.name": optimizer,
            "optimizer.base_learning_rate": rate,
            "optimizer.layer_decay": 1.0,
            "optimizer.clip_norm": 1.0,
            "optimizer.b2": 0.98,
            "eval.clips_per_view": 3,
            "checkpoint.every_steps": 100_000,
            "eval.every_steps": 100_000,
            "log.tensorboard": False,
            **trial,
            **job.settings.downstream,
        },
        job.run_folder / folder,
    )
    return record["metrics"][f"{split}/top_1"]


def try_rates(rates: Sequence[float], job: Job) -> dict[str, dict[str, float]]:
    """Top-1 on held-out takes after fine-tuning by Muon at each of the rates, with all labels and with a fifth."""
    pretrain(job)
    columns = [column for column, (optimizer, _) in FINE_TUNINGS.items() if optimizer == "muon"]
    return {column: {f"{rate:g}": finetune(job, column, rate) for rate in rates} for column in columns}


def sizes() -> dict[str, Any]:
    """The clips and the encoder of configs/benchmark.py, as overrides of another config."""
    from configs import benchmark

    config = benchmark.get_config()
    return {f"data.{name}": config.data[name] for name in ("num_frames", "frame_stride", "crop_size")} | {
        f"model.{name}": config.model[name] for name in ("width", "depth", "num_heads")
    }


def measure(job: Job) -> dict[str, Any]:
    """All columns of a row for one seed, and the curve on the way."""
    pretraining = pretrain(job)
    steps = job.settings.marks if pretraining else []
    curve = {step * CLIPS_PER_STEP: frozen(job, step) for step in steps}
    columns = frozen(job)
    columns |= {
        name: probe(job, protocol, (kind,))[f"{kind}/{metric}"]
        for name, protocol, kind, metric in (
            ("pose_unseen", "xsub_xview", "geometry", "actor_r2"),
            ("motion", "xsub", "motion", "r2"),
            ("attentive", "xsub", "attentive", "top_1"),
        )
    }
    if job.row != "pixels" and job.settings.finetune_steps:
        columns |= {
            column: finetune(job, column)
            for column, (optimizer, _) in FINE_TUNINGS.items()
            if optimizer == "muon" or job.seed == job.settings.seeds[0]
        }
    if pretraining:
        curve[job.settings.steps * CLIPS_PER_STEP] = {name: columns[name] for name in ON_THE_WAY}
    return {"columns": columns, "curve": curve, "pretraining": pretraining and pretraining["metrics"]}


def frozen(job: Job, step: int | None = None) -> dict[str, float]:
    """The columns of the curve."""
    found = probe(job, "xsub", ("geometry", "ridge", "retrieval"), step)
    return {
        "pose": found["geometry/r2"],
        "pose_validation": found["geometry/validation_r2"],
        "ridge": found["ridge/top_1"],
        "recall_1": found["retrieval/recall_1"],
        "ranked_before": 1 - (found["retrieval/mean_rank"] - 1) / (found["retrieval/gallery_size"] - 1),
        "pose_error_cm": found["geometry/error_cm"],
    }


def benchmark(
    preset_name: str, rows: list[str], num_seeds: int | None, folder: Path, results: Path, workers: int
) -> None:
    """Does what is missing, and writes one file per row and seed as soon as it is measured: main rows first.

    With `num_seeds`: so many seeds of every row, in place of the preset's.
    """
    from mv2mae_jax.runs import metrics_file

    preset = PRESETS[preset_name]
    if num_seeds:
        preset = dataclasses.replace(preset, seeds=tuple(range(num_seeds)), side_seeds=num_seeds)
    planned = [(row not in MAIN, seed, list(ROWS).index(row), row) for row in rows for seed in preset.seeds_of(row)]
    jobs = [
        Job(row=row, seed=seed, preset=preset_name, folder=folder)
        for _, seed, _, row in sorted(planned)
        if not result_file(results, row, seed).exists()
    ]
    for job, found in experiment.run_jobs(measure, jobs, workers, folder / "programs"):
        record = {
            "row": job.row,
            "seed": job.seed,
            "preset": preset_name,
            **found,
            "hardware": experiment.hardware(),
            "git_revision": metrics_file.git_revision(),
        }
        write_whole(result_file(results, job.row, job.seed), json.dumps(record, indent=2) + "\n")
        print(f"{job.row} seed {job.seed}: {json.dumps(found['columns'])}", flush=True)


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.method", __doc__, exit_codes={ExitCode.FAILED: "a result is missing"})
    names = [name for name in PRESETS if not name.endswith("_quick")]
    parser.add_argument("--preset", choices=names, default="cpu", metavar="NAME", help=f"{', '.join(names)} (cpu)")
    parser.add_argument("--rows", help="comma-separated (default: all of the preset)")
    parser.add_argument("--seeds", type=positive, metavar="K", help="seeds 0 to K - 1 (default: the preset's)")
    parser.add_argument("--folder", type=Path, default=OUTPUT, help="data and runs (%(default)s)")
    parser.add_argument("--output", type=Path, help="where results go (FOLDER/results/method_PRESET)")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes that share the cores (the preset's)")
    parser.add_argument(
        "--rates", type=learning_rates, metavar="R,R", help="fine-tune the first seed by Muon at these rates, and stop"
    )
    parser.add_argument("--data_only", action="store_true", help="generate and prepare the data, and stop")
    parser.add_argument("--check", action="store_true", help="only read the committed results, or those in --output")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, little data: a rehearsal")
    return parser


def learning_rates(text: str) -> tuple[float, ...]:
    """Of an option: comma-separated numbers above 0."""
    try:
        rates = tuple(float(rate) for rate in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} holds something else than numbers above 0")
    return rates


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    name = f"{options.preset}_quick" if options.quick else options.preset
    preset, folder = PRESETS[name], options.folder.absolute()
    rows = experiment.chosen(parser, options.rows, preset.rows) if options.rows else list(preset.rows)
    default = RESULTS / f"method_{name}" if options.check else folder / "results" / f"method_{name}"
    results = options.output or default
    if options.check:
        if options.rows or options.seeds or not results.is_dir():
            parser.error("--check reads all rows and seeds of a folder that exists: --preset, --output.")
        return check(results, preset)
    if options.rates and (options.seeds or options.quick):
        parser.error("--rates tries the first seed of a whole preset: leave --seeds and --quick away.")
    read(results, preset)  # what is there belongs to this preset
    prepared = preset.data.prepare(folder)
    if options.data_only:
        print(prepared)
        return 0
    results.mkdir(parents=True, exist_ok=True)
    if options.rates:
        jobs = [Job(row=row, seed=preset.seeds[0], preset=name, folder=folder) for row in rows if row != "pixels"]
        function, workers = functools.partial(try_rates, options.rates), options.workers or preset.workers
        for job, found in experiment.run_jobs(function, jobs, workers, folder / "programs"):
            add_rates(results, preset, job.row, found)
        write_table(results, preset)
        return 0
    benchmark(name, rows, options.seeds, folder, results, options.workers or preset.workers)
    write_table(results, preset)
    plot(results, preset)
    write_steps(results.parent)
    return check(results, preset)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.method", main))
