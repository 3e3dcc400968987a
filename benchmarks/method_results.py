"""What benchmarks/method.py has measured: its files, the table with intervals, which orders hold, and the curve."""

import json
from pathlib import Path
from typing import Any

from benchmarks import experiment
from benchmarks.experiment import compare, interval
from benchmarks.method_rows import FINE_TUNINGS, MAIN, PRESETS, Preset
from console.errors import UserError
from data.store.whole_files import write_whole

COLUMNS = {
    "pose": "3D pose, R²",
    "pose_unseen": "3D pose from an unseen camera, own frame, R²",
    "motion": "velocities, R²",
    "ridge": "classes from all tokens, top-1 (%)",
    "recall_1": "same take from another camera, recall@1 (%)",
    "ranked_before": "same take from another camera, before so many of the other clips (%)",
    "attentive": "attentive probe, top-1 (%)",
    "fine_tuned": "fine-tuned by AdamW, top-1 (%)",
    "fine_tuned_fifth": "by AdamW with a fifth of the labels, top-1 (%)",
    "fine_tuned_muon": "fine-tuned by Muon, top-1 (%)",
    "fine_tuned_muon_fifth": "by Muon with a fifth of the labels, top-1 (%)",
}
PERCENT = {"ridge", "recall_1", "ranked_before", "attentive", *FINE_TUNINGS}
DRAWN = ("pose", "ridge")
# What the whole method is asked in every setting: all but `pose_unseen`, which no row learns, and fewer labels.
OF_THE_WHOLE = ("pose", "motion", "ridge", "recall_1", "attentive", "fine_tuned", "fine_tuned_muon")
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
# What the paper claims, each as (lower, upper).
ORDERINGS = (
    ("pixels", "two_views"),
    ("random", "single_view_75"),
    ("random", "single_view_90"),
    ("random", "two_views"),
    ("two_views", "cross_view"),
    ("two_views", "cross_view_ess50"),  # the whole method
    ("two_views", "two_views_motion"),
    ("cross_view", "cross_view_t60"),
    ("cross_view", "cross_view_ess30"),
    ("cross_view", "cross_view_ess50"),
    ("cross_view", "cross_view_ess80"),
    ("joint", "cross_view"),
)


def result_file(results: Path, row: str, seed: int) -> Path:
    return results / f"{row}_seed{seed}.json"


def rates_file(results: Path, row: str) -> Path:
    return results / f"{row}_rates.json"


def _own(path: Path, preset: Preset, row: str, content: str) -> dict[str, Any]:
    """The record in a file with this content, `columns` or `top_1`. Raises ValueError if it is damaged or another's."""
    record = experiment.read_record(path)
    seed, told = record.get("seed"), (record.get("preset"), record.get("row"))
    named = rates_file(path.parent, row) if content == "top_1" else result_file(path.parent, row, seed)
    if told != (preset.name, row) or path != named or content not in record:
        raise UserError(
            f"{path} is no result of the row {row} of the preset {preset.name}: it says preset={told[0]}, "
            f"row={told[1]}, seed={seed}. Give another --output, or remove the file."
        )
    return record


def read_rates(results: Path, preset: Preset, row: str) -> dict[str, dict[str, float]]:
    """{column: {learning rate: top-1 on held-out takes}}: what a row was tried with. Raises ValueError as `read`."""
    path = rates_file(results, row)
    return _own(path, preset, row, "top_1")["top_1"] if path.exists() else {}


def add_rates(results: Path, preset: Preset, row: str, found: dict[str, dict[str, float]]) -> None:
    """Writes what a row was tried with now beside what it was tried with before."""
    before = read_rates(results, preset, row)
    merged = {column: before.get(column, {}) | of for column, of in found.items()}
    ordered = {column: dict(sorted(of.items(), key=lambda tried: float(tried[0]))) for column, of in merged.items()}
    record = {"preset": preset.name, "row": row, "top_1": before | ordered}
    write_whole(rates_file(results, row), json.dumps(record, indent=2) + "\n")


def read_one(results: Path, preset: Preset, row: str, seed: int) -> dict[str, Any] | None:
    """The record of a row and seed, None if it is not there. Raises ValueError as `read`."""
    path = result_file(results, row, seed)
    return _own(path, preset, row, "columns") if path.exists() else None


def read(results: Path, preset: Preset) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str, list[int]]]:
    """({row: {seed: record}} with every seed that is there, {row: seeds} of the preset that are missing).

    Raises:
      ValueError: a file is damaged, or is another's result.
    """
    records, missing = {}, {}
    for row in preset.rows:
        of_row = [_own(path, preset, row, "columns") for path in results.glob(f"{row}_seed*.json")]
        found = {record["seed"]: record for record in sorted(of_row, key=lambda record: record["seed"])}
        records |= {row: found} if found else {}
        lacking = [seed for seed in preset.seeds_of(row) if seed not in found]
        missing |= {row: lacking} if lacking else {}
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
            if len(pairs := paired(low, up)) > 1:
                by_verdict[compare(*zip(*pairs, strict=True))].append(column)
        found[lower, upper] = by_verdict
    return found


def check(results: Path, preset: Preset) -> int:
    """Prints in one line which orders the results bear out; 1 if a row or a seed is missing."""
    records, missing = read(results, preset)
    parts = []
    for (lower, upper), by_verdict in verdicts(records).items():
        if lower not in preset.rows or upper not in preset.rows:
            continue
        said = [f"{verdict} in {', '.join(columns)}" for verdict, columns in by_verdict.items() if columns]
        parts.append(f"{lower} < {upper} {'; '.join(said) or 'not measured'}")
    listed = ", ".join(f"{row} seed {seed}" for row, seeds in missing.items() for seed in seeds)
    print(" | ".join(parts) + (f" | MISSING: {listed}" if missing else ""))
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
        f"Chance is 6.2 % for classes, {200 / preset.data.num_takes:.2g} % for recall@1, 50 % for the place of the "
        "same take. Files beside this one hold every seed.",
    ]
    if missing:
        listed = "; ".join(f"{row} (seeds {', '.join(map(str, seeds))})" for row, seeds in missing.items())
        lines += ["", f"Not measured yet: {listed}."]
    lines += ["", "| | " + " | ".join(COLUMNS.values()) + " | seeds |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for row, of_row in records.items():
        cells = [cell(of_row, column) for column in COLUMNS]
        lines.append(f"| {DESCRIPTIONS[row]} | " + " | ".join(cells) + f" | {len(of_row)} |")
    lines += _reached(records)
    lines += ["", "## Orders", "", "By the 95 % interval of the difference, paired by seed.", ""]
    lines += ["| | holds | null | reversed |", "|---|---|---|---|"]
    for (lower, upper), by_verdict in verdicts(records).items():
        if any(by_verdict.values()):
            lines.append(f"| {lower} < {upper} | " + " | ".join(", ".join(by_verdict[v]) for v in by_verdict) + " |")
    lines += _rates(results, preset)
    (results / "README.md").write_text("\n".join(lines) + "\n")


def _rates(results: Path, preset: Preset) -> list[str]:
    """The lines on the learning rates that fine-tuning was tried with."""
    found = {row: tried for row in preset.rows if (tried := read_rates(results, preset, row))}
    if not found:
        return []
    rates = sorted({float(rate) for tried in found.values() for of in tried.values() for rate in of})
    lines = [
        "",
        "## Learning rates of Muon",
        "",
        "Those of the columns above are chosen by it: top-1 (%) on held-out takes of the training people, one seed, by "
        "base learning rate (that of 256 clips).",
        "",
        "| | | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|---|" + "---|" * len(rates),
    ]
    for row, tried in found.items():
        for column, of in tried.items():
            by_rate = {float(rate): 100 * top_1 for rate, top_1 in of.items()}
            cells = [f"{by_rate[rate]:.1f}" if rate in by_rate else "" for rate in rates]
            lines.append(f"| {DESCRIPTIONS[row]} | {COLUMNS[column]} | " + " | ".join(cells) + " |")
    return lines


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


def write_steps(folder: Path) -> None:
    """folder/method_steps.md: what survives as the setting changes; a line for each folder/method_PRESET."""
    ideas = {"self-view": MAIN[:2], "+ cross-view": MAIN[1:3], "+ motion weights": MAIN[2:]}
    columns = {
        "pose": "3D pose, R²",
        "ridge": "classes, %",
        "fine_tuned": "fine-tuned by AdamW, %",
        "fine_tuned_muon": "by Muon, %",
    }
    lines = [
        "# What survives",
        "",
        "Written by `python -m benchmarks.method`. What each idea adds, seed by seed: the self-view decoder to a "
        "random encoder, the cross-view decoder to that, motion weights to both. Percentages differ by points.",
        "",
        "| | " + " | ".join(f"{title}: {idea}" for title in columns.values() for idea in ideas) + " |",
        "|---|" + "---|" * len(columns) * len(ideas),
    ]
    whole, validation = [], []
    for preset in PRESETS.values():
        records, _ = read(folder / f"method_{preset.name}", preset)
        cells = []
        for column in columns:
            for rows in ideas.values():
                cells.append(differences(*(records.get(row, {}) for row in rows), column))
        if any(cells):
            lines.append(f"| {preset.name}: {preset.what} | " + " | ".join(cells) + " |")
        cells = [gain(records.get("two_views", {}), records.get("cross_view_ess50", {}), c) for c in OF_THE_WHOLE]
        if any(cells):
            whole.append(f"| {preset.name}: {preset.what} | " + " | ".join(cells) + " |")
        chosen = [values_of(records.get(row, {}), "pose_validation").get(0) for row in MAIN[1:]]
        if any(chosen):
            cells = ["" if value is None else f"{value:.3f}" for value in chosen]
            validation.append(f"| {preset.name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The whole method",
        "",
        "What the cross-view decoder and motion weights (ESS 50 %) together add to the self-view decoder: the mean "
        "over the seeds with the 95 % interval of the difference, paired by seed, and the number of seeds.",
        "",
        "| | " + " | ".join(COLUMNS[column] for column in OF_THE_WHOLE) + " |",
        "|---|" + "---|" * len(OF_THE_WHOLE),
        *whole,
        "",
        "## On validation",
        "",
        "3D pose of training people held out, R², seed 0. Learning rates are chosen by it, and no other number is.",
        "",
        "| | " + " | ".join(DESCRIPTIONS[row] for row in MAIN[1:]) + " |",
        "|---|" + "---|" * len(MAIN[1:]),
        *validation,
    ]
    (folder / "method_steps.md").write_text("\n".join(lines) + "\n")


def paired(low: dict[int, float], up: dict[int, float]) -> list[tuple[float, float]]:
    """The two values of every seed that both have."""
    return [(low[seed], up[seed]) for seed in sorted(low.keys() & up.keys())]


def gains(low: dict[int, dict[str, Any]], up: dict[int, dict[str, Any]], column: str) -> list[float]:
    """What `up` has more than `low` in a column, for every seed that both have."""
    return [above - below for below, above in paired(values_of(low, column), values_of(up, column))]


def differences(low: dict[int, dict[str, Any]], up: dict[int, dict[str, Any]], column: str) -> str:
    """`gains`, seed by seed."""
    return ", ".join(f"{value:+.{_digits(column)}f}" for value in gains(low, up, column))


def gain(low: dict[int, dict[str, Any]], up: dict[int, dict[str, Any]], column: str) -> str:
    """The mean of `gains`, its 95 % interval where there are two seeds or more, and their number."""
    values = gains(low, up, column)
    return f"{_mean(values, column, '+')} ({len(values)})" if values else ""


def _mean(values: list[float], column: str, sign: str = "") -> str:
    mean, half = interval(values)
    digits = _digits(column)
    return f"{mean:{sign}.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def _digits(column: str) -> int:
    return 1 if column in PERCENT else 3


def cell(records: dict[int, dict[str, Any]], column: str) -> str:
    """Mean and interval; older records lack newer columns, so a cell may be of fewer seeds than its row."""
    values = [*values_of(records, column).values()]
    if not values:
        return ""
    few = f" ({len(values)} seed{'s' * (len(values) > 1)})" if len(values) < len(records) else ""
    return _mean(values, column) + few


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
            # An older record lacks newer columns.
            measured = [record for record in records[row].values() if column in record["columns"]]
            for index, record in enumerate(measured):
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
