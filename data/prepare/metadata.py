"""The files of a prepared set beside its shards."""

import importlib.metadata
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from console.errors import UserError
from data import catalog
from data.prepare import carry_truth, shards, tables
from data.prepare.boxes import MANIFEST_COLUMNS
from data.prepare.listing import Listing, PreparationError
from data.store import digests, frame_index, truth
from data.store.takes import FORMAT_VERSION

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
        ("source_fps", pa.float32()),  # of the file, by its stamps; older sets lack the columns from here on
        ("offset_seconds", pa.float64()),  # added to the file's stamps; 0 if frames are paired by number
        ("gap_frames", pa.int32()),  # repeated in place of frames that the file lacks
        ("resampled", pa.bool_()),  # frame k of the record is not frame k of the file
        ("video_tracks", pa.int32()),  # in the file; the longest was read
    ]
)
# Only in sets with boxes: the box that the frames show, and the size of the upright raw picture in which it lies.
_CROP_SCHEMA = pa.schema([(name, pa.int32()) for name in MANIFEST_COLUMNS])


def write(
    settings: shards.Settings,
    listing: Listing,
    jobs: Sequence[shards.Job],
    output_dir: Path,
    truth_dir: Path | None = None,
) -> dict:
    """Writes all files beside the shards. prepared.json marks the set as finished; only the digests are written later.

    Args:
      settings, listing, jobs: what was prepared.
      output_dir: of the prepared set.
      truth_dir: 3D joints and cameras (data/store/truth.py) that go with it; None for none.

    Returns:
      What prepared.json says, with the lists `quarantined` (path, take, reason) and `unmatched` (path, reason) added.
    """
    schema = _SCHEMA if settings.crop is None else pa.unify_schemas([_SCHEMA, _CROP_SCHEMA])
    tables, sha256, shard_list = [], {}, []
    aside = (*listing.unreadable, *listing.refused)
    quarantined = [dict(path=path, take=take, reason=reason) for path, take, reason in aside]
    for job in jobs:
        account = shards.account_of(job, settings, output_dir)
        assert account is not None, job.part_name
        rows = account["records"]
        tables.append(pa.table({name: [row.get(name) for row in rows] for name in schema.names}, schema=schema))
        quarantined += account["quarantined"]
        sha256[account["file"]] = account["sha256"]  # computed when the shard was written
        shard_list.append({"file": account["file"], "records": len(rows), "bytes": account["bytes"]})
    views = pa.concat_tables(tables)
    _write_manifest(views, output_dir)
    if truth_dir is not None:
        try:
            videos = {(video.take, video.view): video for job in jobs for video in job.videos}
            shown = [videos[key] for key in zip(*(views[name].to_pylist() for name in ("take", "view")), strict=True)]
            carry_truth.carry(truth_dir, views, shown, output_dir / truth.FOLDER, shards.write_atomically)
        except UserError as error:
            raise PreparationError(str(error)) from error
    _write_frame_index(jobs, pc.sum(views["num_frames"]).as_py() or 0, output_dir)
    _write_table("quarantine.csv", ("path", "take", "reason"), quarantined, output_dir)
    same = [(path, f"the same bytes as {used}, which is used") for path, used in listing.files.duplicates]
    unmatched = [{"path": path, "reason": reason} for path, reason in (*listing.unmatched, *same)]
    _write_table("unmatched.csv", ("path", "reason"), unmatched, output_dir)
    _write_tfds_metadata(settings, shard_list, output_dir)
    prepared = {
        "format_version": FORMAT_VERSION,
        **settings.as_dict(),
        "not_synchronised": catalog.get(settings.dataset).not_synchronised,
        "versions": {name: importlib.metadata.version(name) for name in ("av", "opencv-python-headless")},
        "counts": {
            "videos_in": len(listing.videos),
            "files_in": len(listing.num_bytes),
            "takes_in": len({video.take for video in listing.videos}),
            "bytes_in": sum(listing.num_bytes.values()),
            "videos": len(views),
            "takes": len(views["take"].unique()),
            "frames": pc.sum(views["num_frames"]).as_py() or 0,
            "bytes": sum(shard["bytes"] for shard in shard_list),
            "quarantined": len(quarantined) - len(aside),
            "unreadable": len(listing.unreadable),
            "labels_refused": len(listing.refused),
            "labels_changed": len(listing.changed),
            "unmatched": len(listing.unmatched),
            "duplicates": len(listing.files.duplicates),
            "passed_over": dict(sorted(listing.files.passed_over.items())),
            "several_tracks": pc.sum(pc.greater(views["video_tracks"], 1)).as_py() or 0,
            "gap_frames": pc.sum(views["gap_frames"]).as_py() or 0,
        },
        "shards": shard_list,
    }
    shards.write_atomically(output_dir / "prepared.json", json.dumps(prepared, indent=1).encode())
    shards.write_atomically(output_dir / digests.NAME, digests.table(output_dir, known=sha256).encode())
    return prepared | {"quarantined": quarantined, "unmatched": listing.unmatched}


def _write_manifest(views: pa.Table, output_dir: Path) -> None:
    views = views.add_column(2, "record", pa.array(range(len(views)), pa.int64()))
    manifest = io.BytesIO()
    pq.write_table(views, manifest)
    shards.write_atomically(output_dir / "manifest.parquet", manifest.getvalue())


def _write_frame_index(jobs: Sequence[shards.Job], num_frames: int, output_dir: Path) -> None:
    """Joins the shards' tables, which need not fit into memory together."""
    parts = [output_dir / shards.PARTS / job.index_name for job in jobs]
    header = {"descr": np.lib.format.dtype_to_descr(frame_index.ENTRY), "fortran_order": False, "shape": (num_frames,)}
    with shards.atomic_file(output_dir / frame_index.NAME) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.load(part).tobytes())


def _write_table(name: str, columns: Sequence[str], rows: Sequence[dict], output_dir: Path) -> None:
    table = io.StringIO()
    tables.write(table, columns, rows)
    shards.write_atomically(output_dir / name, table.getvalue().encode(errors="backslashreplace"))


def _write_tfds_metadata(settings: shards.Settings, shard_list: Sequence[dict], output_dir: Path) -> None:
    split = tfds.core.SplitInfo(
        name=shards.SPLIT,
        shard_lengths=[shard["records"] for shard in shard_list],
        num_bytes=sum(shard["bytes"] for shard in shard_list),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output_dir,
        features=shards.FEATURES,
        split_infos=[split],
        version="1.0.0",
        check_data=False,  # the check needs TensorFlow
        description=f"{settings.dataset}: one record per view, frames as {settings.codec}.",
    )


def verify(directory: Path) -> list[str]:
    """Compares every file of a prepared set with its digest.

    Returns:
      One line per damaged or missing file; for a shard it names the takes that cannot be read. Empty if all is intact.

    Raises:
      PreparationError: there are no digests to compare with.
    """
    if not (directory / digests.NAME).is_file():
        raise PreparationError(f"no finished preparation in {directory}: {directory / digests.NAME} is missing")
    damage = []
    for name, problem in digests.check(directory, show_progress=True).items():
        in_shard = problem == "damaged" and ".array_record-" in name
        takes = f"; takes {', '.join(_damaged_takes(directory / name))}" if in_shard else ""
        damage.append(f"{name}: {problem}{takes}")
    return damage


def _damaged_takes(shard: Path) -> list[str]:
    """The takes with a changed record; all takes of the shard if the damage lies outside the records."""
    part = shard.parent / shards.PARTS / f"{shard.name.partition('.array_record-')[2]}.json"
    try:
        rows = json.loads(part.read_bytes())["records"]
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
