"""Labelled views as separate clips: what fine-tuning and probes train on, validate on and test on."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from ml_collections import config_dict

from console import progress
from console.errors import UserError
from data import augment, catalog, clips
from data.dataset import hold_out, keep_frames
from data.store import takes
from data.store.joined import open_sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledDataset:
    """Single views as separate clips, with labels."""

    prepared: takes.Prepared  # the shards and the manifest
    spec: clips.ClipSpec  # what a sample looks like; `num_source_views` is 0
    train: np.ndarray  # int64[...], ascending manifest rows to train on
    held_out: np.ndarray  # int64[...], rows of whole takes cut off the training split, for validation; may be empty
    test: np.ndarray  # int64[...], rows of the protocol's test split
    class_names: tuple[str, ...]  # in the order of the labels
    # Of the training clips.
    augmentation: augment.Augmentation = dataclasses.field(default_factory=augment.Augmentation)
    clips_per_view: int = 1  # temporal clips of a view at test
    crops_per_clip: int = 1  # spatial crops of a clip at test, 1 or 3

    def __post_init__(self):
        clips.spread_positions(self.clips_per_view)  # refuses a wrong number now, not after the training
        clips.spread_crops(self.crops_per_clip)

    @classmethod
    def from_config(cls, config: config_dict.ConfigDict) -> "LabelledDataset":
        """Opens `config.data.dir` and splits it by `config.data.protocol`. Reads only the manifest; needs no JAX.

        A probe's config has no augmentation; the keys that it lacks are switched off.

        Takes are held out before anything else is left out. With the same protocol and fraction they are therefore the
        takes that pre-training held out. Rows without a label are left out.

        Raises:
          ValueError: not a prepared set, an unknown protocol, a protocol without a test split, no labels, views that
            the training split lacks, fine-tuning on a single class, more labels asked for than there are, flips where
            left and right matter, or an impossible augmentation, number of clips or number of crops.
        """
        data = config.data
        spec = clips.ClipSpec.from_config(config, num_source_views=0)
        augmentation = augment.Augmentation(**config.get("augment", {}))
        prepared = open_sets(data.dir).of_protocol(data.protocol).of_classes(data.get("classes", ()))
        mirrored = augment.has_left_right(prepared.class_names)
        if augmentation.flip > 0 and mirrored:
            raise UserError(
                f"augment.flip={augmentation.flip}, but a mirror image changes the class of {len(mirrored)} of the "
                f"{len(prepared.class_names)} classes of {prepared.name}, e.g. {', '.join(map(repr, mirrored[:3]))}. "
                "Set augment.flip=0."
            )
        classifies = config.task != "probe" or not set(config.probe.kinds) <= {"retrieval", "geometry", "motion"}
        if classifies:
            _check_classes(prepared, np.flatnonzero(prepared.views["label"] >= 0), "there")
        train, held_out, test = split_rows(
            prepared, data.protocol, data.get("holdout_fraction", 0.0), tuple(data.train_views), needs_labels=classifies
        )
        if data.labels_per_class is not None:
            train = choose_labels(
                prepared.views, train, data.labels_per_class, seed=data.label_seed, class_names=prepared.class_names
            )
        if classifies:
            _check_classes(prepared, train, "to train on")
            _warn_of_classes(prepared, train, held_out if config.eval.get("split") == "held_out" else test)
        _warn_of_people(prepared, data.protocol, train, test)
        used = np.concatenate([train, held_out, test])
        return cls(
            # Augmentations need pixels.
            prepared=keep_frames(prepared, used, data, also_pixels=config.task == "finetune"),
            spec=spec,
            train=train,
            held_out=held_out,
            test=test,
            class_names=prepared.class_names,
            augmentation=augmentation,
            clips_per_view=config.eval.clips_per_view,
            crops_per_clip=config.eval.get("crops_per_clip", 1),
        )

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch: one pass over the training views, `repeats` crops of each."""
        return len(self.train) * self.spec.repeats

    @property
    def num_classes(self) -> int:
        """Classes of the data set, or of the protocol where that has fewer, whether or not all occur in a split."""
        return len(self.class_names)


def split_rows(
    prepared: takes.Prepared,
    protocol: str,
    holdout_fraction: float,
    train_views: tuple[str, ...] = (),
    *,
    needs_labels: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labelled manifest rows to train on, to validate on (whole takes of the training split), and to test on.

    Args:
      holdout_fraction: share of the training split's takes to validate on, of all takes, labelled or not.
      train_views: the views to train and validate on; empty means all that the training split has.
      needs_labels: False keeps rows without a label, for tasks that need none (retrieval, 3D pose).

    Returns:
      Three int64[...], ascending.

    Raises:
      ValueError: an unknown protocol, one without a test split, no labels, or views that the training split lacks.
    """
    split = prepared.split_of(protocol)
    for name in ("train", "test"):
        if prepared.some_classes and not (split == name).any() and (prepared.splits(protocol) == name).any():
            raise UserError(f"data.classes leaves no view in the {name} split of {protocol!r}: name others.")
    if not (split == "test").any():
        raise UserError(
            f"data.protocol={protocol!r} leaves nothing of {prepared.directory} to test on: of {len(split)} views "
            f"{np.sum(split == 'train')} are for training. Choose another protocol of {prepared.name} "
            f"({', '.join(sorted(catalog.get(prepared.name).protocols))}), or prepare the missing part of the set."
        )
    labelled = (prepared.views["label"] >= 0) | (not needs_labels)
    for name in ("train", "test"):
        if not (labelled & (split == name)).any():
            raise UserError(
                f"{prepared.directory} has no labels: none of the {np.sum(split == name)} views in the {name} split of "
                f"{prepared.name}'s protocol {protocol!r} has a class. Prepare a set whose file names or annotations "
                "tell the class (for --dataset=folder: a pattern with {label})."
            )
    view = prepared.views["view"]
    there = np.unique(view[split == "train"]).tolist()
    if missing := sorted(set(train_views) - set(there)):
        raise UserError(
            f"data.train_views names {', '.join(missing)}, but the views of the training split are {', '.join(there)}."
        )
    seen = labelled & (np.isin(view, train_views) if train_views else True)
    train, held_out = hold_out(prepared, split == "train", holdout_fraction)
    train_rows = np.flatnonzero(train & seen)
    if len(train_rows) == 0:
        raise UserError(
            f"nothing is left to train on: data.holdout_fraction={holdout_fraction} and data.train_views={train_views} "
            f"take all {np.sum(labelled & (split == 'train'))} labelled views of the training split. Hold out less."
        )
    return train_rows, np.flatnonzero(held_out & seen), np.flatnonzero((split == "test") & labelled)


def _check_classes(prepared: takes.Prepared, rows: np.ndarray, which: str) -> None:
    """Raises ValueError if these rows have one class only, which leaves nothing to tell apart."""
    found = np.unique(prepared.views["label"][rows]).tolist()
    if len(found) == 1:
        name, num_classes = prepared.class_names[found[0]], len(prepared.class_names)
        raise UserError(
            f"Nothing to tell apart: all {len(rows)} views of {prepared.directory} {which} are of one class, "
            f"{name!r} ({num_classes} in the set). A classifier needs two classes at least: choose another set, "
            "data.protocol, data.classes or data.train_views."
        )


def _warn_of_classes(prepared: takes.Prepared, train: np.ndarray, test: np.ndarray) -> None:
    """Says which classes of the rows that are measured have no example to train on, and if they are of one class."""
    label = prepared.views["label"]
    tested = np.unique(label[test])
    if len(unknown := np.setdiff1d(tested, label[train])):
        names = ", ".join(repr(prepared.class_names[index]) for index in unknown[:3].tolist())
        progress.say(
            f"warning: {np.isin(label[test], unknown).sum()} of {len(test)} views to test on are of {len(unknown)} "
            f"class(es) without a view to train on, e.g. {names}: they count as errors."
        )
    if len(tested) == 1:
        progress.say(f"warning: all {len(test)} views to test on are of class {prepared.class_names[tested[0]]!r}.")


def _warn_of_people(prepared: takes.Prepared, protocol: str, train: np.ndarray, test: np.ndarray) -> None:
    """Says if `random` takes show people in both splits. Protocols with other intentions do so on purpose."""
    subject = prepared.views["subject"]
    both = np.intersect1d(subject[train], subject[test][subject[test] >= 0])
    if protocol == "random" and len(both):
        other = " data.protocol='xsub' tests other people." if "xsub" in catalog.get(prepared.name).protocols else ""
        progress.say(f"warning: under data.protocol='random' {len(both)} people are in both splits.{other}")


def choose_labels(
    views: Mapping[str, np.ndarray], rows: np.ndarray, labels_per_class: int, *, seed: int, class_names: tuple[str, ...]
) -> np.ndarray:
    """The rows of `labels_per_class` takes of each class: the few-label setting.

    A take counts as one label, whatever its number of views, because it was labelled once. Takes are ranked by a digest
    of seed and name. The choice for k is therefore a part of the choice for k + 1 and does not depend on the manifest's
    order.

    Args:
      views: the manifest's columns; `take` and `label` are used.
      rows: int64[...], ascending, all with a label; the result is among them, and ascending.

    Raises:
      ValueError: fewer than one take asked for, or more than a class has.
    """
    if labels_per_class < 1:
        raise UserError(f"data.labels_per_class={labels_per_class}: at least 1, or None for all.")
    take, label = views["take"][rows], views["label"][rows]
    if (label < 0).any():
        raise UserError(
            f"data.labels_per_class={labels_per_class}, but {np.sum(label < 0)} of {len(rows)} views have no label. "
            "Leave it out: what is asked for here needs no labels."
        )
    chosen = []
    for index in np.unique(label).tolist():
        names = np.unique(take[label == index]).tolist()
        if len(names) < labels_per_class:
            raise UserError(
                f"data.labels_per_class={labels_per_class}, but class {class_names[index]!r} has only {len(names)} "
                "take(s) to train on (held-out takes not counted). Ask for fewer."
            )
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        chosen += ranked[:labels_per_class]
    return rows[np.isin(take, chosen)]
