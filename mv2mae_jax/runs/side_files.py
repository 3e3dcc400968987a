"""Small JSON files beside the checkpoints: damage in one of them loses its content, never the run.

A command that writes to a workdir renames a damaged file (see step_folders.py) and continues with its readable part. A
command that only reads, an export or a report, leaves the file as it is and skips what cannot be read. Both say so.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from console import progress
from console.command import some_of
from data.store.whole_files import write_whole
from mv2mae_jax.runs import step_folders

HISTORY_FILE = "history.jsonl"  # what a run reports: metrics of log intervals and evaluations, a line each


def read(path: str | os.PathLike, is_whole: Callable[[Any], bool], *, repair: bool = False) -> Any:
    """The content of a JSON file; None if it is missing or damaged. Damage is reported.

    Args:
      is_whole: whether the content has the form that its readers need.
      repair: rename a damaged file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # no JSON, or no text at all
        content = None
    if is_whole(content):
        return content
    done = f"renamed to {step_folders.rename(path).name}, not deleted" if repair else "passed over"
    progress.say(f"{path} is damaged: {done}.")
    return None


def read_rows(path: str | os.PathLike, is_whole: Callable[[Any], bool], *, repair: bool = False) -> list[dict]:
    """The intact rows of a file of JSON objects, one per line. Damaged rows are reported.

    Args:
      path: the file; it need not exist.
      is_whole: whether a row has the form that its readers need.
      repair: rename a damaged file and write its intact rows again. With it a cut-off last line counts as damage;
        without it, a running run may be about to complete the line.
    """
    path = Path(path)
    try:
        *lines, cut_off = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    if repair and cut_off:
        lines.append(cut_off)
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if is_whole(row):
            rows.append(row)
        else:
            damaged.append(str(number))
    if damaged:
        told = f"{path} is damaged in line {some_of(damaged, 5)}"
        if repair:
            told += f": renamed to {step_folders.rename(path).name}, not deleted"
            write_rows(path, rows)
        progress.say(f"{told}. Its other {len(rows)} line(s) are used.")
    return rows


def write_rows(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Writes a file of JSON objects, one per line, whole or not at all."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def is_row(row: Any) -> bool:
    """Whether `row` is an object with a step, as in history.jsonl and damaged_records.jsonl."""
    return isinstance(row, dict) and isinstance(row.get("step"), int)


def is_numbers(row: Any) -> bool:
    """Whether `row` is such an object with numbers only, as in history.jsonl."""
    return is_row(row) and all(isinstance(value, int | float) for value in row.values())
