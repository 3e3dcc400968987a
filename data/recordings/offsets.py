"""The table of --sync=FILE.csv: take, view, and the seconds to add to the stamps of its file."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from console.errors import UserError
from data.catalog import composed

COLUMNS = ("take", "view", "seconds")


def read(path: Path) -> dict[tuple[str, str], float]:
    """The seconds by (take, view). Raises ValueError, with the line, where the file does not have its form."""
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restval="")
        table.fieldnames = [name.strip() for name in table.fieldnames or ()]
        if missing := [name for name in COLUMNS if name not in table.fieldnames]:
            raise UserError(
                f"--sync={path} lacks the column {', '.join(missing)}: its first line is to be {','.join(COLUMNS)} "
                f"(more columns may follow), not {','.join(table.fieldnames)!r}"
            )
        if twice := [name for name in COLUMNS if table.fieldnames.count(name) > 1]:
            raise UserError(f"--sync={path} has the column {', '.join(twice)} more than once: keep one")
        seconds: dict[tuple[str, str], float] = {}
        for row in table:
            take, view, text = (composed(row[name]) for name in COLUMNS)
            where = f"--sync={path}, line {table.line_num}"
            if any(row.get(None, ())):  # so DictReader calls what is beyond the last column
                raise UserError(
                    f"{where} has more cells than the first line has columns: {','.join(row[None])!r} is left over. "
                    "Numbers have a point (0.5), and a name with a comma stands in quotation marks"
                )
            if not text.strip():
                continue  # `data.sync` leaves the seconds empty if it is not sure
            try:
                number = float(text)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise UserError(f"{where}: {text!r} is no number of seconds")
            if (take, view) in seconds:
                raise UserError(f"{where}: view {view} of take {take} is there twice")
            seconds[take, view] = number
    except OSError as error:
        raise UserError(f"--sync={path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--sync={path} is no text in UTF-8: {error}") from error
    except csv.Error as error:
        raise UserError(f"--sync={path} cannot be read as CSV: {error} (an open quotation mark?)") from error
    return seconds


def text(rows: Sequence[Sequence[object]], more_columns: Sequence[str] = ()) -> str:
    """The table's text. Each row has the values of COLUMNS and of any further columns, in order."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*COLUMNS, *more_columns])
    writer.writerows(rows)
    return table.getvalue()
