"""Several prepared sets as one: the records of the first, then those of the second, and so on."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from console.errors import UserError
from data.store import takes
from data.store.directories import directories
from data.store.manifest import Columns
from data.store.takes import Prepared
from data.store.truth import Truth

_SHOWN = 5  # of a list in a message


def open_sets(named: str | os.PathLike | Sequence[str]) -> Prepared:
    """Opens what `data.dir` names; a single set is opened by `takes.open_prepared` and no more.

    Raises:
      ValueError: as of `takes.open_prepared`; or the sets are of different data sets, classes or codecs, one is named
        twice, or two hold the same take.
    """
    folders = directories(named)
    if len(folders) == 1:
        return takes.open_prepared(folders[0])
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise UserError(f"data.dir = {','.join(folders)} names a set twice: leave it out once.")
    sets = [takes.open_prepared(folder) for folder in folders]
    for other in sets[1:]:
        _check_agreement(sets[0], other)
    counts = [len(one.views["record"]) for one in sets]
    first = [sum(counts[:i]) for i in range(len(sets))]
    subject_names, subjects = _subjects(sets)
    of_sets = [one.views for one in sets]
    names = [name for name in of_sets[0] if all(name in views for views in of_sets)]
    views = Columns(names, functools.partial(_column, of_sets, first, subjects))
    _check_takes(sets)
    truths = [one.truth for one in sets]
    return dataclasses.replace(
        sets[0],
        directory=",".join(folders),
        parts=tuple(zip(folders, first, strict=True)),
        subject_names=subject_names,
        views=views,
        stored={folder: one.stored[one.directory] for folder, one in zip(folders, sets, strict=True)},
        truth=_joined_truth(truths, views) if all(truths) else None,
    )


def _check_agreement(one: Prepared, other: Prepared) -> None:
    both = f"data.dir names {one.directory} and {other.directory}, which are used as one set only if they agree: "
    advice = " Name one of them, or prepare their videos into one set (--add puts more into it)."
    if one.name != other.name:
        raise UserError(f"{both}they are prepared as {one.name} and as {other.name}.{advice}")
    if one.class_names != other.class_names:
        apart = [
            f"{len(found)} only in {where.directory} ({', '.join(found[:_SHOWN])})"
            for where, there in ((one, other), (other, one))
            if (found := [name for name in where.class_names if name not in there.class_names])
        ]
        raise UserError(f"{both}their classes differ, {' and '.join(apart) or 'in their order'}.{advice}")
    if one.codec != other.codec:
        raise UserError(f"{both}their frames are stored as {one.codec} and as {other.codec} (--codec).{advice}")


def _check_takes(sets: Sequence[Prepared]) -> None:
    where: dict[str, str] = {}
    for one in sets:
        found = np.unique(one.views["take"]).tolist()
        twice = [take for take in found if take in where]
        if twice:
            raise UserError(
                f"{len(twice)} takes are in {where[twice[0]]} and in {one.directory}: {', '.join(twice[:_SHOWN])}. "
                "Leave one of the sets out; where these are different recordings, prepare them with names that tell "
                "them apart (more of the path in --pattern)."
            )
        where |= dict.fromkeys(found, one.directory)


def _subjects(sets: Sequence[Prepared]) -> tuple[tuple[str, ...], list[np.ndarray | None]]:
    """The names of all subjects, and of each set their numbers; none and None where subjects are no names of a set.

    Subjects whose names are not known are taken for different people.
    """
    if not any(one.subject_names for one in sets):
        return (), [None] * len(sets)
    of_set = [
        one.subject_names or [f"{one.directory}\0{i}" for i in range(int(one.views["subject"].max(initial=-1)) + 1)]
        for one in sets
    ]
    joint = {name: number for number, name in enumerate(sorted(set().union(*of_set)))}
    return tuple(joint), [np.array([joint[name] for name in names] + [-1], np.int32) for names in of_set]


def _column(
    of_sets: Sequence[Mapping], first: Sequence[int], subjects: Sequence[np.ndarray | None], name: str
) -> np.ndarray:
    """A column that all sets have, one set behind the other."""
    columns = [views[name] for views in of_sets]
    if name == "record":
        columns = [column + number for column, number in zip(columns, first, strict=True)]
    if name == "subject":
        found = zip(columns, subjects, strict=True)
        columns = [column if numbers is None else numbers[column] for column, numbers in found]
    return np.concatenate(columns)


def _joined_truth(truths: Sequence[Truth], views: Mapping[str, np.ndarray]) -> Truth:
    """Raises ValueError where their joints are others."""
    one = truths[0]
    for other in truths[1:]:
        if (other.joint_names, other.edges, other.root) != (one.joint_names, one.edges, one.root):
            raise UserError(f"{one.directory} and {other.directory} know different joints: name one of the sets.")
    return _JoinedTruth(
        **{f.name: getattr(one, f.name) for f in dataclasses.fields(one)} | {"views": views, "of_sets": tuple(truths)}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _JoinedTruth(Truth):
    of_sets: tuple[Truth, ...]

    @functools.cached_property
    def _first(self) -> np.ndarray:
        ends = np.cumsum([0, *(len(one._facing) for one in self.of_sets)])
        return np.concatenate([one._first + int(end) for one, end in zip(self.of_sets, ends, strict=False)])

    @functools.cached_property
    def _joints(self) -> np.ndarray:
        return np.concatenate([one._joints for one in self.of_sets])

    @functools.cached_property
    def _facing(self) -> np.ndarray:
        return np.concatenate([one._facing for one in self.of_sets])

    @functools.cached_property
    def _cameras(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([one._cameras[name] for one in self.of_sets]) for name in self.of_sets[0]._cameras}
