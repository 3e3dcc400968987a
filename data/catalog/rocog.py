"""RoCoG-v2 (Reddy et al., ICRA 2023): gestures seen from the ground and from the air, by people and by avatars.

`real/ground/Halt/S04b_10m_ground_label5_start775.mp4` is a subject at a distance, the label counted from 1, the first
frame in the uncut video; `syn/air/Halt/Scene15_360_Halt_26_8_2022_4_58_18.mp4` is a rendered scene. The lists in the
authors' folder `annotations` say which rendered videos are for training. Ground and air are not synchronised: every
video is a take of its own. The protocols are the experiments of `annotations/README.md` in the authors' repository,
github.com/reddyav1/RoCoG-v2 ("source only" and "target only"). The subjects below are computed from their lists.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import CONTAINER, Catalog, Count, Row, Split, Video, check_range, random_takes, train_and_test

CLASS_NAMES = ("Advance", "Attention", "Rally", "MoveForward", "Halt", "FollowMe", "MoveInReverse")
CAMERAS = {"ground": 1, "air": 2}
# Computed from the authors' lists: the same four subjects test on the ground and in the air.
TEST_SUBJECTS = frozenset((0, 4, 6, 9))
# Of the lists *_tsonly: training subjects whom the authors keep for validation.
VALIDATION_SUBJECTS = {"ground": frozenset((2, 10)), "air": frozenset((10,))}
NUM_SUBJECTS = 11  # S00 to S10

_PATH = re.compile(rf"(?:(.*)/)?({'|'.join(CLASS_NAMES)})/([^/]+){CONTAINER}", re.ASCII | re.IGNORECASE)
# A subject's second session has a 'b', a second or third recording a number: S05_10m_ground_3_label7_start3589.
_REAL = re.compile(r"S(\d{2})(b?)_(\d{2})m_(ground|hover)(_\d)?_label([1-7])_start(\d+)", re.ASCII | re.IGNORECASE)
_RENDERED = re.compile(r"Scene(\d+)_\d+_\w+", re.ASCII | re.IGNORECASE)
_LIST = re.compile(r"(?:.*/)?syn_(?:ground|air)_(train|val)\.txt", re.ASCII | re.IGNORECASE)
_LISTED = re.compile(rf"(syn/(?:ground|air)/({'|'.join(CLASS_NAMES)})/\S+)\.mp4 ([0-6])", re.ASCII)


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


def _synthetic_to_real(perspective: str, tested: str) -> Callable[[Row], Split | None]:
    """Trained on rendered videos of a perspective, tested on real ones of one (the paper's "source only")."""
    real = _real(tested)

    def split(row: Row) -> Split | None:
        rendered = synthetic(row) == "train" and row.camera == CAMERAS[perspective]
        return "train" if rendered else "test" if real(row) == "test" else None

    return split


def _target_only(perspective: str, tested: str) -> Callable[[Row], Split | None]:
    """Trained on the authors' list real_PERSPECTIVE_train_tsonly.

    `tested` on the list real_PERSPECTIVE_val_tsonly ('val'), or on real_ground_test or real_air_test.
    """
    trained = _real(perspective)

    def split(row: Row) -> Split | None:
        if trained(row) == "train":
            kept_back = row.subject in VALIDATION_SUBJECTS[perspective]
            return "train" if not kept_back else "test" if tested == "val" else None
        return "test" if tested != "val" and _real(tested)(row) == "test" else None

    return split


class RoCoG(Catalog):
    """RoCoG-v2: 482 real and 106,996 rendered videos of 7 gestures."""

    name = "rocog"
    class_names = CLASS_NAMES
    not_synchronised = "the ground and air videos of RoCoG-v2 show gestures at different times: there are no pairs"
    protocols: ClassVar = {
        "ground": _real("ground"),
        "air": _real("air"),
        "synthetic": synthetic,
        "synthetic_to_ground": _synthetic_to_real("ground", "ground"),
        "synthetic_to_air": _synthetic_to_real("air", "air"),
        "synthetic_ground_to_air": _synthetic_to_real("ground", "air"),
        "ground_to_air": _target_only("ground", "air"),  # trains on the list that "target only" trains on
        "ground_tsonly": _target_only("ground", "ground"),
        "ground_tsonly_val": _target_only("ground", "val"),
        "air_tsonly": _target_only("air", "air"),
        "air_tsonly_val": _target_only("air", "val"),
        "random": random_takes,
    }
    # Rows of the authors' annotation files, which agree with their README.
    published = (
        Count(protocol="all", split="all", videos=304 + 178 + 53_438 + 53_558),
        *train_and_test("ground", train=204, test=100),
        *train_and_test("air", train=87, test=91),
        *train_and_test("synthetic", train=44_510 + 44_640, test=8_928 + 8_918),
        *train_and_test("synthetic", train=44_510, test=8_928, camera=CAMERAS["ground"]),
        *train_and_test("synthetic", train=44_640, test=8_918, camera=CAMERAS["air"]),
        *train_and_test("synthetic_to_ground", train=44_510, test=100),
        *train_and_test("synthetic_to_air", train=44_640, test=91),
        *train_and_test("synthetic_ground_to_air", train=44_510, test=91),
        *train_and_test("ground_to_air", train=162, test=91),
        *train_and_test("ground_tsonly", train=162, test=100),
        *train_and_test("ground_tsonly_val", train=162, test=42),
        *train_and_test("air_tsonly", train=66, test=91),
        *train_and_test("air_tsonly_val", train=66, test=21),
    )
    remarks = (
        "camera 1 is the ground, camera 2 the air; the real test sets are small, so that one video is one percent",
        "for validation the authors hold out S02 and S10 (ground) and S10 (air) of the real training subjects, in "
        "'target only' and from the ground to the air: *_tsonly_val tests on these in place of the test subjects",
        "where cropped real videos are there (real_ground.zip, real_air.zip), those of real_uncropped.zip are left "
        "out, and orbital videos always are, as they are in none of the official lists",
    )

    def __init__(self, lists: Mapping[str, tuple[str, str]] | None = None, *, leave_out_uncropped: bool = False):
        """`lists`, from `with_annotations`: a rendered take in lower case -> (the take, 'train' or 'val').

        With lists, a rendered video that is in none of them is refused.
        """
        self._lists = lists
        self._leave_out_uncropped = leave_out_uncropped

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. Perspective and domain come from the nearest folder or archive that names one."""
        matched = _PATH.fullmatch(path)
        if not matched:
            raise UserError(
                f"{path!r} does not end in real|syn/ground|air/GESTURE/NAME.mp4 with one of {', '.join(CLASS_NAMES)}"
            )
        above = _words(matched[1] or "")
        label = [name.lower() for name in CLASS_NAMES].index(matched[2].lower())
        if self._leave_out_uncropped and _is_uncropped(path):
            raise UserError(f"{path!r}: cropped real videos are there, too, and the official experiments use those")
        if any("orbital" in words for words in above):
            raise UserError(f"{path!r} does not end in real|syn/ground|air/...: orbital videos are in no official list")
        perspective = _nearest(above, {"ground": "ground", "air": "air"})
        domain = _nearest(above, {"real": "real", "syn": "syn", "synthetic": "syn"})
        if domain == "syn" or (domain is None and _RENDERED.fullmatch(matched[3])):
            subject, setup, stem = -1, _scene(path, matched[3], CLASS_NAMES[label]), matched[3]
            if perspective is None:
                raise UserError(f"{path!r} does not end in syn/ground|air/...: is it seen from the ground or the air?")
        else:
            subject, setup, perspective, stem = _real_name(path, matched[3], perspective, label)
        take = f"{'real' if subject >= 0 else 'syn'}/{perspective}/{CLASS_NAMES[label]}/{stem}"
        listed = ""
        if subject < 0 and self._lists is not None:
            if take.lower() not in self._lists:
                raise UserError(f"{path!r} is in none of the authors' lists (syn_*.txt) in the input folder")
            take, listed = self._lists[take.lower()]
        return Video(
            path=path,
            take=take,
            view=perspective,
            label=label,
            subject=subject,
            setup=setup,
            camera=CAMERAS[perspective],
            listed_split=listed,
        )

    def format(self, video: Video) -> str:
        return f"{video.take}.mp4"

    def with_names_from(self, paths: Iterable[str]) -> "RoCoG":
        """See `Catalog.with_names_from`: whether uncropped real videos lie beside cropped ones."""
        real = [path for path in paths if _REAL.search(path.rpartition("/")[2])]
        some = any(_is_uncropped(path) for path in real) and not all(_is_uncropped(path) for path in real)
        return RoCoG(self._lists, leave_out_uncropped=some)

    def is_annotation(self, path: str) -> bool:
        """See `Catalog.is_annotation`: syn_{ground,air}_{train,val}.txt, the lists of rendered videos."""
        return _LIST.fullmatch(path) is not None

    def with_annotations(self, annotations: Mapping[str, str]) -> "RoCoG":
        """See `Catalog.with_annotations`.

        Raises:
          ValueError: a line that is not `PATH ID` or whose ID is another gesture's, or a video in two lists.
        """
        lists: dict[str, tuple[str, str]] = {}
        for path, text in annotations.items():
            split = _LIST.fullmatch(path)[1].lower()
            for number, line in enumerate(text.splitlines(), start=1):
                if not line.strip():
                    continue
                matched, where = _LISTED.fullmatch(line.strip()), f"{path}, line {number}: {line[:80]!r}"
                if not matched:
                    raise UserError(f"{where} is not `syn/.../NAME.mp4 ID`")
                if CLASS_NAMES[int(matched[3])] != matched[2]:
                    raise UserError(f"{where}: {matched[3]} is {CLASS_NAMES[int(matched[3])]}, not {matched[2]}")
                if lists.setdefault(matched[1].lower(), (matched[1], split)) != (matched[1], split):
                    raise UserError(f"{where} is in a list for training and in one for validation")
        return RoCoG(lists)

    def unused_annotations(self, videos: Iterable[Video]) -> list[tuple[str, str]]:
        absent = (self._lists or {}).keys() - {video.take.lower() for video in videos}
        return [("syn_*.txt", f"the lists name {len(absent)} rendered videos that are not in the input")] * bool(absent)


def _words(folders: str) -> list[set[str]]:
    """The words in the names of folders and archives, the nearest first: of 'a/real_air.zip' {real, air, zip}, {a}."""
    return [set(re.split(r"[^a-z]+", name)) for name in reversed(folders.lower().split("/"))]


def _nearest(above: list[set[str]], meanings: Mapping[str, str]) -> str | None:
    """The first of the words that a folder has, beginning with the nearest folder; None if no folder has one."""
    for words in above:
        found = {meanings[word] for word in words & meanings.keys()}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _is_uncropped(path: str) -> bool:
    return any("uncropped" in words for words in _words(path.rpartition("/")[0]))


def _real_name(path: str, stem: str, perspective: str | None, label: int) -> tuple[int, int, str, str]:
    """The subject, the distance in metres as the setup, the perspective and the name as the authors write it.

    Raises ValueError if it is not of a real video, or contradicts its folders.
    """
    matched = _REAL.fullmatch(stem)
    if not matched:
        raise UserError(f"{path!r}: a real video is called as S04b_10m_ground_label5_start775.mp4 is")
    number, session, metres, called, recording, labelled, start = (part or "" for part in matched.groups())
    check_range(path, "subjects", int(number), NUM_SUBJECTS - 1, first=0)
    seen_from = "ground" if called.lower() == "ground" else "air"
    if perspective not in (None, seen_from):
        raise UserError(f"{path!r}: called {called.lower()}, in the folder {perspective}")
    if int(labelled) - 1 != label:
        said = CLASS_NAMES[int(labelled) - 1]
        raise UserError(f"{path!r}: label{labelled} is {said}, in the folder {CLASS_NAMES[label]}")
    name = f"S{number}{session.lower()}_{metres}m_{called.lower()}{recording}_label{labelled}_start{start}"
    return int(number), int(metres), seen_from, name


def _scene(path: str, stem: str, gesture: str) -> int:
    """The scene, as the setup. Raises ValueError."""
    matched = _RENDERED.fullmatch(stem)
    if not matched or f"_{gesture}_".lower() not in stem.lower():
        raise UserError(f"{path!r}: a rendered video is called as Scene15_360_{gesture}_26_8_2022_4_58_18.mp4 is")
    return int(matched[1])
