"""A table of features. It is written in parts, so that an interrupted extraction can continue, then as one file."""

import contextlib
import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from console import progress
from console.errors import UserError
from data.store.whole_files import refuse_existing, remove_leftovers, whole_file, write_whole
from mv2mae_jax.runs import resume, side_files, step_folders

Columns = dict[str, np.ndarray]  # the same number of rows in each
FORMATS = (".npz", ".parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """Parts in OUTPUT.parts until `finish` makes OUTPUT of them.

    Attributes:
      output: the file to write; its ending is one of FORMATS.
      facts: what the features depend on, as JSON.
    """

    output: Path
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from writing the same output. Raises ValueError if one is at work."""
        return resume.locked_output(self.output, "extraction")

    def begin(self) -> dict[str, str] | None:
        """Makes the folder of the parts, or checks that an existing one belongs to this extraction.

        Returns:
          None. If an earlier start was killed after it had made the output but before it had removed the parts, the
          parts are removed and nothing is left to do: then the videos that the output leaves out, with the reasons.

        Raises:
          ValueError: another ending, a file that is there already, or parts of another extraction.
        """
        if self.output.suffix not in FORMATS:
            raise UserError(f"--output={self.output} must end in {' or '.join(FORMATS)}.")
        remove_leftovers(self.output.parent, f"{self.output.name}.")
        if self.folder.exists() and (left_out := self._left_out_of_output()) is not None:
            shutil.rmtree(self.folder)
            return left_out
        refuse_existing(self.output)
        facts, path = resume.plain(self.facts), self.folder / "facts.json"
        before = side_files.read(path, _is_table)
        if before is not None:
            changed = [name for name in facts | before if facts.get(name) != before.get(name)]
            if changed:
                raise UserError(
                    f"{self.folder} holds part of an extraction that differs in {', '.join(sorted(changed))}. Continue "
                    "with the command that began it, delete that folder, or choose another --output."
                )
            return None
        if path.exists():  # a file of unknown content
            progress.say(
                f"{self.folder} is renamed to {step_folders.rename(self.folder).name}, and all is extracted anew."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_whole(path, json.dumps(facts))
        return None

    def _left_out_of_output(self) -> dict[str, str] | None:
        """The videos that OUTPUT leaves out, if OUTPUT belongs to this extraction; else None."""
        try:
            if self.output.suffix == ".npz":
                with np.load(self.output) as arrays:
                    about = json.loads(str(arrays["about"]))
            else:
                about = json.loads(pq.read_schema(self.output).metadata[b"about"])
            left_out = about.pop("left_out")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # there is none, or another file
            return None
        return left_out if about == resume.plain(self.facts) else None

    def has(self, part: int) -> bool:
        """Whether the part is there as it was written: the files of an .npz have checksums."""
        try:
            with zipfile.ZipFile(self._path(part)) as columns:
                return columns.testzip() is None and self._left_out(part) is not None
        except (OSError, zipfile.BadZipFile):
            return False

    def add(self, part: int, columns: Columns, left_out: dict[str, str]) -> None:
        """Writes one part, with the videos that it lacks and the reasons. It appears whole or not at all."""
        write_whole(self._path(part).with_suffix(".json"), json.dumps(left_out))
        with whole_file(self._path(part)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **columns)

    def count(self, num_parts: int, name: str, which: Callable[[np.ndarray], np.ndarray]) -> int:
        """Counts the rows of parts 0 to num_parts - 1 in which a column has a wanted value."""
        return sum(int(which(column).sum()) for column in _column([self._path(i) for i in range(num_parts)], name))

    def finish(self, num_parts: int) -> tuple[int, dict[str, str]]:
        """Makes the file of parts 0 to num_parts - 1, one in memory at a time, and removes them.

        The facts are kept in the file: as text in the array `about` of an .npz, in the metadata of a .parquet.

        Returns:
          The number of rows, and which videos are left out, with the reasons; these are kept in the file too.
        """
        parts = [self._path(part) for part in range(num_parts)]
        left_out = {}
        for part in range(num_parts):
            left_out |= self._left_out(part) or {}
        write = _write_npz if self.output.suffix == ".npz" else _write_parquet
        with whole_file(self.output) as temporary:
            num_rows = write(temporary, parts, json.dumps(self.facts | {"left_out": left_out}))
        shutil.rmtree(self.folder)
        return num_rows, left_out

    def _left_out(self, part: int) -> dict[str, str] | None:
        return side_files.read(self._path(part).with_suffix(".json"), _is_table)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.npz"


def _is_table(content: Any) -> bool:
    return isinstance(content, dict)


def _column(parts: list[Path], name: str) -> Iterator[np.ndarray]:
    for path in parts:
        with np.load(path) as part:
            yield part[name]


def _write_npz(path: Path, parts: list[Path], about: str) -> int:
    with np.load(parts[0]) as first:
        names = first.files
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name in names:
            shapes = [(column.shape, column.dtype) for column in _column(parts, name)]
            dtype = np.result_type(*(dtype for _, dtype in shapes))  # texts of a part may be shorter
            num_rows = sum(shape[0] for shape, _ in shapes)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_2_0(file, header | {"shape": (num_rows, *shapes[0][0][1:])})
                for column in _column(parts, name):
                    file.write(np.ascontiguousarray(column, dtype).tobytes())
        with archive.open("about.npy", "w") as file:
            np.save(file, np.array(about))
    return num_rows


def _write_parquet(path: Path, parts: list[Path], about: str) -> int:
    num_rows, writer = 0, None
    for part in parts:
        with np.load(part) as columns:
            arrays = {name: columns[name] for name in columns.files}
        table = pa.table({name: _to_arrow(array) for name, array in arrays.items()})
        if writer is None:
            shape = json.dumps(arrays["features"].shape[1:])
            schema = table.schema.with_metadata({"about": about, "features_shape": shape})
            writer = pq.ParquetWriter(path, schema)
        writer.write_table(table.cast(writer.schema))
        num_rows += table.num_rows
    writer.close()
    return num_rows


def _to_arrow(array: np.ndarray) -> pa.Array:
    """One value per row; rows of several numbers as a list of fixed length, flattened in C order."""
    if array.ndim == 1:
        return pa.array(array)
    length = int(np.prod(array.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), length)  # (M * length,)
