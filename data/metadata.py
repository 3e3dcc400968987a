"""The files of a prepared set beside its shards."""

import csv
import dataclasses
import importlib.metadata
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from data import shards
from data.listing import Listing

FORMAT_VERSION = 1

MANIFEST_SCHEMA = pa.schema(
    [
        ("take", pa.string()),
        ("view", pa.string()),
        ("record", pa.int64()),
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("label", pa.int32()),
        ("subject", pa.int32()),
        ("setup", pa.int32()),
        ("camera", pa.int32()),
        ("performance", pa.int32()),
        ("checksum", pa.uint32()),  # CRC-32 of the record's bytes
    ]
)


def write(settings: shards.Settings, listing: Listing, accounts: Sequence[dict], output_dir: Path) -> dict:
    """Writes everything beside the shards; prepared.json, which makes the set a finished one, last but for the digests.

    Returns:
      What prepared.json says, with the lists `quarantine` (path, take, reason) and `unmatched` added.
    """
    rows = [row for account in accounts for row in account["records"]]
    quarantined = [entry for account in accounts for entry in account["quarantined"]]
    columns = {name: [row[name] for row in rows] for name in MANIFEST_SCHEMA.names if name != "record"}
    columns["record"] = list(range(len(rows)))
    manifest = io.BytesIO()
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), manifest)
    shards.write_atomically(output_dir / "manifest.parquet", manifest.getvalue())
    table = io.StringIO()
    writer = csv.DictWriter(table, ["path", "take", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(quarantined)
    shards.write_atomically(output_dir / "quarantine.csv", table.getvalue().encode())
    _write_tfds_metadata(settings, accounts, output_dir)
    prepared = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(settings),
        "versions": {name: importlib.metadata.version(name) for name in ("av", "opencv-python-headless")},
        "counts": {
            "videos_in": len(listing.videos),
            "takes_in": len({video.take for video in listing.videos}),
            "videos": len(rows),
            "takes": len({row["take"] for row in rows}),
            "frames": sum(row["num_frames"] for row in rows),
            "quarantined": len(quarantined),
            "unmatched": len(listing.unmatched),
            "bytes_in": sum(listing.num_bytes),
            "bytes": sum(account["bytes"] for account in accounts),
        },
        "shards": [
            {"file": account["file"], "records": len(account["records"]), "bytes": account["bytes"]}
            for account in accounts
        ],
    }
    shards.write_atomically(output_dir / "prepared.json", json.dumps(prepared, indent=1).encode())
    _write_digests(accounts, output_dir)
    return prepared | {"quarantine": quarantined, "unmatched": listing.unmatched}


def _write_tfds_metadata(settings: shards.Settings, accounts: Sequence[dict], output_dir: Path) -> None:
    split = tfds.core.SplitInfo(
        name=shards.SPLIT,
        shard_lengths=[len(account["records"]) for account in accounts],
        num_bytes=sum(account["bytes"] for account in accounts),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output_dir,
        features=shards.FEATURES,
        split_infos=[split],
        version="1.0.0",
        check_data=False,  # the check needs TensorFlow
        description=f"{settings.dataset}: one record per view, frames as {settings.codec}.",
    )


def _write_digests(accounts: Sequence[dict], output_dir: Path) -> None:
    """SHA256SUMS, in the form of coreutils' sha256sum; the shards' digests are known from their making."""
    digests = {account["file"]: account["sha256"] for account in accounts}
    others = [path for path in output_dir.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in others:
        name = path.relative_to(output_dir).as_posix()
        if name not in digests and name != "SHA256SUMS":
            digests[name] = shards.sha256_of(path)[0]
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    shards.write_atomically(output_dir / "SHA256SUMS", lines.encode())
