"""Draws the figures of docs/reading_your_run.md from the committed histories of runs.

    python docs/draw_curves.py        # writes docs/figures/{demo,learning_rate}_curves.svg

The histories, and the commands that made them: benchmarks/results/reference/.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
HISTORIES = ROOT / "benchmarks/results/reference"
FIGURES = Path(__file__).parent / "figures"
STYLE = {"font.size": 9, "svg.hashsalt": "mv2mae", "axes.spines.top": False, "axes.spines.right": False}
LOSSES = (  # metric, name in the log line, colour
    ("train/loss_mean_prediction", "mean prediction", "0.5"),
    ("train/loss_self", "self", "C0"),
    ("train/loss_cross", "cross", "C1"),
)


def history(name: str) -> list[dict[str, float]]:
    """The rows of a run's history.jsonl."""
    return [json.loads(line) for line in (HISTORIES / f"{name}.jsonl").read_text().splitlines()]


def series(name: str, metric: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric."""
    rows = [row for row in history(name) if metric in row]
    return [row["step"] for row in rows], [row[metric] for row in rows]


def final(name: str) -> dict[str, float]:
    """What the last evaluation measured."""
    return {key.removeprefix("eval/"): value for key, value in history(name)[-1].items() if key.startswith("eval/")}


def draw_losses(axis: plt.Axes, names: list[str], title: str) -> None:
    """The losses of runs that differ by their seeds, on one pair of axes."""
    for metric, label, colour in LOSSES:
        for index, name in enumerate(names):
            axis.plot(*series(name, metric), color=colour, linewidth=1.2, label=None if index else label)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, 0.75))
    axis.set_title(title, loc="left")
    axis.legend(frameon=False)


def draw_demo() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    names = [path.stem for path in sorted(HISTORIES.glob("demo_seed*.jsonl"))]
    draw_losses(axis, names, f"make demo, {len(names)} seeds")
    return figure


def draw_learning_rates() -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, name, title in zip(
        axes,
        ("demo_rate_tenth", "demo_seed0", "demo_rate_tenfold"),
        ("a tenth of the rate", "the demo's rate", "ten times the rate"),
        strict=True,
    ):
        draw_losses(axis, [name], title)
    for axis in axes[1:]:
        axis.set_ylabel("")
        axis.get_legend().remove()
    return figure


FIGURES_BY_NAME = {
    "demo_curves.svg": draw_demo,
    "learning_rate_curves.svg": draw_learning_rates,
}


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES_BY_NAME.items():
            draw().savefig(FIGURES / name, metadata={"Date": None})
            print(FIGURES / name)


if __name__ == "__main__":
    main()
