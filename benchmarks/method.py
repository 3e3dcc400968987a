"""Does the method work? Each idea of MV2MAE against the variant without it, on the generated data set.

    python -m benchmarks.method --preset=cpu            # all rows; stopped and started again, it goes on
    python -m benchmarks.method --preset=cpu --rows=random,cross_view
    python -m benchmarks.method --check                 # what the committed results say; exit 1 if they are incomplete
    python -m benchmarks.method --quick                 # two rows, one seed, few steps: does the benchmark still run?

Rows are variants of one pre-training (configs/benchmark.py) with equal data, equal steps, equal clips per step and the
same encoder. All see only what both protocols may train on: the training subjects, from cameras 2 and 3. Protocols:
`xview` trains probes and heads on cameras 2 and 3 and tests on camera 1; `xsub` tests on other subjects. Columns: kNN
(k = 20) and linear probe of frozen features pooled by motion, attentive probe of all tokens, fine-tuning with few
labels, and retrieval of the same take from another camera (pooled by motion). Evenly pooled features of so small runs
were at chance in every row.

Every row gets its own learning rate of pre-training, chosen by the attentive probe on validation rows cut off the
training split; probes choose theirs in the same way. No test score is looked at.

Results: one file per row and seed, a table and a plot. Those in benchmarks/results/method_PRESET/ are committed.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import experiment
from benchmarks.experiment import OUTPUT, RESULTS, compare, interval
from console.command import ExitCode, Parser, execute

PROTOCOLS = ("xsub", "xview")
COLUMNS = ("knn", "linear", "attentive", "few_label", "recall_1")
TITLES = {
    "knn": "kNN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "few_label": "few-label fine-tuning",
    "recall_1": "cross-view recall@1",
}

SINGLE_VIEW = {"model.cross_view": False, "data.num_source_views": 0, "global_batch_size": 16}
CROSS_VIEW = {"masking.target_mask_ratio": 0.95, "masking.source_mask_ratio": 0.5}  # as in the demo, for its reason
CLIPS = {"data.frame_stride": 8}  # a clip sees most of a video of about 75 frames, in which some act only once
# Overrides of configs/benchmark.py; None: nothing is pre-trained.
ROWS: dict[str, dict[str, Any] | None] = {
    "motion_map": None,  # no network: the motion energies of the clip's tokens
    "random": None,  # the encoder as initialised; fine-tuning it is training from scratch
    "single_view_90": SINGLE_VIEW | {"masking.target_mask_ratio": 0.9},
    "single_view_70": SINGLE_VIEW | {"masking.target_mask_ratio": 0.7},
    # The batches, the masks and the encoder of the next row, without its decoder: what differs is that decoder alone.
    "two_views": CROSS_VIEW | {"model.cross_view": False},
    "cross_view": CROSS_VIEW,
    "motion_fixed": CROSS_VIEW | {"loss.temperature": 60.0},
    "motion_auto": CROSS_VIEW | {"loss.ess_fraction": 0.6},
}
DESCRIPTIONS = {
    "motion_map": "motion-energy map, no network",
    "random": "random initialisation (fine-tuned: from scratch)",
    "single_view_90": "single-view MAE, mask 0.9",
    "single_view_70": "single-view MAE, mask 0.7",
    "two_views": "self-view decoder on two views, masks 0.95 and 0.5",
    "cross_view": "+ cross-view decoder, masks 0.95 and 0.5",
    "motion_fixed": "+ motion weights, t = 60 on [0, 255]",
    "motion_auto": "+ motion weights, automatic t (ESS 60 %)",
}
# What the paper claims, each as (lower, upper).
ORDERINGS = (
    ("random", "single_view_90"),
    ("random", "single_view_70"),
    ("single_view_90", "cross_view"),
    ("single_view_70", "cross_view"),
    ("two_views", "cross_view"),
    ("cross_view", "motion_fixed"),
    ("cross_view", "motion_auto"),
    ("motion_fixed", "motion_auto"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How large the comparison is.

    Attributes:
      takes, setups: of the generated data set.
      steps: of pre-training, 16 clips each.
      seeds: of initialisation, order, masks, and of the choice of few labels.
      learning_rates: of pre-training that each row chooses from, as `optimizer.base_learning_rate` (for 256 clips).
      finetune_learning_rates: the same of fine-tuning.
      labels_per_class: takes with labels in the few-label column.
      finetune_epochs: passes over these labels.
      pretraining, downstream: further overrides.
      workers: processes that share the machine.
    """

    takes: int
    setups: int
    steps: int
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    finetune_learning_rates: tuple[float, ...] = (0.016,)
    labels_per_class: int = 8
    finetune_epochs: int = 8
    pretraining: dict[str, Any] = dataclasses.field(default_factory=dict)
    downstream: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 1


LARGER = {
    "data.num_frames": 16,
    "data.crop_size": (64, 64),
    "model.width": 192,
    "model.depth": 6,
    "model.scan_layers": True,
}
PRESETS = {
    # A smaller claim: minutes of one core per run, far from convergence.
    "cpu": Preset(takes=1000, setups=1, steps=800, seeds=(0, 1, 2), learning_rates=(0.064, 0.256), workers=2),
    # Not run here yet: no accelerator was at hand.
    "gpu": Preset(
        takes=10000,
        setups=10,
        steps=100_000,
        seeds=(0, 1, 2, 3, 4),
        learning_rates=(0.016, 0.064, 0.256),
        labels_per_class=32,
        pretraining=LARGER | {"global_batch_size": 64, "data.num_workers": 12},
        downstream=LARGER | {"data.num_workers": 12},
    ),
    "quick": Preset(
        takes=160, setups=1, steps=20, seeds=(0,), learning_rates=(0.256,), labels_per_class=2, finetune_epochs=1
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One row with one seed; `learning_rate` None chooses nothing yet: see `pretrain`."""

    row: str
    seed: int
    preset: str
    folder: Path
    learning_rate: float | None = None
    finetune_learning_rate: float | None = None

    @property
    def settings(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def run_folder(self) -> Path:
        rate = "" if self.learning_rate is None else f"_lr{self.learning_rate:g}"
        return self.folder / "runs" / f"{self.row}{rate}_seed{self.seed}"


def pretrain(job: Job) -> dict[str, Any] | None:
    """Pre-trains a row: its record, or None where nothing is pre-trained."""
    overrides = ROWS[job.row]
    if overrides is None:
        return None
    settings = job.settings
    both_pairs = "(('C002','C003'),('C003','C002'))"
    # A single-view sample is one clip, a cross-view sample two: twice the samples, the same clips.
    larger = dict(settings.pretraining)
    if "global_batch_size" in larger and overrides.get("data.num_source_views") == 0:
        larger["global_batch_size"] *= 2
    samples = (overrides | larger).get("global_batch_size", 8)
    return experiment.run(
        "benchmark",
        {
            "data.dir": job.folder / "prepared",
            "data.view_pairs": both_pairs,
            **CLIPS,
            "total_steps": settings.steps,
            "seed": job.seed,
            **overrides,
            **larger,
            # Stated for 16 clips a step, whatever that is in samples.
            "optimizer.base_learning_rate": job.learning_rate * 8 / samples,
        },
        job.run_folder / "pretraining",
    )


def probe(job: Job, protocol: str) -> dict[str, Any]:
    """kNN, linear and attentive probe, and retrieval, of a row's frozen encoder."""
    return experiment.run(
        "probe",
        {
            "data.dir": job.folder / "prepared",
            "data.protocol": protocol,
            "init_from": _encoder(job) or "random",
            "seed": job.seed,
            "probe.pooling": "motion",
            "probe.learning_rates": "(0.003,0.01,0.03)",
            "probe.weight_decays": "(0.1,)",
            "probe.epochs": 30,
            **CLIPS,
            **job.settings.downstream,
        },
        job.run_folder / f"probe_{protocol}",
    )


def finetune(job: Job, protocol: str, learning_rate: float, *, split: str = "test") -> dict[str, Any]:
    """Fine-tuning with few labels; `split='held_out'` measures it on training takes that it does not see."""
    name = f"finetuning_{protocol}" + ("" if split == "test" else f"_{split}_lr{learning_rate:g}")
    return experiment.run(
        "finetune_demo",
        {
            "data.dir": job.folder / "prepared",
            "data.protocol": protocol,
            "data.labels_per_class": job.settings.labels_per_class,
            "data.label_seed": job.seed,
            "data.holdout_fraction": 0.15 if split == "held_out" else 0.0,
            "eval.split": split,
            "eval.clips_per_view": 1,
            "init_from": _encoder(job),
            "seed": job.seed,
            "num_epochs": job.settings.finetune_epochs,
            "optimizer.base_learning_rate": learning_rate,
            "checkpoint.every_steps": 100_000,
            "eval.every_steps": 100_000,
            "log.tensorboard": False,
            **CLIPS,
            **job.settings.downstream,
        },
        job.run_folder / name,
    )


def _encoder(job: Job) -> str:
    return "" if ROWS[job.row] is None else str(job.run_folder / "pretraining")


def validate(job: Job) -> dict[str, Any]:
    """How good learning rates are, on training rows alone: of pre-training, and of fine-tuning where it has several."""
    pretrain(job)
    probed = probe(job, "xsub")["attentive"]["validation_accuracy"]
    rates = job.settings.finetune_learning_rates
    tuned: dict[str, float | None] = {f"{rate:g}": None for rate in rates}  # one rate alone is not measured
    if len(rates) > 1:
        for rate in rates:
            record = finetune(job, "xsub", rate, split="held_out")
            tuned[f"{rate:g}"] = record["metrics"]["held_out/top_1"]
    return {"attentive": max(max(row) for row in probed), "finetuning": tuned}


def measure(job: Job) -> dict[str, Any]:
    """All columns of a row under both protocols, for one seed."""
    if job.row == "motion_map":
        return {"protocols": {protocol: probe_motion(job, protocol) for protocol in PROTOCOLS}}
    records, protocols = {"pretraining": pretrain(job)}, {}
    for protocol in PROTOCOLS:
        probed = records[f"probe_{protocol}"] = probe(job, protocol)
        tuned = records[f"finetuning_{protocol}"] = finetune(job, protocol, job.finetune_learning_rate)
        metrics = probed["metrics"]
        protocols[protocol] = {name: metrics[f"{name}/top_1"] for name in ("knn", "linear", "attentive")} | {
            "few_label": tuned["metrics"]["test/top_1"],
            "recall_1": metrics["retrieval/recall_1"],
            "class_recall_1": metrics.get("retrieval/class_recall_1"),
        }
    pretraining = records["pretraining"]
    return {
        "protocols": protocols,
        "pretraining": pretraining and pretraining["metrics"],
        "learning_rate": job.learning_rate,
        "finetune_learning_rate": job.finetune_learning_rate,
        "seconds": {name: record["seconds"] for name, record in records.items() if record},
        "hardware": records["probe_xsub"]["hardware"],
        "git_revision": records["probe_xsub"]["git_revision"],
    }


def probe_motion(job: Job, protocol: str) -> dict[str, float]:
    """kNN and linear probe of the clips' motion energies, one per token: what is known without any network."""
    import numpy as np

    from data import pipeline
    from data.labelled import LabelledDataset
    from data.motion import motion_energy
    from mv2mae_jax import accuracy, probes
    from mv2mae_jax import config as configs
    from mv2mae_jax.tasks.probe import validation_groups

    overrides = {"data.dir": job.folder / "prepared", "data.protocol": protocol} | CLIPS | job.settings.downstream
    config = configs.load(str(experiment.CONFIGS / "probe.py"), [f"{k}={v}" for k, v in overrides.items()])
    dataset = LabelledDataset.from_config(config)

    def energies(rows: np.ndarray) -> np.ndarray:
        batches = pipeline.clip_batches(dataset.prepared, dataset.spec, rows, global_batch_size=64)
        clips = [clip for batch in batches for clip in batch["video"][batch["valid"]]]
        return np.log1p(np.stack([motion_energy(clip, dataset.spec.tubelet_size) for clip in clips]))  # (M, N)

    label = dataset.prepared.views["label"]
    train_x, test_x = energies(dataset.train), energies(dataset.test)
    arguments = (train_x, label[dataset.train], test_x, dataset.num_classes)
    linear = probes.linear_probe(
        *arguments,
        group=validation_groups(dataset),
        learning_rates=(0.0003, 0.001, 0.003, 0.01),
        weight_decays=(0.01, 0.1),
        epochs=50,
        seed=job.seed,
    )
    scores = {"knn": probes.knn_scores(*arguments), "linear": linear.scores}
    return {name: accuracy.summarize(s, label[dataset.test])["top_1"] for name, s in scores.items()}


def benchmark(preset_name: str, rows: list[str], folder: Path, results: Path) -> None:
    """Does what is missing, and writes one file per row and seed as soon as it is measured."""
    preset = PRESETS[preset_name]
    experiment.prepare_data(folder, preset.takes, preset.setups)
    results.mkdir(parents=True, exist_ok=True)

    def job(row: str, seed: int, **rates: Any) -> Job:
        return Job(row=row, seed=seed, preset=preset_name, folder=folder, **rates)

    missing = [(row, seed) for row in rows for seed in preset.seeds if not result_file(results, row, seed).exists()]
    candidates = [
        job(row, preset.seeds[0], learning_rate=rate)
        for row in dict.fromkeys(row for row, _ in missing)
        if row != "motion_map"
        for rate in (preset.learning_rates if ROWS[row] else (None,))
    ]
    validated: dict[str, dict[float | None, Any]] = {}
    for candidate, found in experiment.run_jobs(validate, candidates, preset.workers, folder / "programs"):
        validated.setdefault(candidate.row, {})[candidate.learning_rate] = found
        print(f"{candidate.run_folder.name}: validation {found}", flush=True)

    def chosen(row: str) -> dict[str, float | None]:
        found = validated[row]
        rate = max(found, key=lambda rate: found[rate]["attentive"])
        tuned = found[rate]["finetuning"]
        return {"learning_rate": rate, "finetune_learning_rate": float(max(tuned, key=tuned.get))}

    jobs = [job(row, seed, **({} if row == "motion_map" else chosen(row))) for row, seed in missing]
    for done, found in experiment.run_jobs(measure, jobs, preset.workers, folder / "programs"):
        record = {"row": done.row, "seed": done.seed, "preset": preset_name, **found}
        record["validation"] = {f"{rate}": values for rate, values in validated.get(done.row, {}).items()}
        result_file(results, done.row, done.seed).write_text(json.dumps(record, indent=2) + "\n")
        print(f"{done.row} seed {done.seed}: {json.dumps(found['protocols'])}", flush=True)


def result_file(results: Path, row: str, seed: int) -> Path:
    return results / f"{row}_seed{seed}.json"


def read(results: Path, preset: Preset) -> tuple[dict[tuple[str, str, str], list[float]], list[str]]:
    """({(row, protocol, column): values by seed}, what is missing)."""
    values: dict[tuple[str, str, str], list[float]] = {}
    missing = []
    for row in ROWS:
        for seed in preset.seeds:
            path = result_file(results, row, seed)
            if not path.exists():
                missing.append(f"{row} seed {seed}")
                continue
            for protocol, columns in json.loads(path.read_text())["protocols"].items():
                for column, value in columns.items():
                    values.setdefault((row, protocol, column), []).append(value)
    if len(preset.seeds) < 3:
        missing.append("intervals: fewer than three seeds")
    return values, missing


def verdicts(values: dict[tuple[str, str, str], list[float]]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """{(lower, upper): {'holds': ['xsub kNN', ...], 'null': [...], 'reversed': [...]}}."""
    found = {}
    for lower, upper in ORDERINGS:
        by_verdict: dict[str, list[str]] = {"holds": [], "null": [], "reversed": []}
        for protocol in PROTOCOLS:
            for column in COLUMNS:
                low, up = values.get((lower, protocol, column)), values.get((upper, protocol, column))
                if low and up:
                    by_verdict[compare(low, up)].append(f"{protocol} {TITLES[column]}")
        found[lower, upper] = by_verdict
    return found


def check(results: Path, preset: Preset) -> int:
    """Prints in one line which orderings the results bear out; 1 if a row, a seed or an interval is missing."""
    values, missing = read(results, preset)
    parts = []
    for (lower, upper), by_verdict in verdicts(values).items():
        counts = ", ".join(f"{name} {len(cells)}" for name, cells in by_verdict.items() if cells)
        parts.append(f"{lower} < {upper}: {counts or 'not measured'}")
    print("; ".join(parts) + (f"; MISSING: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


def write_table(results: Path, preset: Preset) -> None:
    """results/README.md: the table with 95 % intervals and what follows from it."""
    values, missing = read(results, preset)
    lines = [
        f"# {results.name}",
        "",
        f"Written by `python -m benchmarks.method`. {preset.takes} generated takes in {preset.setups} room(s), "
        f"{preset.steps} steps of 16 clips, "
        f"{len(preset.seeds)} seeds, {preset.labels_per_class} labelled takes per class for fine-tuning. Accuracies in "
        "%, mean over the seeds with the 95 % interval of the mean (Student's t); chance is 6.2 %. Files beside this "
        "one hold every seed, the learning rates chosen, wall time and hardware.",
    ]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    for protocol in PROTOCOLS:
        lines += ["", f"## {protocol}", "", "| | " + " | ".join(TITLES[c] for c in COLUMNS) + " |"]
        lines += ["|---|" + "---|" * len(COLUMNS)]
        for row in ROWS:
            cells = []
            for column in COLUMNS:
                found = values.get((row, protocol, column))
                mean, half = interval(found) if found else (0, 0)
                cells.append(f"{100 * mean:.1f} ± {100 * half:.1f}" if found else "")
            lines.append(f"| {DESCRIPTIONS[row]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Orderings",
        "",
        "By separated intervals.",
        "",
        "| | holds | null | reversed |",
        "|---|---|---|---|",
    ]
    for (lower, upper), by_verdict in verdicts(values).items():
        lines.append(f"| {lower} < {upper} | " + " | ".join(", ".join(by_verdict[v]) for v in by_verdict) + " |")
    (results / "README.md").write_text("\n".join(lines) + "\n")


def plot(results: Path, preset: Preset) -> None:
    """results/plot.png: every cell of the table with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values, _ = read(results, preset)
    figure, axes = pyplot.subplots(len(PROTOCOLS), len(COLUMNS), figsize=(16, 6), sharey=True, layout="constrained")
    for i, protocol in enumerate(PROTOCOLS):
        for j, column in enumerate(COLUMNS):
            for y, row in enumerate(reversed(ROWS)):
                if found := values.get((row, protocol, column)):
                    mean, half = interval(found)
                    axes[i, j].errorbar(100 * mean, y, xerr=100 * half, fmt="o", color=f"C{y}", capsize=3)
                    axes[i, j].plot([100 * v for v in found], [y] * len(found), "k.", markersize=2)
            axes[i, j].set_title(f"{protocol}: {TITLES[column]}", fontsize=9)
            axes[i, j].set_yticks(range(len(ROWS)), [DESCRIPTIONS[row] for row in reversed(ROWS)], fontsize=8)
            axes[i, j].grid(axis="x", alpha=0.3)
    figure.savefig(results / "plot.png", dpi=110)


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.method", __doc__, exit_codes={ExitCode.FAILED: "a result is missing"})
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu", help="sizes and numbers of steps (cpu)")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated (default: all)")
    parser.add_argument("--folder", type=Path, default=OUTPUT, help="data and runs (%(default)s)")
    parser.add_argument("--output", type=Path, help="where results go (FOLDER/results/method_PRESET)")
    parser.add_argument("--check", action="store_true", help="only read the committed results, or those in --output")
    parser.add_argument("--quick", action="store_true", help="two rows, one seed, few steps; results are not kept")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    rows = experiment.chosen(parser, options.rows, ROWS)
    name, preset = f"method_{options.preset}", PRESETS[options.preset]
    results = options.output or (RESULTS / name if options.check else options.folder / "results" / name)
    if options.check:
        return check(results, preset)
    if options.quick:
        folder = options.folder / "quick"
        benchmark("quick", ["random", "cross_view"], folder.absolute(), folder / "results")
        return 0
    benchmark(options.preset, rows, options.folder.absolute(), results)
    write_table(results, preset)
    plot(results, preset)
    return check(results, preset)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.method", main))
