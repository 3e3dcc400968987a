"""The files of a prepared set beside its shards."""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data import catalog
from data.prepare import boxes, carry_truth, parts, preparation_report, shards, tables
from data.prepare.boxes import MANIFEST_COLUMNS, Box
from data.prepare.options import Settings
from data.recordings import clocks, raw_video
from data.recordings.listing import PreparationError
from data.store import digests, frame_index, truth
from data.store.takes import FORMAT_VERSION
from data.store.whole_files import whole_file, write_whole

# The manifest without the column `record`, which numbers the rows.
_SCHEMA = pa.schema(
    [
        ("take", pa.string()),
        ("view", pa.string()),
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("label", pa.int32()),
        ("subject", pa.int32()),
        ("setup", pa.int32()),
        ("camera", pa.int32()),
        ("performance", pa.int32()),
        ("listed_split", pa.string()),  # '' if the numbers above decide the official splits
        ("checksum", pa.uint32()),  # CRC-32 of the record's bytes
        ("source_fps", pa.float32()),  # of the file, by its stamps
        ("offset_seconds", pa.float64()),  # added to the file's stamps; 0 if frames are paired by number
        ("gap_frames", pa.int32()),  # repeated in place of frames that the file lacks
        ("resampled", pa.bool_()),  # frame k of the record is not frame k of the file
        ("video_tracks", pa.int32()),  # in the file; the longest was read
    ]
)
# Only in sets with boxes: the box that the frames show, and the size of the upright raw picture in which it lies.
_CROP_SCHEMA = pa.schema([(name, pa.int32()) for name in MANIFEST_COLUMNS])

NEW_FILES = ".new"  # the folder of files that are not all there yet


def write(settings: Settings, jobs: Sequence[shards.Job], output_dir: Path, truth_dir: Path | None = None) -> dict:
    """Writes everything beside the shards, of all finished parts of the set; see data/prepare/parts.py.

    All files are made before the first of them appears, SHA256SUMS last. `settings` and `jobs` say what was prepared.

    Returns:
      What prepared.json says, with the lists `quarantined` (path, take, reason), `unmatched` (path, reason), `static`
      (takes), `static_views` (take, view) and `remarks` (lines) added.
    """
    every = [part for part in parts.read_plans(output_dir) if parts.is_finished(output_dir, part.split)]
    accounts = {part.split: parts.accounts(output_dir, part.split) for part in every}
    inputs = [parts.inputs(output_dir, part.split) for part in every]
    schema = _SCHEMA if settings.crop is None else pa.unify_schemas([_SCHEMA, _CROP_SCHEMA])
    tables = {
        of: pa.Table.from_pylist([row for account in found for row in account["records"]], schema)
        for of, found in accounts.items()
    }
    names = {"class_names": settings.class_names}
    if catalog.get(settings.dataset).classes_from_files:
        names, tables = _numbered(every, tables)
    views = pa.concat_tables(tables.values())
    every_account = [account for found in accounts.values() for account in found]
    quarantined = [
        dict(zip(("path", "take", "reason"), entry, strict=True)) for facts in inputs for entry in facts["aside"]
    ]
    num_aside = len(quarantined)
    quarantined += [entry for account in every_account for entry in account["quarantined"]]
    static_views = [tuple(view) for account in every_account for view in account["static_views"]]
    static = [take for account in every_account for take in account["static_takes"]]
    unmatched = [{"path": path, "reason": reason} for facts in inputs for path, reason in facts["unmatched"]]
    shard_list = [
        {"file": account["file"], "records": len(account["records"]), "bytes": account["bytes"]}
        for account in every_account
    ]
    counts, passed_over = Counter(), Counter()
    for facts in inputs:
        counts.update(facts["counts"])
        passed_over.update(facts["passed_over"])
    counts = dict(counts) | {
        "videos": len(views),
        "takes": len(views["take"].unique()),
        "frames": pc.sum(views["num_frames"]).as_py() or 0,
        "bytes": sum(shard["bytes"] for shard in shard_list),
        "quarantined": len(quarantined) - num_aside,
        "passed_over": dict(sorted(passed_over.items())),
        "several_tracks": pc.sum(pc.greater(views["video_tracks"], 1)).as_py() or 0,
        "gap_frames": pc.sum(views["gap_frames"]).as_py() or 0,
        "static_takes": len(static),
        "static_views": len(static_views),
    }
    prepared = {
        "format_version": FORMAT_VERSION,
        **settings.as_dict(),
        **names,
        "not_synchronised": catalog.get(settings.dataset).not_synchronised,
        "versions": {name: importlib.metadata.version(name) for name in ("av", "opencv-python-headless")},
        "counts": counts,
        "shards": shard_list,
    }
    with _all_at_once(output_dir, {account["file"]: account["sha256"] for account in every_account}) as new:
        _write_manifest(views, new)
        if truth_dir is not None:
            _carry_truth(truth_dir, jobs, tables, output_dir, new)
        of_shards = [shards.index_path(output_dir, shard["file"]) for shard in shard_list]
        _write_frame_index(of_shards, counts["frames"], new)
        _write_table("quarantine.csv", ("path", "take", "reason"), quarantined, new)
        _write_table("unmatched.csv", ("path", "reason"), unmatched, new)
        _write_tfds_metadata(settings, shard_list, new)
        write_whole(new / "prepared.json", json.dumps(prepared, indent=1), durable=True)
    reasons = [(entry["path"], entry["reason"]) for entry in unmatched]
    found = {"quarantined": quarantined, "unmatched": reasons, "static": static, "static_views": static_views}
    marks = Counter(mark for account in every_account for row in account["records"] for mark in row.get("marks", ()))
    remarks = _remarks(settings, views, marks)
    if len(every) > 1:  # of names in one part it was told before
        remarks += preparation_report.nearly_equal("class", names["class_names"])
    return prepared | found | {"remarks": remarks}


def _remarks(settings: Settings, views: pa.Table, marks: Mapping[str, int]) -> list[str]:
    """What a user should know of the views that were prepared; `marks`: how many have which of `raw_video.MARKS`."""
    rates = zip(*(views[name].to_pylist() for name in ("take", "fps", "source_fps")), strict=True)
    remarks = clocks.remarks(list(rates), settings.clock and settings.clock.fps, settings.synchronised)
    if settings.crop is not None and settings.crop.by == "table":
        *edges, widths, heights = (views[name].to_pylist() for name in MANIFEST_COLUMNS)
        placed = [Box(*box) for box in zip(*edges, strict=True)]
        remarks.append(boxes.in_one_corner(placed, list(zip(widths, heights, strict=True))))
    of_views = f"of {preparation_report.count(len(views), 'view')}"
    remarks += [f"{mark}: {number} {of_views}. {raw_video.MARKS[mark]}" for mark, number in sorted(marks.items())]
    return [remark for remark in remarks if remark]


@contextlib.contextmanager
def _all_at_once(output_dir: Path, known: Mapping[str, str]) -> Iterator[Path]:
    """A folder for new files, which then appear in the output folder, and SHA256SUMS after them.

    `known` are digests that need not be computed. If this is interrupted between two of these files, the set is refused
    when it is opened; the same command makes it whole.
    """
    new = output_dir / NEW_FILES
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    yield new
    files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
    of_new = {path.as_posix(): digests.sha256_of(new / path)[0] for path in files}
    table = digests.table(output_dir, known={**known, **of_new})
    for path in files:
        (output_dir / path).parent.mkdir(exist_ok=True)
        os.replace(new / path, output_dir / path)
    write_whole(output_dir / digests.NAME, table, durable=True)
    shutil.rmtree(new)


def _numbered(every: Sequence[parts.Part], tables: Mapping[str, pa.Table]) -> tuple[dict, dict[str, pa.Table]]:
    """Classes and subjects that file names tell, numbered in alphabetical order; classes where a record has one.

    Returns:
      `class_names` and, where there are subjects, `subject_names`; and the tables with these numbers.
    """
    named = {part.split: part.settings["class_names"] for part in every}
    used = {
        named[split][label]
        for split, table in tables.items()
        for label in table["label"].unique().to_pylist()
        if label >= 0
    }
    names = {"class_names": sorted(used)}
    subjects = {part.split: part.subject_names for part in every}
    if any(subjects.values()):
        names["subject_names"] = sorted(set().union(*subjects.values()))
    numbered = {}
    for split, table in tables.items():
        for column, before, now in (
            ("label", named[split], names["class_names"]),
            ("subject", subjects[split], names.get("subject_names")),
        ):
            if now is not None:
                number = {index: now.index(name) for index, name in enumerate(before) if name in now} | {-1: -1}
                values = pa.array([number[value] for value in table[column].to_pylist()], pa.int32())
                table = table.set_column(table.column_names.index(column), column, values)
        numbered[split] = table
    return names, numbered


def _carry_truth(
    truth_dir: Path, jobs: Sequence[shards.Job], tables: Mapping[str, pa.Table], output_dir: Path, new: Path
) -> None:
    """Writes the truth of all parts into the folder of new files: that of `jobs` anew, the others' as it was."""
    split, of_parts = jobs[0].split, output_dir / shards.PARTS
    videos = {(video.take, video.view): video for job in jobs for video in job.videos}
    views = tables[split]
    shown = [videos[key] for key in zip(*(views[name].to_pylist() for name in ("take", "view")), strict=True)]
    kept = {of: of_parts / f"{of}-{truth.FOLDER}" for of in tables}
    if len(tables) == 1:
        carry_truth.carry(truth_dir, views, shown, new / truth.FOLDER)
        return
    if not kept[shards.SPLIT].exists():  # before it is the truth of all parts
        shutil.copytree(output_dir / truth.FOLDER, new / truth.FOLDER)
        os.replace(new / truth.FOLDER, kept[shards.SPLIT])
    carry_truth.carry(truth_dir, views, shown, kept[split])
    carry_truth.join([path for path in kept.values() if path.exists()], new / truth.FOLDER)


def _write_manifest(views: pa.Table, output_dir: Path) -> None:
    views = views.add_column(2, "record", pa.array(range(len(views)), pa.int64()))
    manifest = io.BytesIO()
    pq.write_table(views, manifest)
    write_whole(output_dir / "manifest.parquet", manifest.getvalue(), durable=True)


def _write_frame_index(of_shards: Sequence[Path], num_frames: int, folder: Path) -> None:
    """Joins the shards' tables, which need not fit into memory together, into `folder`."""
    header = {"descr": np.lib.format.dtype_to_descr(frame_index.ENTRY), "fortran_order": False, "shape": (num_frames,)}
    with whole_file(folder / frame_index.NAME, durable=True) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in of_shards:
            file.write(np.load(part).tobytes())


def _write_table(name: str, columns: Sequence[str], rows: Sequence[dict], output_dir: Path) -> None:
    table = io.StringIO()
    tables.write(table, columns, rows)
    write_whole(output_dir / name, table.getvalue().encode(errors="backslashreplace"), durable=True)


def _write_tfds_metadata(settings: Settings, shard_list: Sequence[dict], output_dir: Path) -> None:
    of_split: dict[str, list[dict]] = {}
    for shard in shard_list:
        of_split.setdefault(shards.split_of(shard["file"]), []).append(shard)
    splits = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=[shard["records"] for shard in found],
            num_bytes=sum(shard["bytes"] for shard in found),
        )
        for name, found in of_split.items()
    ]
    named = [output_dir / shard["file"] for shard in shard_list if not (output_dir / shard["file"]).exists()]
    for path in named:
        path.touch()  # the data set's name is read from those of its shards
    tfds.folder_dataset.write_metadata(
        data_dir=output_dir,
        features=shards.FEATURES,
        split_infos=splits,
        version="1.0.0",
        check_data=False,  # the check needs TensorFlow
        description=f"{settings.dataset}: one record per view, frames as {settings.codec}.",
    )
    for path in named:
        path.unlink()


def verify(directory: Path) -> list[str]:
    """Compares every file of a prepared set with its digest.

    Returns:
      One line per damaged or missing file; for a shard it names the takes that cannot be read. Empty if all is intact.

    Raises:
      PreparationError: there are no digests to compare with.
    """
    if not (directory / digests.NAME).is_file():
        raise PreparationError(f"no finished preparation in {directory}: {directory / digests.NAME} is missing")
    damage, unfinished = [], _unfinished(directory)
    for name, problem in digests.check(directory, show_progress=True).items():
        if unfinished and unfinished.search(name):
            continue  # an addition that continues when its command is given again
        in_shard = problem == "damaged" and ".array_record-" in name
        takes = f"; takes {', '.join(_damaged_takes(directory / name))}" if in_shard else ""
        damage.append(f"{name}: {problem}{takes}")
    return damage


def _unfinished(directory: Path) -> re.Pattern | None:
    """What the names of files of an addition match that was interrupted."""
    try:
        splits = [part.split for part in parts.read_plans(directory) if not parts.is_finished(directory, part.split)]
    except PreparationError:
        return None  # a plan is damaged, which its digest tells
    if not splits or shards.SPLIT in splits:
        return None
    return re.compile(rf"(?:^plan-|^parts/|-)(?:{'|'.join(splits)})(?:\.json$|-|\.array_record-)")


def _damaged_takes(shard: Path) -> list[str]:
    """The takes with a record that has changed; all of the shard's when the damage is outside of the records."""
    try:
        rows = json.loads(shards.account_path(shard.parent, shard.name).read_bytes())["records"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["unknown, since its account is damaged, too"]
    takes = [row["take"] for index, row in enumerate(rows) if _checksum(shard, index) != row["checksum"]]
    return sorted(set(takes or [row["take"] for row in rows]))


def _checksum(shard: Path, index: int) -> int | None:
    """CRC-32 of a record, None if it cannot be read. The reader is opened each time: an error makes it unusable."""
    try:
        reader = array_record_module.ArrayRecordReader(str(shard))
        return zlib.crc32(reader.read([index])[0])
    except (RuntimeError, ValueError, IndexError):
        return None
