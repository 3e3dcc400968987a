"""Draws docs/figures/architecture.svg: what the code consists of and how a clip travels through it.

    python docs/draw_architecture.py

A test checks that every file named here exists, and that every arrow is an import.
"""

import ast
import dataclasses
import html
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = Path(__file__).parent / "figures/architecture.svg"


@dataclasses.dataclass(frozen=True)
class Box:
    """A group of files; x, y and width in pixels."""

    name: str
    does: str
    files: tuple[str, ...]  # relative to the repository; a folder stands for all in it
    x: int
    y: int
    colour: str
    width: int = 206


OFFLINE, INPUT, METHOD, LOOP, OUT = "#eef3fb", "#e4f1f1", "#dfeadf", "#fdf1de", "#f7e6ea"
HEIGHT = 96
BOXES = (
    Box("run.py", "flags, processes, errors", ("run.py", "console"), 480, 16, LOOP),
    Box(
        "configs",
        "every value, once, with its reason",
        ("configs", "mv2mae_jax/config.py", "mv2mae_jax/config_checks.py"),
        712,
        16,
        LOOP,
    ),
    Box("generated data", "people, rooms, cameras", ("data/synthetic",), 16, 136, OFFLINE),
    Box("catalogues", "names, labels, official splits", ("data/catalog",), 16, 256, OFFLINE),
    Box(
        "preparation",
        "raw videos into shards",
        ("data/recordings", "data/prepare"),
        16,
        376,
        OFFLINE,
    ),
    Box(
        "stored frames",
        "take, views, frames",
        ("data/store",),
        248,
        376,
        INPUT,
    ),
    Box(
        "samples",
        "crops, augmentation, motion",
        ("data/samples.py", "data/clips.py", "data/augment.py", "data/motion.py", "data/dataset.py"),
        248,
        256,
        INPUT,
    ),
    Box("pipeline", "a batch is a function of (seed, step)", ("data/pipeline.py",), 248, 136, INPUT),
    Box(
        "objectives",
        "init, inputs, masks, loss",
        ("mv2mae_jax/objectives",),
        480,
        136,
        METHOD,
    ),
    Box(
        "models",
        "equations, decoders, variants",
        ("mv2mae_jax/models",),
        480,
        256,
        METHOD,
    ),
    Box(
        "the loop",
        "one step, log, save, evaluate",
        (
            "mv2mae_jax/train.py",
            "mv2mae_jax/training_run.py",
            "mv2mae_jax/initial_state.py",
            "mv2mae_jax/state.py",
            "mv2mae_jax/monitoring",
        ),
        712,
        136,
        LOOP,
    ),
    Box("optimiser", "AdamW, Muon, schedule", ("mv2mae_jax/optim.py",), 712, 256, LOOP),
    Box(
        "placement",
        "which device holds what",
        ("mv2mae_jax/distributed",),
        944,
        136,
        LOOP,
    ),
    Box(
        "runs",
        "checkpoints, exact, with digests",
        ("mv2mae_jax/runs",),
        944,
        256,
        OUT,
    ),
    Box(
        "use",
        "probes, report, features, PyTorch",
        (
            "mv2mae_jax/evaluation",
            "mv2mae_jax/report",
            "mv2mae_jax/features",
            "mv2mae_jax/inference.py",
            "mv2mae_jax/torch_weights",
            "mv2mae_jax/torch_export",
        ),
        944,
        376,
        OUT,
    ),
    Box(
        "scale, on paper",
        "the step compiled for a TPU pod",
        ("mv2mae_jax/topology",),
        712,
        376,
        OUT,
    ),
)
# (from, to): what travels goes along the arrow; a file at one of its ends imports one at the other.
ARROWS = (
    ("run.py", "configs"),
    ("run.py", "the loop"),
    ("generated data", "catalogues"),
    ("catalogues", "preparation"),
    ("preparation", "stored frames"),
    ("stored frames", "samples"),
    ("samples", "pipeline"),
    ("pipeline", "objectives"),
    ("models", "objectives"),
    ("objectives", "the loop"),
    ("optimiser", "the loop"),
    ("placement", "the loop"),
    ("the loop", "runs"),
    ("runs", "use"),
    ("the loop", "scale, on paper"),
)


def modules_of(box: Box) -> set[str]:
    """Dotted names of the modules in a box."""
    paths = [ROOT / file for file in box.files]
    files = [p for path in paths for p in (path.rglob("*.py") if path.is_dir() else [path])]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return names | {name.removesuffix(".__init__") for name in names}


def imports_of(module: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_import(first: str, second: str) -> bool:
    """Whether a file of one of two boxes imports one of the other's."""
    boxes = {box.name: modules_of(box) for box in BOXES}
    ends = boxes[first], boxes[second]
    return any(set(imports_of(module)) & there for here, there in (ends, ends[::-1]) for module in here)


def draw() -> str:
    by_name = {box.name: box for box in BOXES}
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1166 488" font-family="Helvetica, Arial, sans-serif" '
        'role="img" aria-label="The parts of the code and how they follow on each other">',
        '<rect width="1166" height="488" fill="#fff"/>',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>',
    ]
    for first, second in ARROWS:
        parts.append(_arrow(by_name[first], by_name[second]))
    for box in BOXES:
        names = [file.removeprefix("mv2mae_jax/").removeprefix("data/") for file in box.files]
        names = [name if name.endswith(".py") else f"{name}/" for name in names]
        lines = _wrapped(names)
        parts.append(
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{HEIGHT}" rx="6" fill="{box.colour}" '
            'stroke="#667"/>'
        )
        for offset, size, weight, text in (
            (20, 13, "bold", box.name),
            (38, 12, "normal", box.does),
            *((56 + 14 * i, 10.5, "normal", line) for i, line in enumerate(lines)),
        ):
            family = ' font-family="monospace"' if offset > 38 else ""
            parts.append(
                f'<text x="{box.x + 10}" y="{box.y + offset}" font-size="{size}" font-weight="{weight}" '
                f'fill="#111"{family}>{html.escape(text)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(a: Box, b: Box) -> str:
    if a.y == b.y:  # to the side
        right = b.x > a.x
        x1, x2 = (a.x + a.width, b.x - 2) if right else (a.x, b.x + b.width + 2)
        path = f"M{x1},{a.y + HEIGHT // 2} H{x2}"
    elif abs(a.x - b.x) < 20:  # up or down
        down = b.y > a.y
        y1, y2 = (a.y + HEIGHT, b.y - 2) if down else (a.y, b.y + HEIGHT + 2)
        if abs(a.y - b.y) > 120:  # around what lies between
            side = a.x + a.width + 13
            path = f"M{a.x + a.width},{a.y + 60} H{side} V{b.y + 30} H{b.x + b.width + 2}"
        else:
            path = f"M{a.x + a.width // 2},{y1} V{y2}"
    else:  # down into the next column
        middle = (a.x + a.width + b.x) // 2 if b.x > a.x else (b.x + b.width + a.x) // 2
        x1, x2 = (a.x + a.width, b.x - 2) if b.x > a.x else (a.x, b.x + b.width + 2)
        path = f"M{x1},{a.y + 66} H{middle} V{b.y + 22} H{x2}"
    return f'<path d="{path}" fill="none" stroke="#444" stroke-width="1.4" marker-end="url(#a)"/>'


def _wrapped(names: list[str], most: int = 31) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) + 1 > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".strip()
    return lines


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(PICTURE)
