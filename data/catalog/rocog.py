"""RoCoG-v2 (Reddy et al., ICRA 2023): gestures seen from the ground and from the air, by people and by avatars.

`real/ground/Halt/S04b_10m_ground_label5_start775.mp4` is a subject at a distance, the label counted from 1, the first
frame in the uncut video; `syn/air/Halt/Scene15_360_Halt_26_8_2022_4_58_18.mp4` is a rendered scene. The lists in the
authors' folder `annotations` say which rendered videos are for training. Ground and air are not synchronised: every
video is a take of its own.
"""

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import Catalog, Count, Row, Split, Video, random_takes

CLASS_NAMES = ("Advance", "Attention", "Rally", "MoveForward", "Halt", "FollowMe", "MoveInReverse")
CAMERAS = {"ground": 1, "air": 2}
# Computed from the authors' lists: the same four subjects test on the ground and in the air.
TEST_SUBJECTS = frozenset((0, 4, 6, 9))
NUM_SUBJECTS = 11  # S00 to S10

_PATH = re.compile(rf"(?:.*/)?((real|syn)/(ground|air)/({'|'.join(CLASS_NAMES)})/([^/]+))\.mp4", re.ASCII)
# A subject's second session has a 'b', a second or third recording a number: S05_10m_ground_3_label7_start3589.
_REAL = re.compile(r"S(\d{2})b?_(\d{2})m_(ground|hover)(?:_\d)?_label([1-7])_start\d+", re.ASCII)
_RENDERED = re.compile(r"Scene(\d+)_\d+_\w+", re.ASCII)
_LIST = re.compile(r"(?:.*/)?syn_(?:ground|air)_(train|val)\.txt", re.ASCII)


def _real(perspective: str) -> Callable[[Row], Split | None]:
    """Real videos of one perspective, across subjects."""

    def split(row: Row) -> Split | None:
        if not row.take.startswith("real/") or row.camera != CAMERAS[perspective]:
            return None
        return "test" if row.subject in TEST_SUBJECTS else "train"

    return split


def synthetic(row: Row) -> Split | None:
    """Rendered videos of both perspectives: the authors' training lists train, their validation lists test."""
    return {"train": "train", "val": "test"}.get(row.listed_split) if row.take.startswith("syn/") else None


def _synthetic_to_real(perspective: str) -> Callable[[Row], Split | None]:
    """Trained on rendered videos, tested on real ones, both of one perspective (the paper's "source only")."""
    real = _real(perspective)

    def split(row: Row) -> Split | None:
        rendered = synthetic(row) == "train" and row.camera == CAMERAS[perspective]
        return "train" if rendered else "test" if real(row) == "test" else None

    return split


class RoCoG(Catalog):
    """RoCoG-v2: 482 real and 106,996 rendered videos of 7 gestures."""

    name = "rocog"
    class_names = CLASS_NAMES
    extensions = (".mp4",)
    not_synchronised = "the ground and air videos of RoCoG-v2 show gestures at different times: there are no pairs"
    protocols: ClassVar = {
        "ground": _real("ground"),
        "air": _real("air"),
        "synthetic": synthetic,
        "synthetic_to_ground": _synthetic_to_real("ground"),
        "synthetic_to_air": _synthetic_to_real("air"),
        "random": random_takes,
    }
    # Rows of the authors' annotation files, which agree with their README.
    published = (
        Count(protocol="all", split="all", videos=304 + 178 + 53_438 + 53_558),
        Count(protocol="ground", split="train", videos=204),
        Count(protocol="ground", split="test", videos=100),
        Count(protocol="air", split="train", videos=87),
        Count(protocol="air", split="test", videos=91),
        Count(protocol="synthetic", split="train", videos=44_510 + 44_640),
        Count(protocol="synthetic", split="train", camera=CAMERAS["ground"], videos=44_510),
        Count(protocol="synthetic", split="train", camera=CAMERAS["air"], videos=44_640),
        Count(protocol="synthetic", split="test", videos=8_928 + 8_918),
        Count(protocol="synthetic", split="test", camera=CAMERAS["ground"], videos=8_928),
        Count(protocol="synthetic", split="test", camera=CAMERAS["air"], videos=8_918),
        Count(protocol="synthetic_to_ground", split="train", videos=44_510),
        Count(protocol="synthetic_to_ground", split="test", videos=100),
        Count(protocol="synthetic_to_air", split="train", videos=44_640),
        Count(protocol="synthetic_to_air", split="test", videos=91),
    )
    remarks = (
        "camera 1 is the ground, camera 2 the air; the real test sets are small, so that one video is one percent",
        "for validation the authors hold out S02 and S10 (ground) and S10 (air) of the real training subjects",
    )

    def __init__(self, lists: Mapping[str, str] | None = None):
        """`lists`: take -> 'train' or 'val', for rendered videos; they come by `with_annotations`.

        Once these have come, a rendered video in none of them is refused.
        """
        self._lists = lists

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. The four last parts of the path belong to the name."""
        matched = _PATH.fullmatch(path)
        if not matched:
            raise UserError(
                f"{path!r} does not end in real|syn/ground|air/GESTURE/NAME.mp4 with one of {', '.join(CLASS_NAMES)}"
            )
        take, domain, perspective, gesture, stem = matched.groups()
        number = _real_subject if domain == "real" else _scene
        subject, setup = number(path, stem, perspective, gesture)
        if domain == "syn" and self._lists is not None and take not in self._lists:
            raise UserError(f"{path!r} is in none of the authors' lists (syn_*.txt) in the input folder")
        return Video(
            path=path,
            take=take,
            view=perspective,
            label=CLASS_NAMES.index(gesture),
            subject=subject,
            setup=setup,
            camera=CAMERAS[perspective],
            listed_split=(self._lists or {}).get(take, ""),
        )

    def format(self, video: Video) -> str:
        """See `Catalog.format`."""
        return f"{video.take}.mp4"

    def is_annotation(self, path: str) -> bool:
        """See `Catalog.is_annotation`: syn_{ground,air}_{train,val}.txt, the lists of rendered videos."""
        return _LIST.fullmatch(path) is not None

    def with_annotations(self, annotations: Mapping[str, str]) -> "RoCoG":
        """See `Catalog.with_annotations`. Raises ValueError for a line that is not `PATH ID`."""
        lists = {}
        for path, text in annotations.items():
            for number, line in enumerate(text.splitlines(), start=1):
                matched = re.fullmatch(r"(syn/\S+)\.mp4 [0-6]", line.strip())
                if not matched:
                    raise UserError(f"{path}, line {number}: {line[:80]!r} is not `syn/.../NAME.mp4 ID`")
                lists[matched[1]] = _LIST.fullmatch(path)[1]
        return RoCoG(lists)


def _real_subject(path: str, stem: str, perspective: str, gesture: str) -> tuple[int, int]:
    """The subject, and the distance in metres as the setup. Raises ValueError."""
    matched = _REAL.fullmatch(stem)
    if not matched:
        raise UserError(f"{path!r}: a real video is called as S04b_10m_ground_label5_start775.mp4 is")
    subject, metres, called, label = int(matched[1]), int(matched[2]), matched[3], int(matched[4])
    if subject >= NUM_SUBJECTS:
        raise UserError(f"{path!r}: subjects are 0 to {NUM_SUBJECTS - 1}, not {subject}")
    if (called == "ground") != (perspective == "ground"):
        raise UserError(f"{path!r}: called {called}, in the folder {perspective}")
    if CLASS_NAMES[label - 1] != gesture:
        raise UserError(f"{path!r}: label{label} is {CLASS_NAMES[label - 1]}, in the folder {gesture}")
    return subject, metres


def _scene(path: str, stem: str, perspective: str, gesture: str) -> tuple[int, int]:
    """No subject, and the scene as the setup. Raises ValueError."""
    del perspective
    matched = _RENDERED.fullmatch(stem)
    if not matched or f"_{gesture}_" not in stem:
        raise UserError(f"{path!r}: a rendered video is called as Scene15_360_{gesture}_26_8_2022_4_58_18.mp4 is")
    return -1, int(matched[1])
