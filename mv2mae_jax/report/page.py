"""Everything that was collected and drawn -> one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from mv2mae_jax.monitoring.metrics import LOSSES
from mv2mae_jax.report import charts, curves, tables
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.report.examine import Examined

FOLDER = Path(__file__).parent


def render(runs: Sequence[ReportedRun], seen: Sequence[Examined], command: str) -> str:
    """The page.

    Args:
      runs: one, or several to compare.
      seen: what their checkpoints make of the data, one for each run.
      command: the command that makes the page.
    """
    several = len(runs) > 1
    context = [_of_run(run, seen[index], index if several else None) for index, run in enumerate(runs)]
    alone = runs[0].workdir if Path(runs[0].workdir).name else runs[0].name  # --workdir=. tells nothing
    values = {
        "title": "Comparison of " + ", ".join(run.name for run in runs) if several else alone,
        "lead": _lead(runs),
        "several": several,
        "runs": context,
        "results": tables.results(runs),
        "differences": tables.config_differences(runs) if several else [],
        "curves": curves.draw(runs),
        "command": command,
        "style": (FOLDER / "style.css").read_text(),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["ticked"] = _ticked
    return environment.get_template("template.html").render(values, anchors=_anchors(values))


def _of_run(run: ReportedRun, seen: Examined, index: int | None) -> dict[str, Any]:
    """The template's values for a run, with the fields of `run` and `seen`. `index` makes anchors of runs differ."""
    suffix = "" if index is None else f"-{index}"
    return {
        **vars(run),
        **vars(seen),
        "suffix": suffix,
        "colour": None if index is None else f"--series-{index}",
        "tiles": tiles(run),
        "attention": any(sample.looks for sample in seen.samples),
        "queries": seen.neighbours.queries if seen.neighbours else [],
        "maps": seen.neighbours.maps if seen.neighbours else [],
        "accuracies": tables.accuracies(run),
        "confusions": tables.confusions(run, f"confusion{suffix}"),
        "num_classes": len(run.class_names),
        "settings": tables.settings(run),
    }


def tiles(run: ReportedRun) -> list[tuple[str, str, str]]:
    """The numbers that a reader looks for first: (name, value, note)."""
    metrics = run.metrics
    area = "eval" if "eval/loss_mean_prediction" in metrics else "eval_on_training_takes"
    of = "held-out takes" if area == "eval" else "training takes: none is held out"
    found = []
    baseline = metrics.get(f"{area}/loss_mean_prediction")
    for name, label in LOSSES.items():
        if baseline and f"{area}/{name}" in metrics:
            value = metrics[f"{area}/{name}"]
            change = 100 * (value / baseline - 1)
            note = f"{change:+.0f} % against the mean colour's {charts.number(baseline)}; {of}"
            found.append((f"{label.capitalize()} loss", charts.number(value), note))
    for name, title, note in (
        ("cross_gain", "Gain from the other camera", "cross-view loss with another person's take as the source"),
        ("cross_gain_pose", "Gain, same person", "with another pose of the same person as the source"),
    ):
        if f"{area}/{name}" in metrics:
            error = metrics[f"{area}/{name}_standard_error"]
            value = f"{100 * metrics[f'{area}/{name}']:+.1f} ± {100 * error:.1f} %"
            found.append((title, value, note))
    chance = f"chance is {100 / len(run.class_names):.1f} %" if run.class_names else ""
    for name, title, note in (
        (f"{area}/knn_top_1", "kNN accuracy", of),
        ("test/top_1", "Test accuracy", chance),
        ("held_out/top_1", "Held-out accuracy", chance),
        ("knn/top_1", "kNN accuracy", chance),
        ("linear/top_1", "Linear probe", chance),
        ("attentive/top_1", "Attentive probe", chance),
        ("retrieval/recall_1", "Retrieval, recall at 1", "the same take from another camera"),
    ):
        if name in metrics:
            found.append((title, f"{100 * metrics[name]:.1f} %", note))
    speed = run.series("perf/clips_per_second")[1]
    if len(speed):
        found.append(("Median throughput", f"{charts.number(float(np.median(speed)))} clips/s", ""))
    return found


def _ticked(text: str) -> markupsafe.Markup:
    """`...` in a comment -> <code>."""
    parts = text.split("`")
    return markupsafe.Markup("").join(
        markupsafe.Markup("<code>{}</code>").format(part) if index % 2 and index < len(parts) - 1 else part
        for index, part in enumerate(parts)
    )


def _lead(runs: Sequence[ReportedRun]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs; colours are the same in all curves."
    run = runs[0]
    kind = {"pretrain": "Pre-training", "finetune": "Fine-tuning", "probe": "Probe"}[run.config.task]
    where = f" on {run.config.data.dir}" if run.config.data.dir else ""
    length = f", {run.step:,} steps" if run.step and run.config.task != "probe" else ""
    ended = "" if run.results is not None else " so far (the run has not ended)"
    return f"{kind}{where}{length}{ended}."


def _anchors(values: dict[str, Any]) -> list[tuple[str, str]]:
    first = values["runs"][0]["suffix"]
    sections = [("summary", "Results", True), ("differences", "What differs", values["several"])]
    sections += [("curves", "Curves", bool(values["curves"]))]
    for name, title, key in (
        ("reconstructions", "Reconstructions", "samples"),
        ("motion-weights", "Motion weights", "samples"),
        ("attention", "Attention", "attention"),
        ("poses", "3D pose", "poses"),
        ("neighbours", "Neighbours", "queries"),
        ("embedding", "Features", "maps"),
        ("accuracy", "Accuracy", "accuracies"),
        ("confusion", "Confusion", "confusions"),
    ):
        with_it = [run["suffix"] for run in values["runs"] if run[key]]
        sections.append((name + (with_it[0] if with_it else ""), title, bool(with_it)))
    sections += [(f"config{first}", "Configuration", True), (f"origin{first}", "Hardware and versions", True)]
    return [(anchor, title) for anchor, title, there in sections if there]
