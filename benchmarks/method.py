"""Does the method work? Each idea of MV2MAE against the variant without it, on a generated data set.

    python -m benchmarks.method --preset=cpu            # all rows; stopped and started again, it goes on
    python -m benchmarks.method --preset=cpu --rows=random,cross_view --seeds=2
    python -m benchmarks.method --preset=furnished      # the main rows with one thing made harder; others: --help
    python -m benchmarks.method --check                 # what the committed results say; exit 1 if they are incomplete
    python -m benchmarks.method --quick                 # rehearses a preset: one seed, a hundredth of the clips

Rows are variants of one pre-training (configs/benchmark.py) with equal data, equal clips, equal batches and the same
encoder. It sees the training people without labels, from all cameras. Read-outs train on the training people and are
tested on others: `xsub` from all cameras, `unseen_camera` (the protocol xsub_xview) from camera 1 with read-outs that
were trained on cameras 2 and 3. They are 3D pose, joint velocities and classes by ridge regression of frozen tokens,
the attentive probe, retrieval of the same take from another camera, and fine-tuning with all labels and with a fifth.

Some read-outs are repeated after 12,500 clips, 25,000 and so on, for the curve. Read-outs choose their settings on
training people held out; no test score is looked at.

Results: one file per row and seed, a table, a plot and the curve. Those in benchmarks/results/method_PRESET/ are
committed.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import experiment
from benchmarks.experiment import OUTPUT, RESULTS, Generated, compare, interval
from console.command import ExitCode, Parser, execute

COLUMNS = {
    "pose": "3D pose, R²",
    "pose_unseen": "3D pose from an unseen camera, own frame, R²",
    "motion": "velocities, R²",
    "ridge": "classes from all tokens, top-1 (%)",
    "recall_1": "same take from another camera, recall@1 (%)",
    "ranked_before": "same take from another camera, before so many of the other clips (%)",
    "attentive": "attentive probe, top-1 (%)",
    "fine_tuned": "fine-tuned, top-1 (%)",
    "fine_tuned_fifth": "fine-tuned with a fifth of the labels, top-1 (%)",
}
PERCENT = {"ridge", "recall_1", "ranked_before", "attentive", "fine_tuned", "fine_tuned_fifth"}
ON_THE_WAY = ("pose", "ridge", "recall_1", "ranked_before")  # the columns that are measured on the way
DRAWN = ("pose", "ridge")
# What pre-training reached on takes that it did not see, by the run's own evaluation: name, factor, digits.
REACHED = {
    "eval/psnr_self": ("self-view, dB", 1, 1),
    "eval/psnr_cross": ("cross-view, dB", 1, 1),
    "eval/loss_self_moving": ("self-view loss, moving", 1, 4),
    "eval/loss_self_static": ("static", 1, 4),
    "eval/loss_cross_moving": ("cross-view loss, moving", 1, 4),
    "eval/loss_cross_static": ("static", 1, 4),
    "eval/cross_gain": ("cross_gain (%)", 100, 0),
    "eval/cross_gain_pose": ("cross_gain_pose (%)", 100, 0),
}

SINGLE_VIEW = {"model.cross_view": False, "data.num_source_views": 0, "global_batch_size": 128}
SELF = {"model.cross_view": False}
# Overrides of configs/benchmark.py; None: nothing is pre-trained.
ROWS: dict[str, dict[str, Any] | None] = {
    "pixels": None,  # no network: the clip's own pixels as tokens
    "random": None,  # the encoder as initialised; fine-tuning it is training from scratch
    "single_view_75": SINGLE_VIEW | {"masking.target_mask_ratio": 0.75},
    "single_view_90": SINGLE_VIEW | {"masking.target_mask_ratio": 0.9},
    # The batches, masks and encoder of `cross_view`, so that the only difference is the cross-view decoder.
    "two_views": SELF,
    "two_views_motion": SELF | {"loss.ess_fraction": 0.5},
    "cross_view": {},
    "cross_view_t60": {"loss.temperature": 60.0},
    "cross_view_ess30": {"loss.ess_fraction": 0.3},
    "cross_view_ess50": {"loss.ess_fraction": 0.5},
    "cross_view_ess80": {"loss.ess_fraction": 0.8},
    # MuM's kind of decoder: it attends over the tokens of both views, and there is no source and no target.
    "joint": {"model.decoder": "joint", "model.cross_view": False},
}
DESCRIPTIONS = {
    "pixels": "raw pixels",
    "random": "random encoder (fine-tuned: from scratch)",
    "single_view_75": "single-view MAE, mask 0.75",
    "single_view_90": "single-view MAE, mask 0.9",
    "two_views": "self-view decoder on two views",
    "two_views_motion": "self-view decoder, motion weights (ESS 50 %)",
    "cross_view": "+ cross-view decoder",
    "cross_view_t60": "+ cross-view, t = 60 on [0, 255]",
    "cross_view_ess30": "+ cross-view, motion weights (ESS 30 %)",
    "cross_view_ess50": "+ cross-view, motion weights (ESS 50 %)",
    "cross_view_ess80": "+ cross-view, motion weights (ESS 80 %)",
    "joint": "a joint decoder over both views in their place",
}
MAIN = ("random", "two_views", "cross_view", "cross_view_ess50")  # measured first, and drawn in the curve
# What the paper claims, each as (lower, upper).
ORDERINGS = (
    ("pixels", "two_views"),
    ("random", "single_view_75"),
    ("random", "single_view_90"),
    ("random", "two_views"),
    ("two_views", "cross_view"),
    ("two_views", "two_views_motion"),
    ("cross_view", "cross_view_t60"),
    ("cross_view", "cross_view_ess30"),
    ("cross_view", "cross_view_ess50"),
    ("cross_view", "cross_view_ess80"),
    ("joint", "cross_view"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How large the comparison is.

    Attributes:
      data: what is trained and tested on.
      clips: of pre-training, 128 a step.
      curve_from: clips at the first point of the curve; each further one is at twice as many.
      seeds: of initialisation, order, masks, and of the choice of few labels.
      finetune_steps: of 64 clips.
      labels_per_class: takes with labels in the few-label column: a fifth of those of the training people.
      pretraining, downstream: further overrides.
      rows: keys of ROWS.
      workers: processes that share the machine.
    """

    data: Generated
    clips: int
    curve_from: int = 12_500
    seeds: tuple[int, ...]
    finetune_steps: int
    labels_per_class: int
    pretraining: dict[str, Any] = dataclasses.field(default_factory=dict)
    downstream: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[str] = tuple(ROWS)
    workers: int = 1

    def rehearsal(self) -> "Preset":
        """The same with one seed, a hundredth of the clips, and little data."""
        less = {"--takes": "64", "--setups": "1", "--subjects": "4"}
        given = (option.partition("=") for option in self.data.options)
        options = [f"{name}={less.get(name, value)}" for name, _, value in given]
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, name=f"{self.data.name}_quick", options=options),
            clips=self.clips // 100,
            curve_from=self.curve_from // 100,
            seeds=self.seeds[:1],
            finetune_steps=8,
            labels_per_class=1,
        )

    @property
    def steps(self) -> int:
        return self.clips // CLIPS_PER_STEP

    @property
    def marks(self) -> list[int]:
        """The steps of the curve without its end."""
        clips = [self.curve_from * 2**power for power in range(20)]
        return sorted({max(1, mark // CLIPS_PER_STEP) for mark in clips if mark < self.clips})


CLIPS_PER_STEP = 128
# Overrides of configs/probe.py.
PROBING = {
    "probe.pooling": "slices",
    "probe.standardize": True,
    "probe.learning_rates": (0.003, 0.01),
    "probe.weight_decays": (0.1,),
    "probe.epochs": 20,
}


def generated(name: str, resolution: str, short_side: int, rooms: str = "plain") -> Generated:
    """3,840 takes of 120 people in 8 rooms."""
    amounts = ("--takes=3840", "--setups=8", "--subjects=120")
    look = (f"--resolution={resolution}", f"--rooms={rooms}", "--actor_share=0.8", "--fps=10")
    return Generated(name=name, options=(*amounts, *look), short_side=short_side)


CPU = Preset(
    data=generated("plain_32", "40x40", 32),
    clips=200_000,
    seeds=(0, 1, 2, 3),
    finetune_steps=800,
    labels_per_class=24,
    workers=2,
)
CLIPS_OF_48 = {"data.crop_size": (48, 48)}
CLIPS_OF_64 = {
    "data.num_frames": 16,
    "data.frame_stride": 1,
    "data.crop_size": (64, 64),
    "model.width": 192,
    "model.depth": 6,
    "model.num_heads": 3,
}


def harder(**changes: Any) -> Preset:
    """The main rows with one thing changed, two seeds."""
    return dataclasses.replace(CPU, seeds=(0, 1), **{"rows": MAIN} | changes)


PRESETS = {
    "cpu": CPU,
    "long": harder(clips=800_000),
    "furnished": harder(data=generated("furnished_32", "40x40", 32, rooms="furnished")),
    "larger": harder(data=generated("plain_48", "60x60", 48), pretraining=CLIPS_OF_48, downstream=CLIPS_OF_48),
    # These change pre-training alone, so their random encoder is that of `cpu`.
    "all_pairs": harder(pretraining={"data.view_pairs": ()}, rows=MAIN[1:]),
    "masks_70": harder(pretraining={"masking.target_mask_ratio": 0.7, "masking.source_mask_ratio": 0.7}, rows=MAIN[1:]),
    "normalized": harder(pretraining={"loss.target": "normalized_pixels"}, rows=MAIN[1:]),
    # Meant for half an hour of one H200 and 16 cores. Neither it nor its rehearsal was run: no accelerator was at hand.
    "gpu": Preset(
        data=generated("plain_64", "72x72", 64),
        clips=800_000,
        curve_from=50_000,
        seeds=(0, 1),
        finetune_steps=1600,
        labels_per_class=24,
        pretraining=CLIPS_OF_64,
        downstream=CLIPS_OF_64,
        rows=MAIN,
        workers=2,
    ),
}
PRESETS |= {f"{name}_quick": preset.rehearsal() for name, preset in PRESETS.items()}


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
        return self.folder / "runs" / self.preset / f"{self.row}_seed{self.seed}"

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
            "optimizer.base_learning_rate": 0.08 * 64 / samples,
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


def finetune(job: Job, labels_per_class: int | None) -> float:
    """Top-1 on other people after fine-tuning with all labels, or with some takes of each class."""
    record = experiment.run(
        "finetune_demo",
        {
            "data.dir": job.prepared,
            "data.protocol": "xsub",
            "data.labels_per_class": labels_per_class,
            "data.label_seed": job.seed,
            **sizes(),
            "data.crop_scales": (1.0,),
            "model.drop_path": 0.0,
            "augment.randaugment_num_ops": 0,
            "init_from": "" if job.encoder == "random" else job.encoder,
            "seed": job.seed,
            "total_steps": job.settings.finetune_steps,
            "global_batch_size": 64,
            "optimizer.base_learning_rate": 0.012,  # 3e-3 at 64 clips
            "optimizer.layer_decay": 1.0,
            "optimizer.clip_norm": 1.0,
            "optimizer.b2": 0.98,
            "eval.clips_per_view": 3,
            "checkpoint.every_steps": 100_000,
            "eval.every_steps": 100_000,
            "log.tensorboard": False,
            **job.settings.downstream,
        },
        job.run_folder / ("fine_tuned" if labels_per_class is None else f"fine_tuned_{labels_per_class}"),
    )
    return record["metrics"]["test/top_1"]


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
    if job.row != "pixels":
        columns["fine_tuned"] = finetune(job, None)
        columns["fine_tuned_fifth"] = finetune(job, job.settings.labels_per_class)
    if pretraining:
        curve[job.settings.steps * CLIPS_PER_STEP] = {name: columns[name] for name in ON_THE_WAY}
    return {"columns": columns, "curve": curve, "pretraining": pretraining and pretraining["metrics"]}


def frozen(job: Job, step: int | None = None) -> dict[str, float]:
    """The columns of the curve."""
    found = probe(job, "xsub", ("geometry", "ridge", "retrieval"), step)
    return {
        "pose": found["geometry/r2"],
        "ridge": found["ridge/top_1"],
        "recall_1": found["retrieval/recall_1"],
        "ranked_before": 1 - (found["retrieval/mean_rank"] - 1) / (found["retrieval/gallery_size"] - 1),
        "pose_error_cm": found["geometry/error_cm"],
    }


def benchmark(
    preset_name: str, rows: list[str], seeds: Sequence[int], folder: Path, results: Path, workers: int
) -> None:
    """Does what is missing, and writes one file per row and seed as soon as it is measured: main rows first."""
    from mv2mae_jax.runs import metrics_file

    preset = PRESETS[preset_name]
    preset.data.prepare(folder)
    results.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: (row not in MAIN, list(ROWS).index(row)))
    parts = [ordered[: sum(row in MAIN for row in rows)], ordered[sum(row in MAIN for row in rows) :]]
    jobs = [
        Job(row=row, seed=seed, preset=preset_name, folder=folder)
        for part in parts
        for seed in seeds
        for row in part
        if not result_file(results, row, seed).exists() and (row != "pixels" or seed == seeds[0])  # nothing is drawn
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
        result_file(results, job.row, job.seed).write_text(json.dumps(record, indent=2) + "\n")
        print(f"{job.row} seed {job.seed}: {json.dumps(found['columns'])}", flush=True)


def result_file(results: Path, row: str, seed: int) -> Path:
    return results / f"{row}_seed{seed}.json"


def read(results: Path, preset: Preset) -> tuple[dict[str, dict[int, dict[str, Any]]], list[str]]:
    """({row: {seed: record}}, what is missing)."""
    records: dict[str, dict[int, dict[str, Any]]] = {}
    missing = []
    for row in preset.rows:
        for seed in preset.seeds[:1] if row == "pixels" else preset.seeds:
            path = result_file(results, row, seed)
            if path.exists():
                records.setdefault(row, {})[seed] = json.loads(path.read_text())
            else:
                missing.append(f"{row} seed {seed}")
    return records, missing


def values_of(records: dict[int, dict[str, Any]], column: str) -> dict[int, float]:
    """A column of a row: seed -> value."""
    factor = 100 if column in PERCENT else 1
    return {s: factor * record["columns"][column] for s, record in records.items() if column in record["columns"]}


def verdicts(records: dict[str, dict[int, dict[str, Any]]]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """{(lower, upper): {'holds': [columns], 'null': [...], 'reversed': [...]}}, paired by seed."""
    found = {}
    for lower, upper in ORDERINGS:
        by_verdict: dict[str, list[str]] = {"holds": [], "null": [], "reversed": []}
        for column in COLUMNS:
            low, up = (values_of(records.get(row, {}), column) for row in (lower, upper))
            if lower == "pixels" and low:
                low = dict.fromkeys(up, *low.values())
            pairs = [(low[seed], up[seed]) for seed in sorted(low.keys() & up.keys())]
            if len(pairs) > 1:
                by_verdict[compare(*zip(*pairs, strict=True))].append(column)
        found[lower, upper] = by_verdict
    return found


def check(results: Path, preset: Preset) -> int:
    """Prints in one line which orders the results bear out; 1 if a row or a seed is missing."""
    records, missing = read(results, preset)
    parts = []
    for (lower, upper), by_verdict in verdicts(records).items():
        said = ", ".join(f"{name} {len(cells)}" for name, cells in by_verdict.items() if cells)
        parts.append(f"{lower} < {upper}: {said or 'not measured'}")
    print("; ".join(parts) + (f"; MISSING: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


def write_table(results: Path, preset: Preset) -> None:
    """results/README.md: the table with 95 % intervals and what follows from it."""
    records, missing = read(results, preset)
    lines = [
        f"# {results.name}",
        "",
        f"Written by `python -m benchmarks.method`. Generated takes: `{' '.join(preset.data.options)}`. Pre-training: "
        f"{preset.clips:,} clips; fine-tuning: {preset.finetune_steps} steps of 64 clips. Means over the seeds with "
        "the 95 % interval of the mean (Student's t) where there are two or more; the last column tells how many. "
        "Chance is 6.2 % for classes, 0.05 % for recall@1, 50 % for the place of the same take. Files beside this one "
        "hold every seed.",
    ]
    if missing:
        seeds = collections.defaultdict(list)
        for row, _, seed in (part.partition(" seed ") for part in missing):
            seeds[row].append(seed)
        listed = "; ".join(f"{row} (seeds {', '.join(of_row)})" for row, of_row in seeds.items())
        lines += ["", f"Not measured yet: {listed}."]
    lines += ["", "| | " + " | ".join(COLUMNS.values()) + " | seeds |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for row, of_row in records.items():
        cells = [_cell([*values_of(of_row, column).values()], column, len(of_row)) for column in COLUMNS]
        lines.append(f"| {DESCRIPTIONS[row]} | " + " | ".join(cells) + f" | {len(of_row)} |")
    lines += _reached(records)
    lines += ["", "## Orders", "", "By the 95 % interval of the difference, paired by seed.", ""]
    lines += ["| | holds | null | reversed |", "|---|---|---|---|"]
    for (lower, upper), by_verdict in verdicts(records).items():
        if any(by_verdict.values()):
            lines.append(f"| {lower} < {upper} | " + " | ".join(", ".join(by_verdict[v]) for v in by_verdict) + " |")
    (results / "README.md").write_text("\n".join(lines) + "\n")


def _reached(records: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """The lines on pre-training itself: which tokens a row paints better, and how far it needs its source."""
    rows = {
        row: [record["pretraining"] for record in of.values() if record.get("pretraining")]
        for row, of in records.items()
    }
    lines = [
        "",
        "## What pre-training reached",
        "",
        "On takes of the training people that were held out; means over the seeds. Losses are plain, whatever weighted "
        "the tokens in training. A token is moving if its motion is above its clip's mean.",
        "",
        "| | " + " | ".join(title for title, _, _ in REACHED.values()) + " |",
        "|---|" + "---|" * len(REACHED),
    ]
    for row, of_row in rows.items():
        if of_row:
            cells = []
            for key, (_, factor, digits) in REACHED.items():
                values = [factor * metrics[key] for metrics in of_row if key in metrics]
                cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "")
            lines.append(f"| {DESCRIPTIONS[row]} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: list[float], column: str, num_seeds: int) -> str:
    """Mean and interval; older records lack newer columns, so a cell may be of fewer seeds than its row."""
    if not values:
        return ""
    digits = 1 if column in PERCENT else 3
    mean, half = interval(values)
    few = f" ({len(values)} seed{'s' * (len(values) > 1)})" if len(values) < num_seeds else ""
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "") + few


def plot(results: Path, preset: Preset) -> None:
    """results/curve.png: what the read-outs of the main rows tell after so many clips, every seed a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    records, _ = read(results, preset)
    figure, axes = pyplot.subplots(1, len(DRAWN), figsize=(5 * len(DRAWN), 3.4), layout="constrained")
    for axis, column in zip(axes, DRAWN, strict=True):
        factor = 100 if column in PERCENT else 1
        for number, row in enumerate(row for row in MAIN if row in records):
            for index, record in enumerate(records[row].values()):
                if column not in record["columns"]:
                    continue  # an older record lacks newer columns
                label = DESCRIPTIONS[row] if index == 0 else None
                if not record["curve"]:
                    axis.axhline(
                        factor * record["columns"][column], color="grey", linestyle="--", linewidth=1, label=label
                    )
                    continue
                clips = sorted(record["curve"], key=int)
                points = [factor * record["curve"][mark][column] for mark in clips]
                axis.plot([int(mark) for mark in clips], points, "o-", color=f"C{number}", markersize=3, label=label)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(ticker.FixedLocator([12_500 * 2**power for power in range(12)]))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda clips, _: f"{clips:,.0f}"))
        axis.set_xlabel("clips of pre-training")
        axis.set_title(COLUMNS[column], fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(results / "curve.png", dpi=110)


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.method", __doc__, exit_codes={ExitCode.FAILED: "a result is missing"})
    names = [name for name in PRESETS if not name.endswith("_quick")]
    parser.add_argument("--preset", choices=names, default="cpu", help="data, sizes and numbers of steps (cpu)")
    parser.add_argument("--rows", help="comma-separated (default: the preset's)")
    parser.add_argument("--seeds", type=int, metavar="K", help="seeds 0 to K - 1 (default: the preset's)")
    parser.add_argument("--folder", type=Path, default=OUTPUT, help="data and runs (%(default)s)")
    parser.add_argument("--output", type=Path, help="where results go (FOLDER/results/method_PRESET)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the cores (the preset's)")
    parser.add_argument("--data_only", action="store_true", help="generate and prepare the data, and stop")
    parser.add_argument("--check", action="store_true", help="only read the committed results, or those in --output")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, little data: a rehearsal")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    name = f"{options.preset}_quick" if options.quick else options.preset
    preset, folder = PRESETS[name], options.folder.absolute()
    rows = experiment.chosen(parser, options.rows, ROWS) if options.rows else list(preset.rows)
    default = RESULTS / f"method_{name}" if options.check else folder / "results" / f"method_{name}"
    results = options.output or default
    if options.check:
        return check(results, preset)
    if options.data_only:
        print(preset.data.prepare(folder))
        return 0
    seeds = preset.seeds if options.seeds is None else range(options.seeds)
    benchmark(name, rows, seeds, folder, results, options.workers or preset.workers)
    write_table(results, preset)
    plot(results, preset)
    return check(results, preset)


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.method", main))
