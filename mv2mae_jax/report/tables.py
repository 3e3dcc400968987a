"""Configurations, results and confusion matrices as rows for the page's tables."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mv2mae_jax import config as configs
from mv2mae_jax.report import charts
from mv2mae_jax.report.charts import Chart
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.runs.resume import MAY_CHANGE, plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of a config, and where its value comes from.

    Attributes:
      origin: 'this run' where it differs from the base; else 'paper' or 'ours', as the base says.
      base: the base's value, '' where it is the same.
      reason: the base's words on the key.
    """

    key: str
    value: str
    base: str
    origin: str
    reason: str


def settings(run: ReportedRun) -> list[Setting]:
    """Every key of the run's config, those that differ from the base first."""
    base, reasons = dict(configs.flatten(configs.base_of(run.config))), configs.reasons_of(run.config)
    rows = []
    for key, value in configs.flatten(run.config):
        tag, reason = reasons.get(key, ("ours", "not in the base config of this revision"))
        there = base.get(key)
        origin, there = (tag, "") if plain(value) == plain(there) else ("this run", show(there))
        rows.append(Setting(key=key, value=show(value), base=there, origin=origin, reason=reason))
    return sorted(rows, key=lambda row: row.origin != "this run")


def config_differences(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """(key, value in each run) of the keys in which the runs differ; '–' where a run's task lacks the key.

    Those that change no experiment come last.
    """
    values = [dict(configs.flatten(run.config)) for run in runs]
    keys = sorted(dict.fromkeys(key for config in values for key in config), key=lambda key: key in MAY_CHANGE)
    return [
        (key, [show(config[key]) if key in config else "–" for config in values])
        for key in keys
        if len({json.dumps(config.get(key)) if key in config else "" for config in values}) > 1
    ]


def results(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """(metric, value of each run), with a standard error beside the value where there is one."""
    names = dict.fromkeys(name for run in runs for name in run.metrics if not name.endswith("_standard_error"))
    return [(name, [_with_error(run.metrics, name) for run in runs]) for name in names]


def _with_error(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    error = metrics.get(f"{name}_standard_error")
    text = charts.number(metrics[name])
    return text if error is None else f"{text} ± {charts.number(error)}"


def accuracies(run: ReportedRun) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Top-1, top-5, mean class accuracy and each camera's, of a probe or a fine-tuned run; None without any.

    Returns:
      (titles of the columns, a row for each way of classifying: its name and its cells).
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in run.metrics.items():
        kind, _, metric = name.partition("/")
        if metric in ("top_1", "top_5", "mean_class") or metric.startswith("top_1/"):
            found.setdefault(kind, {})[metric] = value
    if not found:
        return None
    metrics = list(dict.fromkeys(metric for values in found.values() for metric in values))
    titles = {"top_1": "top-1", "top_5": "top-5", "mean_class": "mean class"}
    return [titles.get(metric, metric.replace("top_1/", "top-1, ")) for metric in metrics], [
        (kind, [f"{100 * values[metric]:.1f} %" if metric in values else "–" for metric in metrics])
        for kind, values in found.items()
    ]


def confusions(run: ReportedRun, key: str) -> list[tuple[Chart, list[tuple[str, str, int, int]]]]:
    """The confusion matrices in metrics.json: one of a fine-tuned run, one for each trained probe.

    Returns:
      For each its chart, and its most frequent mistakes: (class, taken for, count, of so many).
    """
    results = run.results or {}
    found = {"test": results} | {kind: table for kind, table in results.items() if isinstance(table, dict)}
    return [
        _confusion(kind, np.array(table["confusion_matrix"]), run.class_names, f"{key}-{kind}")
        for kind, table in found.items()
        if "confusion_matrix" in table
    ]


def _confusion(kind: str, counts: np.ndarray, names: Sequence[str], key: str) -> tuple[Chart, list]:
    seen = counts.sum(axis=1)
    shares = counts / np.maximum(seen[:, None], 1)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [
        (names[i], names[j], int(wrong[i, j]), int(seen[i]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]

    def draw(axes) -> None:
        charts.heat_map(axes, shares / max(shares.max(), 1e-9))
        last = len(counts) - 0.5
        axes.plot([-0.5, last], [-0.5, last], color=charts.MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if len(names) <= 24:
            ticks = range(len(names))
            axes.set_xticks(ticks, [shortened(name, 22) for name in names], rotation=90, fontsize=7.5)
            axes.set_yticks(ticks, [shortened(name, 22) for name in names], fontsize=7.5)
        axes.spines[:].set_visible(True)

    chart = charts.chart(
        key,
        f"Confusion matrix, {kind}",
        "Each row is a true class, each column what it was taken for; the stronger the colour, the larger the "
        f"share of the row (at most {100 * shares.max():.0f} %). Right answers lie on the dotted diagonal.",
        f"Confusion matrix of {kind}: {int(np.trace(counts))} of {int(counts.sum())} right. Most frequent mistakes: "
        + "; ".join(f"{a} taken for {b}, {n} of {total}" for a, b, n, total in pairs[:3]),
        draw,
        size=(5.0, 5.0),
    )
    return chart, pairs


def show(value: Any) -> str:
    """A value of a config as it is written on the command line."""
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(show(item) for item in value) + ("," if len(value) == 1 else "") + ")"
    return str(value) if value != "" else "''"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
