"""Tables as CSV, written so that a spreadsheet takes no name for a formula."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write(file: TextIO, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a header and rows.

    `'` comes before each text that a spreadsheet would compute, as is common: `=1+1` becomes `'=1+1`. A text that
    begins with `'` gets one too, so that taking the first `'` away gives every text back. Numbers stay.
    """
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    quoting = csv.DictWriter(file, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for row in rows:
        cells = {
            name: f"'{value}" if isinstance(value, str) and value.startswith((*_BEGINS_FORMULA, "'")) else value
            for name, value in row.items()
        }
        # Readers also end a row at \r, which Python's csv does not quote.
        with_return = any(isinstance(value, str) and "\r" in value for value in cells.values())
        (quoting if with_return else writer).writerow(cells)
