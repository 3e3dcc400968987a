"""Matplotlib's figures as SVG with the page's colours and font, and with a description for readers who cannot see."""

import dataclasses
import functools
import html
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mv2mae_jax.report.collect import MOST_RUNS

# Placeholder colours: `to_svg` replaces them with the page's variables, so that one file serves both colour schemes.
# style.css defines the variables.
SERIES = tuple(f"#a000{index:02x}" for index in range(MOST_RUNS))
INK, MUTED, GRID, PAGE = "#a000f0", "#a000f1", "#a000f2", "#a000f3"
_VARIABLES = {colour: f"--series-{index}" for index, colour in enumerate(SERIES)} | {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAGE: "--surface",
}
MARKERS = "o^s"
MOST_MARKS = len(MARKERS) * len(SERIES)  # groups that a scatter plot tells apart
SIZE = (5.0, 2.9)  # inches of 72 points: about the width of a phone, so that text keeps its size there

_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same data give the same file
    "font.size": 10.5,
    "axes.titlesize": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 5),
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "text.parse_math": False,  # names of classes, runs and cameras may hold $
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.labelspacing": 0.3,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of the page: its SVG, a heading, a sentence on how to read it, and what it shows in words."""

    key: str
    title: str
    caption: str
    svg: str


def chart(key: str, title: str, caption: str, description: str, draw: Callable, size: Sequence[float] = SIZE) -> Chart:
    """Draws by `draw(axes)`; `key` must be unique in a page."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        return Chart(key=key, title=title, caption=caption, svg=to_svg(figure, key, description))


def to_svg(figure: Figure, key: str, description: str) -> str:
    """An <svg> for the page: accessible name, responsive size, the page's colours, ids that no other figure has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]+"', svg)[0]
    name = html.escape(description, quote=True)
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box} role="img" aria-label="{name}">'
    svg = svg[svg.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))

    def adapted(tag: re.Match) -> str:
        text = re.sub(r' id="([^"]+)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", tag[0])
        text = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", text)
        text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
        text = re.sub(r"(font: (?:[a-z]+ )*)([\d.]+px) [^;\"]+", r"font-size: \2; font-family: inherit", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        return text

    svg = re.sub(r"<[^>]+>", adapted, svg)  # only inside tags: the text between them is names, which stay as they are
    return opening + re.sub(r"\s*\n\s*", "\n", svg)


def heat_map(axes: matplotlib.axes.Axes, values: np.ndarray) -> None:
    """float[rows, columns] in [0, 1] as one colour that grows from transparent to full, on whichever background."""
    image = np.zeros((*values.shape, 4), np.uint8)
    image[..., :3] = (64, 145, 220)
    image[..., 3] = np.round(255 * np.clip(values, 0, 1))
    axes.imshow(image, interpolation="none", aspect="equal")
    axes.grid(visible=False)


def scatter_marks(num_groups: int) -> list[tuple[str, str]]:
    """(colour, marker) of each group; those past MOST_MARKS share a grey dot."""
    marks = [(colour, marker) for marker in MARKERS for colour in SERIES]
    return [marks[index] if index < MOST_MARKS else (MUTED, ".") for index in range(num_groups)]


@functools.cache
def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"
