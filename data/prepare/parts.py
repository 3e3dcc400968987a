"""The parts that a prepared set has grown by: one for each command that has put files into it, a TFDS split each.

The output folder holds, for each part,
  plan.json, plan-takes_2.json, ...      what it is made of, and how; written first
  inputs.json, inputs-takes_2.json, ...  its shards, and what was found in its input; written when it is finished
A part's shards are never touched when another is added, so its raw videos may be gone by then.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from data import catalog
from data.catalog import Video
from data.prepare import preparation_report, shards
from data.prepare.options import Settings
from data.recordings import raw_files
from data.recordings.listing import Listing, PreparationError
from data.store.takes import FORMAT_VERSION
from data.store.whole_files import write_whole

# Of `found`.
_COUNTS = ("videos_in", "files_in", "takes_in", "bytes_in", "unreadable", "labels_refused", "labels_changed")
_COUNTS += ("unmatched", "duplicates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What a part is made of, and how."""

    split: str  # of TFDS
    settings: Mapping  # as of `Settings.as_dict`
    takes: Sequence[str]  # sorted
    subject_names: Sequence[str] = ()  # in the order of the subjects' numbers, where file names tell these

    @classmethod
    def of(cls, split: str, settings: Settings, videos: Sequence[Video], names: catalog.Catalog) -> "Part":
        """A preparation's part."""
        takes = sorted({video.take for video in videos})
        plain = json.loads(json.dumps(settings.as_dict()))
        return cls(split=split, settings=plain, takes=takes, subject_names=getattr(names, "subject_names", ()))

    def write(self, output_dir: Path) -> None:
        """Writes its plan."""
        plan = {"format_version": FORMAT_VERSION, "settings": self.settings, "takes": self.takes}
        plan |= {"subject_names": self.subject_names} if self.subject_names else {}
        write_whole(_path(output_dir, "plan", self.split), json.dumps(plan, indent=1), durable=True)


def _path(output_dir: Path, what: str, split: str) -> Path:
    """Path of a part's plan or inputs file."""
    return output_dir / (f"{what}.json" if split == shards.SPLIT else f"{what}-{split}.json")


def _split(number: int) -> str:
    """The split of part 1, 2, ..."""
    return shards.SPLIT if number == 1 else f"{shards.SPLIT}_{number}"


def read_plans(output_dir: Path) -> list[Part]:
    """The parts of a set in their order, the last of which may not be finished.

    Raises:
      PreparationError: a plan is damaged, or of another version.
    """
    found = []
    while (path := _path(output_dir, "plan", split := _split(len(found) + 1))).exists():
        try:
            plan = json.loads(path.read_bytes())
            version, settings, takes = int(plan["format_version"]), dict(plan["settings"]), list(plan["takes"])
            subject_names = tuple(plan.get("subject_names", ()))
        except (ValueError, KeyError, TypeError) as error:
            raise PreparationError(f"{path} is damaged ({error}): delete it and give the command again") from error
        if version != FORMAT_VERSION:
            raise PreparationError(
                f"{output_dir} was prepared by another version of this program. {_advice(output_dir)}"
            )
        found.append(Part(split=split, settings=settings, takes=takes, subject_names=subject_names))
    return found


def is_finished(output_dir: Path, split: str) -> bool:
    """Whether the set holds the part."""
    return _path(output_dir, "inputs", split).exists()


_NAMED_BY = {"clock": "clock (--sync, --fps)"}  # settings that are not called as their options


def check_same(before: Part, now: Part, output_dir: Path) -> None:
    """Raises PreparationError where a part was, or another one is, to be made in another way.

    `before` is as its plan says. If the splits are the same, they are one part; else the second is an addition.
    """
    other_takes = set(now.takes) != set(before.takes)
    named_by_files = catalog.get(now.settings["dataset"]).classes_from_files and other_takes
    differences = [
        f"{_NAMED_BY.get(key, key)} was {before.settings.get(key)!r}, now {now.settings.get(key)!r}"
        for key in {**now.settings, **before.settings}
        if before.settings.get(key) != now.settings.get(key) and not (key == "class_names" and named_by_files)
    ]
    if differences:
        listed = "; ".join(differences)
        raise PreparationError(f"{output_dir} was prepared with other settings: {listed}. {_advice(output_dir)}")
    new, gone = sorted(set(now.takes) - set(before.takes)), sorted(set(before.takes) - set(now.takes))
    if now.split == before.split and (new or gone):
        examples = ", ".join((new + gone)[: preparation_report.SHOWN])
        add = "--add puts further takes into it. " if new else ""
        raise PreparationError(
            f"{output_dir} was prepared from other takes: {len(new)} are new, {len(gone)} gone ({examples}). {add}"
            f"{_advice(output_dir)}"
        )


def _advice(output_dir: Path) -> str:
    return f"Choose another --output, or delete {output_dir} if it is no longer wanted"


def choose(output_dir: Path, listing: Listing) -> tuple[str, Listing]:
    """The split that files become which are added to a set, and the listing without the takes that it holds.

    The same files continue with the part that they began.

    Raises:
      PreparationError: the set is not finished, holds a take without one of its views or of other files, or all takes,
        or another addition was interrupted.
    """
    plans = read_plans(output_dir)
    there = {video.take for video in listing.videos}
    new = there - {take for part in plans for take in part.takes}
    unfinished = [part for part in plans if not is_finished(output_dir, part.split)]
    going_on = [part for part in reversed(unfinished or plans) if there >= set(part.takes) and not new]
    if unfinished and not going_on:
        part = unfinished[-1]
        files = f"{_path(output_dir, 'plan', part.split)}, parts/{part.split}-* and *-{part.split}.array_record-*"
        leave = f", or delete {files} to leave it" if part.split != shards.SPLIT else ""
        raise PreparationError(
            f"{output_dir} was interrupted while {preparation_report.count(len(part.takes), 'take')} "
            f"({', '.join(part.takes[:3])}, ...) were prepared: give that command again first{leave}"
        )
    if not unfinished:
        _check_views(output_dir, plans, listing)
    if going_on:
        return going_on[0].split, _restricted(listing, set(going_on[0].takes))
    if not new:
        raise PreparationError(f"nothing to add: all {len(there)} takes are in {output_dir}")
    return _split(len(plans) + 1), _restricted(listing, new)


def _check_views(output_dir: Path, plans: Sequence[Part], listing: Listing) -> None:
    """Refuses further views of takes that were prepared or set aside, and other files of their views."""
    sources: dict[tuple[str, str], Mapping] = {}
    for account in (account for part in plans for account in accounts(output_dir, part.split)):
        of_path = account["sources"]
        sources |= {(row["take"], row["view"]): of_path[row["path"]] for row in account["records"]}
        for entry in account["quarantined"]:  # which knows a view by the name of its file
            sources[entry["take"], PurePath(entry["path"]).name] = of_path[entry["path"]]
    takes, kept = {take for part in plans for take in part.takes}, {}
    for video in (video for video in listing.videos if video.take in takes):
        key = video.take, video.view
        key = key if key in sources else (video.take, PurePath(video.path).name)
        if key not in sources:
            raise PreparationError(
                f"{output_dir} was prepared from take {video.take} without its view {video.view}, which cannot be "
                f"added: the views of a take are prepared together. Prepare another set, or leave {video.path} out"
            )
        kept[video.path] = sources[key]
    frames_fps = plans[0].settings.get("frames_fps") if plans else None
    others = raw_files.changed(kept, listing.num_bytes, listing.files.root, frames_fps)
    if not others:
        return
    takes = sorted({video.take for video in listing.videos if video.path in others})
    before, now = kept[others[0]]["bytes"], listing.num_bytes[others[0]]
    how = f"{now} bytes, formerly {before}" if now != before else "other content"
    raise PreparationError(
        f"{output_dir} made {preparation_report.count(len(takes), 'take')} of other files than are here by these names "
        f"({', '.join(takes[: preparation_report.SHOWN_IN_MESSAGE])}), e.g. {others[0]} ({how}). If they are further "
        "takes, give them names of their own; if they replace the former ones, prepare the set anew; else leave them "
        "out of the input"
    )


def _restricted(listing: Listing, takes: set[str]) -> Listing:
    videos = tuple(video for video in listing.videos if video.take in takes)
    paths = {video.path for video in videos}
    sizes = {path: size for path, size in listing.num_bytes.items() if path in paths}
    return dataclasses.replace(listing, videos=videos, num_bytes=sizes)


def with_own_names(names: catalog.Catalog, listing: Listing) -> tuple[catalog.Catalog, Listing]:
    """As given, but classes and subjects that file names tell are numbered among those of the listing alone."""
    if not names.classes_from_files:
        return names, listing
    labels, subjects = (sorted({getattr(video, of) for video in listing.videos} - {-1}) for of in ("label", "subject"))
    videos = tuple(
        dataclasses.replace(
            video,
            label=labels.index(video.label) if video.label >= 0 else -1,
            subject=subjects.index(video.subject) if video.subject >= 0 else -1,
        )
        for video in listing.videos
    )
    class_names = tuple(names.class_names[label] for label in labels)
    subject_names = tuple(names.subject_names[subject] for subject in subjects)
    return type(names)(names.pattern, class_names, subject_names), dataclasses.replace(listing, videos=videos)


def found(listing: Listing) -> dict:
    """What of a listing is told of a finished part."""
    files, refused = listing.files, listing.refused
    same = [(path, f"the same bytes as {used}, which is used") for path, used in files.duplicates]
    counts = [len(listing.videos), len(listing.num_bytes), len({video.take for video in listing.videos})]
    counts += [sum(listing.num_bytes.values()), len(files.unreadable), len(refused), len(listing.changed)]
    counts += [len(listing.unmatched), len(files.duplicates)]
    return {
        "aside": [[*entry] for entry in (*files.unreadable, *refused)],
        "unmatched": [[*entry] for entry in (*listing.unmatched, *same)],
        "passed_over": dict(sorted(files.passed_over.items())),
        "counts": dict(zip(_COUNTS, counts, strict=True)),
    }


def finish(output_dir: Path, split: str, files: Sequence[str], facts: dict) -> None:
    """Writes which shards a part has, and what was found in its input."""
    text = json.dumps({"shards": list(files), **facts}, indent=1)
    write_whole(_path(output_dir, "inputs", split), text, durable=True)


def inputs(output_dir: Path, split: str) -> dict:
    """As written by `finish`. Raises PreparationError where it is damaged."""
    path = _path(output_dir, "inputs", split)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PreparationError(f"{path} cannot be read ({error}): the set cannot grow without it") from error


def accounts(output_dir: Path, split: str) -> list[dict]:
    """Those of the shards of a finished part. Raises PreparationError where one is missing or damaged."""
    found = []
    for shard in inputs(output_dir, split)["shards"]:
        account = shards.read_account(shard, output_dir)
        if account is None:
            raise PreparationError(
                f"{output_dir / shard}, or what parts/ says of it, is damaged: give the command again that made it"
            )
        found.append(account)
    return found
