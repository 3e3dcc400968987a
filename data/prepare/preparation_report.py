"""What a preparation prints: before the work what will not be used, at the end what was used, left out or set aside."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data import catalog
from data.recordings import raw_files
from data.recordings.listing import Listing, passed_over

SHOWN = 10  # entries of a list
SHOWN_IN_MESSAGE = 5  # the same, within a sentence or an error


def report(prepared: dict, output_dir: Path) -> str:
    """The report at the end: what was used, left out or set aside."""
    counts, static = prepared["counts"], prepared["static"]
    tracks = counts["several_tracks"]
    quarantined = [f"{entry['path']}: {entry['reason']}" for entry in prepared["quarantined"]]
    where = f", listed with reasons in {output_dir / 'quarantine.csv'}:" if quarantined else ""
    labels = f" and {count(counts['labels_refused'], 'label')}" if counts["labels_refused"] else ""
    unreadable = f" and {count(counts['unreadable'], 'file')} not to be read" if counts["unreadable"] else ""
    lines = [
        f"in:    {count(counts['videos_in'], 'video')} of {count(counts['takes_in'], 'take')}, "
        f"{counts['bytes_in'] / 1e6:.1f} MB",
        f"out:   {count(counts['videos'], 'video')} of {count(counts['takes'], 'take')}, {counts['frames']} frames, "
        f"{counts['bytes'] / 1e6:.1f} MB in {count(len(prepared['shards']), 'shard')}: {output_dir}",
        f"aside: {count(counts['quarantined'], 'video')}{labels}{unreadable}{where}",
        *_shortened(quarantined),
        *([f"note:  {count(tracks, 'file')} with several video tracks: the longest was taken"] if tracks else []),
        *section(f"note:  {count(len(static), 'take')} in which nothing moves:", static),
        *_static_views(prepared["static_views"]),
        *(f"note:  {remark}" for remark in prepared["remarks"]),
        *[f"labels used, but not as they are written: {counts['labels_changed']}"] * bool(counts["labels_changed"]),
        *unmatched(prepared["unmatched"], f", listed in {output_dir / 'unmatched.csv'}"),
        *left(counts["duplicates"], counts["passed_over"]),
    ]
    return "\n".join(lines)


def _static_views(views: Sequence[tuple[str, str]]) -> list[str]:
    """About (take, view) in which nothing moves while other views of the take move, by view."""
    of_view: dict[str, list[str]] = {}
    for take, view in views:
        of_view.setdefault(view, []).append(take)
    lines = []
    for view, found in sorted(of_view.items()):
        more = ", ..." * (len(found) > SHOWN_IN_MESSAGE)
        lines.append(f"view {view} of {count(len(found), 'take')}: {', '.join(found[:SHOWN_IN_MESSAGE])}{more}")
    return section(f"note:  {count(len(views), 'view')} in which nothing moves while others of the take move:", lines)


def found_wrong(names: catalog.Catalog, listing: Listing) -> list[str]:
    """Printed before the work begins, so that the user can correct files and have them prepared with the rest.

    Looks into files of equal size.
    """
    unreadable = [f"  {path}: {reason}" for path, _, reason in listing.files.unreadable]
    lines = [f"cannot be read: {count(len(unreadable), 'file')}", *unreadable] if unreadable else []
    refused, changed = [reason for *_, reason in listing.refused], listing.changed
    lines += section(f"labels that cannot be used: {len(refused)}", refused)
    lines += section(f"labels used, but not as they are written: {len(changed)}", changed)
    for what in ("class", "subject"):
        remarks = nearly_equal(what, getattr(names, f"{what}_names", ()))
        lines += [f"warning: {remark}" for remark in remarks]
    alike = raw_files.alike(listing.num_bytes, listing.files.root, listing.frames_fps)
    num_copies = sum(map(len, alike)) - len(alike)
    title = (
        f"warning: {count(num_copies, 'file')} with the size, the beginning and the end of another, used as views of "
        "their own: leave copies out"
    )
    return lines + section(title, [" = ".join(paths) for paths in alike])


def unused_offsets(seconds: Mapping[tuple[str, str], float], videos: Iterable[catalog.Video]) -> list[str]:
    """A warning about lines of --sync, by (take, view), for videos that do not exist; empty if all are used."""
    unknown = sorted(seconds.keys() - {(video.take, video.view) for video in videos})
    warning = f"warning: {len(unknown)} lines of --sync are of no video here: {some_views(unknown)}"
    return [warning] if unknown else []


def nearly_equal(what: str, names: Sequence[str]) -> list[str]:
    """Remarks on names that are the same but for upper and lower case and spaces; `what` is 'class' or 'subject'."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    return [
        f"{what} names that differ only in case or spaces are different ones: {', '.join(map(repr, group))}"
        for group in groups.values()
        if len(group) > 1
    ]


def unmatched(files: Sequence[tuple[str, str]], where: str = "") -> list[str]:
    """About files that do not belong to the data set."""
    return section(f"not of this data set: {count(len(files), 'file')}{where}", [reason for _, reason in files])


def left(duplicates: int, endings: Mapping[str, int]) -> list[str]:
    """About the other files that are not used."""
    twice = f"left out, with the same bytes as a file that is used: {count(duplicates, 'file')}"
    return [twice] * bool(duplicates) + ([passed_over(endings)] if endings else [])


def section(title: str, items: Sequence[str], hint: str = "") -> list[str]:
    """The title and, indented, the first SHOWN items and how many more there are, with a hint; empty without items."""
    return [title, *_shortened(items, hint)] if items else []


def _shortened(items: Sequence[str], hint: str = "") -> list[str]:
    more = [f"  ... and {len(items) - SHOWN} more{hint}"] if len(items) > SHOWN else []
    return [f"  {item}" for item in items[:SHOWN]] + more


def some_views(keys: Iterable[tuple[str, str]]) -> str:
    """The first few of (take, view)."""
    return ", ".join(f"view {view} of take {take}" for take, view in list(keys)[:SHOWN_IN_MESSAGE])


def count(number: int, noun: str) -> str:
    """'1 file', '2 files'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
