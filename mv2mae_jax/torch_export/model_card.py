"""The README.md of an export: what the weights are, where they come from, and what loads them; model_card.jinja."""

import json
import os
import pathlib
import re
from typing import Any

import jax
import jinja2

from data.store.directories import directories
from mv2mae_jax.config import flatten
from mv2mae_jax.models import variants

LICENCE = """\
The code, the Python files of this folder included, is Apache-2.0. The weights were trained on the data that README.md
names and are subject to the terms of that data set; many allow academic research only.
"""


def text(run: Any, layout: str, verdict: str) -> str:
    """Markdown with the Hub's front matter. No name is markup, and no path says where on this machine it was.

    Args:
      run: trained_run.TrainedRun.
      layout: one of exporter.FORMATS.
      verdict: how far the files were compared with JAX.
    """
    folder = pathlib.Path(__file__).parent
    options = {"trim_blocks": True, "keep_trailing_newline": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), **options)  # Markdown: nothing is escaped
    environment.filters |= {f.__name__: f for f in (code, cell, fenced, without_folders)}
    frames, height, width = run.model.clip_size
    data_name = _data_name(run)
    values = {
        "run": run,
        "model": run.model,
        "encoder": run.encoder,
        "config": run.config,
        "layout": layout,
        "verdict": verdict,
        "name": _name(run),
        "frames": frames,
        "height": height,
        "width": width,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "data_name": data_name,
        "data_tag": re.sub(r"[^\w.-]+", "-", data_name, flags=re.ASCII).strip("-.") or "unnamed",
        "workdir": without_folders(os.path.abspath(run.workdir)),
        "settings": "\n".join(f"{key} = {without_folders(value)!r}" for key, value in flatten(run.config)),
        "licence": LICENCE,
    }
    return environment.get_template("model_card.jinja").render(values)


def code(name: str) -> str:
    """A name as inline code: nothing in it is markup, line breaks become spaces."""
    name = " ".join(str(name).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    padding = " " if name.startswith("`") or name.endswith("`") or not name else ""
    return f"{ticks}{padding}{name}{padding}{ticks}"


def cell(name: str) -> str:
    """As `code`, in a table, whose cells end at `|`."""
    return code(name).replace("|", "\\|")


def fenced(text: str) -> str:
    """A block of code; the fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def without_folders(value: Any) -> Any:
    """The last part of an absolute path, also within lists; all else as it is."""
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:[\\/])", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _data_name(run: Any) -> str:
    """The data set's name where the prepared set can still be read, else that of its folder."""
    folder = directories(run.config.data.dir)[0]  # several sets are of one name
    try:
        prepared = json.loads(pathlib.Path(folder, "prepared.json").read_bytes())
    except (OSError, ValueError):
        prepared = {}
    name = prepared.get("dataset") if isinstance(prepared, dict) else None
    of_folder = without_folders(os.path.abspath(folder)) if folder else "unnamed"
    return of_folder if name in (None, "folder") else name


def _name(run: Any) -> str:
    """ViT-S and so on, unless the config overrides the sizes of its variant."""
    encoder, variant = run.encoder, variants.VARIANTS[run.config.model.variant]
    same = all(getattr(encoder, size) == getattr(variant, size) for size in ("width", "depth", "num_heads"))
    return f"ViT-{run.config.model.variant}" if same else f"ViT of width {encoder.width} and depth {encoder.depth}"
