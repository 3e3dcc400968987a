"""An opened data set: which views are trained on, which takes are held out, and what a sample looks like."""

import dataclasses
import hashlib

import numpy as np
from ml_collections import config_dict

from console.errors import UserError
from data import clips
from data.store import buffers, takes
from data.store.joined import open_sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """What the pipeline reads from."""

    prepared: takes.Prepared  # the shards and the manifest
    spec: clips.ClipSpec  # what a sample looks like
    train: clips.TakeViews  # the takes to train on and their (take, target view) elements
    held_out: clips.TakeViews | None  # the takes for reconstruction metrics, or None where there are none

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict) -> "Dataset":
        """Opens `config.data.dir`. Reads the manifest but scans no shards. Needs neither JAX nor grain.

        Raises:
          ValueError: not a prepared set, an unknown protocol, or views that cannot form a sample, for instance because
            they are not synchronised.
        """
        data = config.data
        spec = clips.ClipSpec.from_config(config)
        prepared = open_sets(data.dir).of_protocol(data.protocol).of_classes(data.get("classes", ()))
        if spec.num_source_views and prepared.not_synchronised:
            raise UserError(
                f"The views of {prepared.name} cannot be trained on as pairs: {prepared.not_synchronised}. Use it for "
                "transfer, or pre-train on single views with data.num_source_views=0 and model.cross_view=False."
            )
        rows = prepared.split_of(data.protocol) == "train"
        if prepared.some_classes and not rows.any():
            raise UserError(
                f"data.classes = {', '.join(prepared.class_names)}: no video of these is in the training split of "
                f"data.protocol={data.protocol!r} in {prepared.directory}."
            )
        train_rows, held_out_rows = hold_out(prepared, rows, data.holdout_fraction)
        held_out = None
        if held_out_rows.any():
            held_out = clips.pair_views(prepared.views, held_out_rows, spec, held_out=True)
        train = clips.pair_views(prepared.views, train_rows, spec)
        prepared = keep_frames(prepared, rows, data)
        return cls(prepared=prepared, spec=spec, train=train, held_out=held_out)

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch: one pass over the (take, target view) elements, `repeats` crops of each."""
        return len(self.train.elements) * self.spec.repeats


def keep_frames(
    prepared: takes.Prepared, rows: np.ndarray, data: config_dict.ConfigDict, *, also_pixels: bool = False
) -> takes.Prepared:
    """Keeps the frames of some rows in memory if `data.cache` and `data.cache_gb` say so; see `Prepared.in_memory`.

    Raises:
      ValueError: data.cache is 'memory', and they do not fit, or reading processes cannot share memory on this system.
    """
    mode = data.get("cache", "off")  # runs from before have no such key
    if mode == "off":
        return prepared
    if data.num_workers and not buffers.SHAREABLE:
        if mode == "memory":
            raise UserError(
                f"data.cache='memory' with data.num_workers={data.num_workers}: processes cannot share frames on this "
                "system. Set data.num_workers=0, which reads in threads."
            )
        return prepared
    return prepared.in_memory(rows, data.cache_gb, required=mode == "memory", also_pixels=also_pixels)


def split_of_run(prepared: takes.Prepared, data: config_dict.ConfigDict) -> np.ndarray:
    """'train', 'held_out', 'test' or '' of each row, as a run with this section `data` splits a set; str[rows].

    Raises:
      ValueError: the set has no such protocol or classes.
    """
    used = (prepared.whole or prepared).of_protocol(data.protocol).of_classes(data.get("classes", ()))
    split = used.split_of(data.protocol).astype("U8")
    split[hold_out(prepared, split == "train", data.get("holdout_fraction", 0.0))[1]] = "held_out"
    return split


def hold_out(prepared: takes.Prepared, rows: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts whole takes off `rows`: (kept, held out), both bool[rows].

    Takes are ranked by a digest of their names, so the choice is the same in every run and barely moves when the set
    grows. At least one take is held out where there are two or more, and none for a fraction of 0. Raises ValueError if
    none is kept.
    """
    kept_rows = np.flatnonzero(rows)
    names, take_of_row = clips.group(prepared.views["take"], kept_rows)
    wanted = max(1, round(fraction * len(names))) if fraction > 0 and len(names) > 1 else 0
    if wanted and wanted == len(names):
        raise UserError(f"data.holdout_fraction = {fraction:g} leaves no take of {len(names)} to train on: lower it.")
    held_out = np.zeros(len(rows), bool)
    if wanted:
        digests = np.fromiter((hashlib.sha256(name.encode()).digest() for name in names), "V32", len(names))
        ranked = np.argsort(digests)
        held_out[kept_rows] = np.isin(take_of_row, ranked[:wanted])
    return rows & ~held_out, held_out
