"""What a data set holds, by its catalogue, and whether a copy of it is complete.

`python -m data.catalog ntu60` prints the counts of the complete data set; with `--input=DIR` it compares the files
there with them, and reads the labels.
"""

import argparse
import dataclasses
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from console.command import ExitCode, Parser, did_you_mean, execute, nearest
from console.errors import UserError
from data import catalog
from data.prepare import tables
from data.prepare.preparation_report import section
from data.recordings.listing import matching_files, passed_over

UNOFFICIAL = {"random"}  # protocols left out unless asked for

PROG = "python -m data.catalog"
EXAMPLES = """
python -m data.catalog ntu120
python -m data.catalog ntu60 --protocol=xsub --input=nturgb+d_rgb
python -m data.catalog etri --input=ETRI-Activity3D --format=json > etri.json
"""

Counts = dict[tuple[str, str, int | None, int | None], int]  # by protocol, split, camera, label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A copy of a data set against its catalogue."""

    videos: tuple[catalog.Video, ...]  # raw files found
    missing_by_setup: dict[str, str]  # setup (or subject, without setups) -> how many are missing of how many
    missing: tuple[str, ...]  # names of the complete list that were not found; empty if the list is not known
    unexpected: tuple[tuple[str, str], ...]  # (path, reason) of files that do not belong to the data set
    duplicates: tuple[tuple[str, str], ...]  # (path, path of the file with the same bytes)
    passed_over: dict[str, int]  # ending -> files that are neither videos nor labels
    labels_refused: tuple[tuple[str, str], ...]  # (path of the video, reason)
    labels_changed: tuple[str, ...]  # labels used in another form than they are written
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of files, archives and folders
    labelled: int  # takes, or views of takes, cut from the videos
    takes_by_views: dict[int, int]  # number of views -> takes with so many
    incomplete_takes: dict[str, tuple[str, ...]]  # take -> missing views, where the list is known


def expected_counts(names: catalog.Catalog, protocols: Sequence[str]) -> Counts:
    """The counts of the complete list of names if that is known, else the published ones."""
    complete = [names.parse(name) for name in names.names()]
    if complete:
        return count(names, complete, protocols)
    wanted = {"all", *protocols}
    return {(c.protocol, c.split, c.camera, c.label): c.videos for c in names.published if c.protocol in wanted}


def count(names: catalog.Catalog, videos: Iterable[catalog.Video], protocols: Sequence[str]) -> Counts:
    """Raw videos by protocol and split, in all, by camera and by class."""
    counts = Counter()
    for video in videos:
        splits = {"all": "all"} | {protocol: names.split(protocol, video) for protocol in protocols}
        for protocol, split in splits.items():
            if split is not None:
                counts[protocol, split, None, None] += 1
                if video.camera >= 0:
                    counts[protocol, split, video.camera, None] += 1
                if video.label >= 0:
                    counts[protocol, split, None, video.label] += 1
    return dict(counts)


def compare(names: catalog.Catalog, inputs: Path | Sequence[Path]) -> tuple[catalog.Catalog, Comparison]:
    """Reads names and labels, and finds duplicates. Raises ValueError, as `list_videos` does."""
    names, listed = matching_files(names, inputs, frames_fps=1.0)  # whatever it is
    files, cuts = listed.videos, [(video, names.cut(video)) for video in listed.videos]
    found = {names.format(video) for video in files}
    complete = {name: names.parse(name) for name in names.names()}
    missing = {name: video for name, video in complete.items() if name not in found}
    views_of_take = Counter(video.take for video in files)
    missing_views: dict[str, list[str]] = {}
    for video in missing.values():
        missing_views.setdefault(video.take, []).append(video.view)
    return names, Comparison(
        videos=tuple(files),
        missing=tuple(missing),
        missing_by_setup=_by_setup(complete.values(), missing.values()),
        unexpected=listed.unmatched,
        duplicates=listed.duplicates,
        passed_over=dict(listed.passed_over),
        labels_refused=tuple((video.path, reason) for video, cut in cuts for _, reason in cut.refused),
        labels_changed=tuple(change for _, cut in cuts for change in cut.changed),
        unreadable=tuple((path, reason) for path, _, reason in listed.unreadable),
        labelled=sum(len(cut.takes) for _, cut in cuts),
        takes_by_views=dict(sorted(Counter(views_of_take.values()).items())),
        incomplete_takes={take: tuple(views) for take, views in missing_views.items() if take in views_of_take},
    )


def _by_setup(complete: Iterable[catalog.Video], missing: Iterable[catalog.Video]) -> dict[str, str]:
    """'setup 3' -> '12 of 3240'; by subject where the data set has no setups."""
    every, absent = (
        Counter(("setup", v.setup) if v.setup >= 0 else ("subject", v.subject) for v in videos)
        for videos in (complete, missing)
    )
    return {f"{kind} {number}": f"{n} of {every[kind, number]}" for (kind, number), n in sorted(absent.items())}


def table(names: catalog.Catalog, expected: Counts, found: Counts | None) -> list[dict]:
    """One row per count: protocol, split, camera, class, expected, found; '' for what is not given."""
    keys = sorted(expected.keys() | (found or {}).keys(), key=lambda key: tuple(str(part) for part in key))
    return [
        {
            "protocol": protocol,
            "split": split,
            "camera": "" if camera is None else camera,
            "class": "" if label is None else names.class_names[label],
            "expected": expected.get((protocol, split, camera, label), ""),
            "found": "" if found is None else found.get((protocol, split, camera, label), 0),
        }
        for protocol, split, camera, label in keys
    ]


def as_text(names: catalog.Catalog, expected: Counts, found: Counts | None) -> str:
    """The counts as a table with a column per protocol and split. If a copy was counted, cells are found/expected."""
    keys = expected.keys() | (found or {}).keys()
    if not keys:
        return f"of {names.name} nothing is known beforehand: give --input"
    columns = sorted(
        {key[:2] for key in keys}, key=lambda column: (column[0] != "all", column[0], column[1] != "train")
    )
    rows = sorted({key[2:] for key in keys}, key=lambda row: tuple(-1 if n is None else n for n in reversed(row)))
    lines = [("", *(protocol for protocol, _ in columns)), ("", *(split for _, split in columns))]
    for camera, label in rows:
        title = "all" if label is None else names.class_names[label]
        title = title if camera is None else f"camera {camera}"
        lines.append((title, *(_cell((*column, camera, label), expected, found) for column in columns)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _cell(key: tuple[str, str, int | None, int | None], expected: Counts, found: Counts | None) -> str:
    if key not in expected and (found is None or key not in found):
        return ""
    wanted = str(expected.get(key, "?"))
    return wanted if found is None else f"{found.get(key, 0)}/{wanted}"


def report(comparison: Comparison, known: bool) -> str:
    """What was found, in words."""
    takes = sum(comparison.takes_by_views.values())
    lines = [f"found: {len(comparison.videos)} videos of {takes} takes"]
    lines += [f"  {n} takes with {views} view{'s' * (views > 1)}" for views, n in comparison.takes_by_views.items()]
    if known:
        incomplete = [f"{take}: lacks {', '.join(views)}" for take, views in comparison.incomplete_takes.items()]
        lines += [f"complete takes: {takes - len(incomplete)}"]
        lines += _section("takes with fewer views", incomplete) or ["takes with fewer views: 0"]
        lines += [f"missing files: {len(comparison.missing)}"]
        lines += [f"  {setup}: {number}" for setup, number in comparison.missing_by_setup.items()]
        lines += _section("", comparison.missing)[1:]
    else:
        lines += ["missing files: not known, as no complete list of names is"]
    lines += _section("unexpected files", [reason for _, reason in comparison.unexpected]) or ["unexpected files: 0"]
    copies = [f"{path} as {used}" for path, used in comparison.duplicates]
    lines += _section("left out, with the same bytes as a file that is used", copies)
    if comparison.labelled != len(comparison.videos):
        lines += [f"labelled actions in these videos: {comparison.labelled}"]
    lines += _section("labels that cannot be used", [reason for _, reason in comparison.labels_refused])
    lines += _section("labels that are used, but not as they are written", comparison.labels_changed)
    if comparison.passed_over:
        lines += [passed_over(comparison.passed_over)]
    if comparison.unreadable:  # all of them, because each must be downloaded again
        lines += [f"files that cannot be read: {len(comparison.unreadable)}"]
        lines += [f"  {path}: {reason}" for path, reason in comparison.unreadable]
    return "\n".join(lines)


def _section(title: str, items: Sequence[str]) -> list[str]:
    return section(f"{title}: {len(items)}", items, " (--format=json lists all)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    return execute(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    names = catalog.get(options.dataset, pattern=options.pattern, num_classes=options.num_classes)
    protocols, comparison, found = _protocols(names, options.protocol), None, None
    if options.input is not None:
        names, comparison = compare(names, options.input)
        found = count(names, comparison.videos, protocols)
    expected = expected_counts(names, protocols)
    if options.format == "text":
        if comparison is not None:
            print(report(comparison, known=any(True for _ in names.names())))
        print(as_text(names, expected, found))
        for remark in filter(None, [*names.remarks, names.not_synchronised]):
            print(f"- {remark}")
    elif options.format == "csv":
        rows = table(names, expected, found)
        tables.write(sys.stdout, ["protocol", "split", "camera", "class", "expected", "found"], rows)
    else:
        facts = {
            "dataset": names.name,
            "classes": names.class_names,
            "not_synchronised": names.not_synchronised,
            "remarks": names.remarks,
            "counts": table(names, expected, found),
        }
        if comparison is not None:
            facts["comparison"] = dataclasses.asdict(comparison) | {"videos": len(comparison.videos)}
        print(json.dumps(facts, indent=1))
    if comparison is None:
        return ExitCode.DONE
    wrong = comparison.missing or comparison.unexpected or comparison.unreadable or comparison.labels_refused
    return ExitCode.PARTLY if wrong or not comparison.videos else ExitCode.DONE


def _protocols(names: catalog.Catalog, wanted: str | None) -> list[str]:
    """The wanted protocol, or all official ones, each once, even under two names. Raises ValueError if unknown."""
    known = names.protocols
    if wanted is not None and wanted not in known:
        hint = did_you_mean(nearest(wanted, known))
        raise UserError(f"{names.name} has no protocol {wanted!r}; it has {', '.join(sorted(known))}.{hint}")
    official = {known[name]: name for name in reversed(known) if name not in UNOFFICIAL}
    return [wanted] if wanted else list(official.values())[::-1]


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Prints how many videos a data set has by protocol, split, camera and class, and compares a copy.",
        examples=EXAMPLES,
        exit_codes={
            ExitCode.DONE: "printed; with --input: nothing is missing or unexpected, as far as the names are known",
            ExitCode.PARTLY: "files are missing or unexpected, or they or their labels cannot be read",
        },
    )
    parser.add_argument("dataset", help=f"one of {', '.join(catalog.NAMES)}")
    parser.add_argument("--protocol", help="only this one (default: all official ones)")
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with the raw videos, or an archive, to be compared; may be given several times",
    )
    parser.add_argument("--pattern", help="for folder: as for `python -m data.prepare`")
    parser.add_argument("--num_classes", type=int, help="for pkummd: as for `python -m data.prepare`")
    parser.add_argument("--format", choices=("text", "json", "csv"), default="text", help="of the counts (text)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
