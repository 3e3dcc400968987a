"""history.jsonl -> charts over the steps of a run, or of several overlaid."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib import ticker

from mv2mae_jax.monitoring.metrics import LOSSES
from mv2mae_jax.report import charts
from mv2mae_jax.report.charts import Chart
from mv2mae_jax.report.collect import ReportedRun

BASELINE = "mean colour"
MOST_POINTS = 240  # [ours] of a drawn line: more cannot be told apart at its width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart: the label of each metric in it, and perhaps a dashed line to compare them with: the mean colour's."""

    key: str
    title: str
    caption: str
    lines: dict[str, str]
    baseline: str = ""
    percent: bool = False
    logarithmic: bool = False  # if values span more than a factor of 20


PANELS = (
    Panel(
        key="losses",
        title="Reconstruction loss",
        caption="Below the dashed line the decoder predicts better than the mean colour of each patch; where the "
        "cross-view loss lies below the self-view loss, the other camera helps. Diamonds: held-out takes.",
        lines={f"train/{name}": label for name, label in LOSSES.items()}
        | {f"eval/{name}": f"{label}, held out" for name, label in LOSSES.items()},
        baseline="train/loss_mean_prediction",
        logarithmic=True,
    ),
    Panel(
        key="loss",
        title="Training loss",
        caption="What is minimised: for pre-training the self-view losses of all views plus the cross-view loss; with "
        "a joint decoder the mean over the views.",
        lines={"train/loss": "loss"},
        logarithmic=True,
    ),
    Panel(
        key="cross-gain",
        title="Gain from the other camera",
        caption="How much the cross-view loss grows when the source view is replaced by another take's. Above 0 the "
        "decoder uses the other camera; bars are standard errors over takes.",
        lines={"eval/cross_gain": "another person", "eval/cross_gain_pose": "same person, another pose"},
        percent=True,
    ),
    Panel(
        key="features",
        title="kNN and retrieval during training",
        caption="Accuracy of the frozen features on held-out takes: class of the nearest neighbours, and the same take "
        "found from another camera.",
        lines={"eval/knn_top_1": "kNN top-1", "eval/retrieval_recall_1": "retrieval, recall at 1"},
        percent=True,
    ),
    Panel(
        key="accuracy-curve",
        title="Accuracy",
        caption="The line is measured on the augmented, perhaps mixed clips of training, the diamonds on whole clips "
        "of the evaluated split.",
        lines={"train/accuracy": "training clips", "test/top_1": "test, top-1", "held_out/top_1": "held out, top-1"},
        percent=True,
    ),
    Panel(
        key="learning-rate",
        title="Learning rate",
        caption="Warm-up, then a cosine. Steps are updates of the optimizer.",
        lines={"train/learning_rate": "learning rate"},
    ),
    Panel(
        key="gradient-norm",
        title="Gradient norm",
        caption="Norm of the gradient over all parameters, before clipping.",
        lines={"train/gradient_norm": "gradient norm"},
        logarithmic=True,
    ),
    Panel(
        key="ess",
        title="Tokens that carry the loss",
        caption="Effective share of the tokens after motion weighting (ESS fraction): 100 % weights all alike, a few "
        "percent look at a handful of tokens.",
        lines={"train/ess_fraction": "ESS fraction"},
        percent=True,
    ),
    Panel(
        key="throughput",
        title="Throughput (clips/s)",
        caption="Clips (one view of a sample) per second over all devices, without evaluation, saving and compilation.",
        lines={"perf/clips_per_second": "clips/s"},
    ),
    Panel(
        key="data-wait",
        title="Waiting for data",
        caption="Share of the time in which the devices wait for the next batch. Above a few percent, raise "
        "data.num_workers or read from a faster disk.",
        lines={"data/wait_fraction": "data wait"},
        percent=True,
    ),
    Panel(
        key="mfu",
        title="Model FLOPs utilisation",
        caption="Operations that the model needs, as a share of the published bfloat16 peak of the devices.",
        lines={"perf/mfu": "MFU"},
        percent=True,
    ),
    Panel(
        key="memory",
        title="Peak memory (GB)",
        caption="The most that was in use so far: of a device; on a CPU, of the process.",
        lines={"perf/memory_gb": "GB"},
    ),
    Panel(
        key="incidents",
        title="Skipped updates, spikes, damaged samples",
        caption="Updates skipped because they were not finite and loss spikes, per interval of the log, and damaged "
        "samples replaced so far.",
        lines={
            "train/skipped_updates": "skipped updates",
            "train/loss_spikes": "loss spikes",
            "data/damaged_samples": "damaged samples",
        },
    ),
)


def draw(runs: Sequence[ReportedRun]) -> list[Chart]:
    """The charts that the histories have data for.

    For a single run, the metrics of a panel share a chart. Several runs are compared one metric at a time.
    """
    return list(_charts_of_one(runs[0]) if len(runs) == 1 else _charts_of_many(runs))


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest of each stretch of int[n], float[n], so spikes stay: at most MOST_POINTS points."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    kept = []
    for stretch in np.array_split(np.arange(len(steps)), MOST_POINTS // 2):
        kept += sorted({stretch[np.argmin(values[stretch])], stretch[np.argmax(values[stretch])]})
    return steps[kept], values[kept]


def smooth(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """The trend of int[n], float[n]: medians over a fortieth of the points around each, at most `most` of them."""
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    half = len(values) // 80
    return steps[chosen], np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in chosen])


def _charts_of_one(run: ReportedRun) -> Iterator[Chart]:
    for panel in PANELS:
        lines = [(name, label, *_series(run, name)) for name, label in panel.lines.items()]
        lines = [line for line in lines if len(line[2])]
        if not lines or (panel.key == "incidents" and not any(values.any() for *_, values in lines)):
            continue
        colours, drawn, dashed, said = {}, [], [], []
        for name, label, steps, values in lines:
            # A metric has the same colour in training and held out.
            kind = name.partition("/")[2] if panel.key != "accuracy-curve" else name
            colour = colours.setdefault(kind, charts.SERIES[len(colours)])
            drawn.append((name, label, colour, steps, values, _errors(run, name, steps)))
            said.append(_in_words(label, steps, values, panel.percent))
        baseline = _series(run, panel.baseline)
        if len(baseline[0]):
            said.append(_in_words(BASELINE, *baseline, panel.percent))
            dashed.append((BASELINE, charts.MUTED, *baseline))
        yield _chart(panel, panel.key, panel.title, drawn, dashed, said)


def _charts_of_many(runs: Sequence[ReportedRun]) -> Iterator[Chart]:
    """One chart for each metric. Its values on held-out takes share the chart with those in training."""
    for panel in PANELS:
        if panel.key == "incidents":
            continue
        metrics: dict[str, list[str]] = {}
        for name in panel.lines:
            metrics.setdefault(name.partition("/")[2], []).append(name)
        for metric, names in metrics.items():
            drawn, dashed, said = [], [], []
            for name, (index, run) in itertools.product(names, enumerate(runs)):
                steps, values = _series(run, name)
                if len(steps):
                    colour = charts.SERIES[index]
                    drawn.append((name, None, colour, steps, values, _errors(run, name, steps)))
                    said.append(_in_words(f"{run.name}, {panel.lines[name]}", steps, values, panel.percent))
                baseline = _series(run, panel.baseline)
                if not _evaluated(name) and len(baseline[0]):
                    dashed.append((None, charts.SERIES[index], *baseline))
            if any(len(steps) > 1 for *_, steps, _, _ in drawn):  # single values are in the table
                title = panel.title if len(metrics) == 1 else f"{panel.title}: {panel.lines[names[0]]}"
                yield _chart(panel, f"{panel.key}-{metric}", title, drawn, dashed, said)


def _chart(panel: Panel, key: str, title: str, drawn: list, dashed: list, said: list[str]) -> Chart:
    def paint(axes: matplotlib.axes.Axes) -> None:
        shown = [values if errors is None else values + errors for *_, values, errors in drawn]
        shown += [values for *_, values in dashed]
        everything = np.concatenate(shown)
        if panel.logarithmic and everything.min() > 0 and everything.max() > 20 * everything.min():
            axes.set_yscale("log")
        for label, colour, steps, values in dashed:
            axes.plot(*smooth(steps, values), color=colour, linestyle=(0, (4, 3)), linewidth=1.3, label=label)
        for name, label, colour, steps, values, errors in drawn:
            if _evaluated(name):
                axes.errorbar(
                    steps, values, errors, color=colour, marker="D", markersize=4.5, linewidth=1, capsize=3, label=label
                )
                continue
            if len(values) > 80:  # the trend over the single values
                axes.plot(*thin(steps, values), color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(*smooth(steps, values), color=colour, label=label)
        if panel.percent:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
        elif axes.get_yscale() == "log":
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        if axes.get_yscale() == "linear" and everything.min() >= 0:
            axes.set_ylim(0, 1.06 * everything.max() or 1)
        if sum(entry[0] is not None for entry in dashed) + sum(entry[1] is not None for entry in drawn) > 1:
            axes.legend(loc="best")

    return charts.chart(key, title, panel.caption, f"{title}. {' '.join(said)}", paint)


def _series(run: ReportedRun, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric of a run. If no take was held out, it was evaluated on training takes."""
    steps, values = run.series(name)
    if len(steps) == 0 and name.startswith("eval/"):
        return run.series(name.replace("eval/", "eval_on_training_takes/", 1))
    return steps, values


def _evaluated(name: str) -> bool:
    """Whether a metric is measured now and then, not in every interval of the log."""
    return name.startswith(("eval/", "test/", "held_out/"))


def _errors(run: ReportedRun, name: str, steps: np.ndarray) -> np.ndarray | None:
    """Standard errors float[n] at the steps int[n]; None where the metric has none."""
    found = dict(zip(*(axis.tolist() for axis in _series(run, f"{name}_standard_error")), strict=True))
    if not found:
        return None
    return np.array([found.get(step, 0.0) for step in steps.tolist()])


def _in_words(label: str, steps: np.ndarray, values: np.ndarray, percent: bool) -> str:
    def text(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else charts.number(float(value))

    if len(steps) == 1:
        return f"{label}: {text(values[0])} at step {steps[0]}."
    return (
        f"{label}: {text(values[0])} at step {steps[0]}, {text(values[-1])} at step {steps[-1]}, lowest "
        f"{text(values.min())}, highest {text(values.max())}."
    )
