"""PKU-MMD, phase 2 (Liu et al. 2017): `A01N01-L.avi`, labels in `A01N01-L.txt`.

A is the sequence, N the subject, L, M and R the views. The videos are not trimmed: a label file holds one row per
action, `label,start,end,confidence`, and each row becomes one record with the frames [start, end) of its video. Public
code for phase 2 opens `A01N01-L_color.avi`, takes rows without the last column, and swaps a start after its end.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import CONTAINER, Catalog, Count, Cut, Video, by, check_range, random_takes, train_and_test

# Spelling of the authors' Actions.xlsx.
# fmt: off
CLASS_NAMES = (
    "bow", "brushing hair", "brushing teeth", "check time (from watch)", "cheer up", "clapping",  # 1 to 6
    "cross hands in front (say stop)", "drink water", "drop", "eat meal/snack", "falling",  # 7 to 11
    "giving something to other person", "hand waving", "handshaking", "hopping (one foot jumping)",  # 12 to 15
    "hugging other person", "jump up", "kicking other person", "kicking something",  # 16 to 19
    "make a phone call/answer phone", "pat on back of other person", "pickup",  # 20 to 22
    "playing with phone/tablet", "point finger at the other person",  # 23 to 24
    "pointing to something with finger", "punching/slapping other person", "pushing other person",  # 25 to 27
    "put on a hat/cap", "put something inside pocket", "reading", "rub two hands together", "salute",  # 28 to 32
    "sitting down", "standing up", "take off a hat/cap", "take off glasses", "take off jacket",  # 33 to 37
    "take out something from pocket", "taking a selfie", "tear up paper", "throw",  # 38 to 41
    "touch back (backache)", "touch chest (stomachache/heart pain)", "touch head (headache)",  # 42 to 44
    "touch neck (neckache)", "typing on a keyboard", "use a fan (with hand or paper)/feeling warm",  # 45 to 47
    "wear jacket", "wear on glasses", "wipe face", "writing",  # 48 to 51
)
# fmt: on
# Not in phase 2, by the shading of the authors' Actions_v2.xlsx; none occurs in a public list of phase 2's clips.
ABSENT_LABELS = frozenset((12, 14, 16, 18, 21, 24, 26, 27, 29, 38))
PRESENT_LABELS = tuple(label for label in range(1, len(CLASS_NAMES) + 1) if label not in ABSENT_LABELS)

NUM_SEQUENCES = 26
NUM_SUBJECTS = 13
VIEWS = ("L", "M", "R")  # cameras 1, 2, 3
# Not in the official split lists, from which this was computed, as were the two splits.
MISSING = frozenset(("A05N04-M", "A07N12-M", "A08N12-M", "A14N12-M", "A20N01-M"))

MAX_ROWS = 1000  # [ours] of a label file; the project page speaks of about 7 per video, phase 1 has about 20

_NAME = re.compile(rf"A(\d{{2}})N(\d{{2}})[-_]?([LMR])(?:[-_](?:color|rgb))?{CONTAINER}", re.ASCII | re.IGNORECASE)
_WITHOUT_VIEW = re.compile(rf"A\d{{2}}N\d{{2}}(?:[-_](?:color|rgb))?{CONTAINER}", re.ASCII | re.IGNORECASE)
# The skeletons' files have the same names. Labels are recognised by their folder (or archive), called `label` or alike.
_LABEL_FILE = re.compile(r"(?:.*/)?[^/]*label[^/]*/(?:.*/)?(A\d{2}N\d{2}-[LMR])\.txt", re.ASCII | re.IGNORECASE)
_ROW = re.compile(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*(?:,\s*([\d.]{0,9})\s*)?", re.ASCII)


class PKUMMD(Catalog):
    """PKU-MMD phase 2: 1,009 untrimmed videos of 13 subjects from 3 views, with actions of 41 classes in them."""

    name = "pkummd"
    not_synchronised = (
        "the actions of PKU-MMD are cut from each view by a label file of its own, and nothing published says that "
        "these begin at the same instant"
    )
    protocols: ClassVar = {
        "xsub": by("subject", lambda subject: subject in (2, 3, 7)),  # of 13
        "xview": by("camera", lambda camera: camera == 1),  # views M and R train, view L tests
        "random": random_takes,
    }
    published = (
        Count(protocol="all", split="all", videos=1_009),
        *train_and_test("xsub", train=775, test=234),
        *train_and_test("xview", train=671, test=338),
    )
    remarks = (
        "counts are of untrimmed videos; how many labelled actions there are depends on the label files (a paper says "
        "6,945, which could not be checked)",
        "whether labels count frames from 0 or 1, and whether the end is included, is not published: [start, end) from "
        "0 is used, as in MAMP's code, and may be off by one frame",
    )

    def __init__(self, num_classes: int = 41, labels: Mapping[str, str] | None = None):
        """`num_classes`: 41 numbers the classes that occur, 51 keeps all; `labels` come by `with_annotations`."""
        if num_classes not in (41, 51):
            raise UserError(
                f"--num_classes is 41 (those that occur in phase 2) or 51 (all of the list), not {num_classes}"
            )
        self.labels_in_use = PRESENT_LABELS if num_classes == 41 else tuple(range(1, len(CLASS_NAMES) + 1))
        self.num_classes = num_classes
        self.class_names = tuple(CLASS_NAMES[label - 1] for label in self.labels_in_use)
        self._labels = labels or {}

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`; the whole video, without a label."""
        matched = _NAME.fullmatch(path.rpartition("/")[2])
        if not matched:
            form = "of the form AaaNnn-V.avi or AaaNnn-V_color.avi, as A01N01-L.avi is"
            if _WITHOUT_VIEW.fullmatch(path.rpartition("/")[2]):
                raise UserError(f"{path!r} is not {form}: it does not say which view it is, L, M or R")
            raise UserError(f"{path!r} is not {form} (phase 1, 0001-L.avi, is another set)")
        sequence, subject, view = int(matched[1]), int(matched[2]), matched[3].upper()
        check_range(path, "sequences", sequence, NUM_SEQUENCES)
        check_range(path, "subjects", subject, NUM_SUBJECTS)
        recording = f"A{sequence:02}N{subject:02}"
        return Video(
            path=path,
            take=recording,
            view=view,
            subject=subject,
            camera=VIEWS.index(view) + 1,
            performance=sequence,
            recording=recording,
        )

    def format(self, video: Video) -> str:
        return f"A{video.performance:02}N{video.subject:02}-{VIEWS[video.camera - 1]}.avi"

    def names(self) -> Iterator[str]:
        for a, n, view in itertools.product(range(1, NUM_SEQUENCES + 1), range(1, NUM_SUBJECTS + 1), VIEWS):
            if f"A{a:02}N{n:02}-{view}" not in MISSING:
                yield f"A{a:02}N{n:02}-{view}.avi"

    def is_annotation(self, path: str) -> bool:
        """See `Catalog.is_annotation`: AaaNnn-V.txt in a folder or archive whose name speaks of labels."""
        return _LABEL_FILE.fullmatch(path) is not None

    def with_annotations(self, annotations: Mapping[str, str]) -> "PKUMMD":
        """See `Catalog.with_annotations`. Raises ValueError where two files have labels for the same video."""
        paths: dict[str, str] = {}
        for path in annotations:
            other = paths.setdefault(_LABEL_FILE.fullmatch(path)[1].upper(), path)
            if other != path:
                raise UserError(f"{other} and {path} are labels for the same video: move one away")
        return PKUMMD(self.num_classes, {name: annotations[path] for name, path in paths.items()})

    def unused_annotations(self, videos: Iterable[Video]) -> list[tuple[str, str]]:
        there = {f"{video.recording}-{video.view}" for video in videos}
        unused = sorted(self._labels.keys() - there)
        return [(f"{name}.txt", f"label files without their videos: {len(unused)}") for name in unused[:1]]

    def cut(self, video: Video) -> Cut:
        """See `Catalog.cut`: one take per row of the label file."""
        name = f"{video.recording}-{video.view}"
        if name not in self._labels:
            reason = f"{video.path!r} has no label file label/{name}.txt in the input folder"
            return Cut(takes=(), refused=((video.take, reason),))
        lines = [line for line in self._labels[name].splitlines() if line.strip()]
        if len(lines) > MAX_ROWS:
            reason = f"label file {name}.txt has {len(lines)} rows, above the limit of {MAX_ROWS}"
            return Cut(takes=(), refused=((video.take, reason),))
        takes, refused, changed = [], [], []
        for number, line in enumerate(lines, start=1):
            where = f"label file {name}.txt, row {number}, {line[:80]!r}"
            try:
                take, changes = self._cut_row(video, number, line)
            except UserError as error:
                refused.append((f"{video.recording}/{number:03}", f"{where}: {error}"))
            else:
                takes.append(take)
                changed += [f"{where}: {change}" for change in changes]
        return Cut(takes=tuple(takes), refused=tuple(refused), changed=tuple(changed))

    def _cut_row(self, video: Video, number: int, line: str) -> tuple[Video, list[str]]:
        """The take, and a remark if the row is read in another way than it is written. Raises ValueError."""
        matched = _ROW.fullmatch(line)
        if not matched:
            raise UserError("is not of the form label,start,end,confidence")
        label, start, end = map(int, matched.groups()[:3])
        if label not in self.labels_in_use:
            keep = "; --num_classes=51 keeps it" if label in ABSENT_LABELS else ""
            raise UserError(f"class {label} is not among the {self.num_classes} of phase 2{keep}")
        if start == end:
            raise UserError("starts at its end: no frame lies in between")
        changes = [] if matched[4] else ["no confidence, which is not used"]
        if start > end:
            start, end = end, start
            changes.append(f"start and end swapped, to [{start}, {end})")
        name, index = f"{video.recording}/{number:03}-{label:02}", self.labels_in_use.index(label)
        return dataclasses.replace(video, take=name, label=index, interval=(start, end)), changes
