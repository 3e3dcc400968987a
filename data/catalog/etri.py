"""ETRI-Activity3D (Jang et al., IROS 2020): `A001_P001_G001_C001.mp4`.

A is the action, P the person (1 to 50 are 64 to 88 years old, 51 to 100 in their twenties), G the group, that is the
place and take, C the camera. The cameras of an (A, P, G) are synchronised: they are the views of a take. Eight cameras
stand on four stands at two heights; that the pairs (1, 2), (3, 4), (5, 6), (7, 8) share a stand is inferred from the
takes that have one such pair only.
"""

import re
from collections.abc import Callable
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import CONTAINER, Catalog, Count, Row, Split, Video, check_range, random_takes, train_and_test

# Spelling of the authors' list (ai4robot.github.io).
# fmt: off
CLASS_NAMES = (
    "eating food with a fork", "pouring water into a cup", "taking medicine", "drinking water",  # A1 to A4
    "putting food in the fridge/taking food from the fridge", "trimming vegetables", "peeling fruit",  # A5 to A7
    "using a gas stove", "cutting vegetable on the cutting board", "brushing teeth", "washing hands",  # A8 to A11
    "washing face", "wiping face with a towel", "putting on cosmetics", "putting on lipstick",  # A12 to A15
    "brushing hair", "blow drying hair", "putting on a jacket", "taking off a jacket",  # A16 to A19
    "putting on/taking off shoes", "putting on/taking off glasses", "washing the dishes",  # A20 to A22
    "vacuumming the floor", "scrubbing the floor with a rag", "wipping off the dinning table",  # A23 to A25
    "rubbing up furniture", "spreading bedding/folding bedding", "washing a towel by hands",  # A26 to A28
    "hanging out laundry", "looking around for something", "using a remote control", "reading a book",  # A29 to A32
    "reading a newspaper", "handwriting", "talking on the phone", "playing with a mobile phone",  # A33 to A36
    "using a computer", "smoking", "clapping", "rubbing face with hands", "doing freehand exercise",  # A37 to A41
    "doing neck roll exercise", "massaging a shoulder oneself", "taking a bow", "talking to each other",  # A42 to A45
    "handshaking", "hugging each other", "fighting each other", "waving a hand",  # A46 to A49
    "flapping a hand up and down (beckoning)", "pointing with a finger",  # A50 to A51
    "opening the door and walking in", "fallen on the floor", "sitting up/standing up", "lying down",  # A52 to A55
)
# fmt: on
NUM_PERSONS = 100
LAST_ELDERLY = 50
NUM_GROUPS = 6  # computed from a public list of all 112,620 names
NUM_CAMERAS = 8
FIRST_LIVING_LAB_PERSON = 201  # of ETRI-Activity3D-LivingLab, whose files have the same names (one user's account)

_NAME = re.compile(rf"A(\d{{3}})_P(\d{{3}})_G(\d{{3}})_C(\d{{3}}){CONTAINER}", re.ASCII | re.IGNORECASE)


def is_test_person(person: int) -> bool:
    """The official test persons are 3, 6, ..., 99 (the paper; independent code agrees)."""
    return person % 3 == 0


def _across_ages(train_elderly: bool, test_elderly: bool) -> Callable[[Row], Split | None]:
    """Trains on the training persons of one age, tests on the test persons of one age; the others are in neither."""

    def split(row: Row) -> Split | None:
        elderly = row.subject <= LAST_ELDERLY
        if is_test_person(row.subject):
            return "test" if elderly == test_elderly else None
        return "train" if elderly == train_elderly else None

    return split


def _parse_name(path: str) -> Video:
    """The video of a path that ends in a name of this form. Raises ValueError; looks at no number but the action's."""
    matched = _NAME.fullmatch(path.rpartition("/")[2])
    if not matched:
        raise UserError(f"{path!r} is not of the form Aaaa_Pppp_Gggg_Cccc.mp4, as A001_P001_G001_C001.mp4 is")
    action, person, group, camera = map(int, matched.groups())
    check_range(path, "actions", action, len(CLASS_NAMES))
    return Video(
        path=path,
        take=f"A{action:03}_P{person:03}_G{group:03}",
        view=f"C{camera:03}",
        label=action - 1,
        subject=person,
        camera=camera,
        performance=group,
    )


class ETRI(Catalog):
    """ETRI-Activity3D: 112,620 videos of 55 classes, 100 persons, 2 to 8 cameras per take."""

    name = "etri"
    class_names = CLASS_NAMES
    protocols: ClassVar = {
        "xsub": lambda row: "test" if is_test_person(row.subject) else "train",  # 33 persons test, the other 67 train
        "elderly": _across_ages(train_elderly=True, test_elderly=True),
        "adults": _across_ages(train_elderly=False, test_elderly=False),
        "elderly_to_adults": _across_ages(train_elderly=True, test_elderly=False),
        "adults_to_elderly": _across_ages(train_elderly=False, test_elderly=True),
        "random": random_takes,
    }
    # Counted in a public list of all names (Xavi3398/Elderly-people-Explainable-Action-Recognition); the total is the
    # paper's, too.
    published = (Count(protocol="all", split="all", videos=112_620), *train_and_test("xsub", train=75_372, test=37_248))
    remarks = (
        "counted in a public list of all names: 15,371 takes (xsub: 10,289 for training, 5,082 for testing); 13,084 of "
        "them have 8 views, 1,345 have 4 (cameras 1 to 4 only, nearly all in A10-A13, A21, A28, A30, A38, A52), 800 "
        "have 2 (one stand, A49 and A50), 134 have 7, and 8 have 3 or 6",
        "the paper tests across ages by the test persons of one age; that it trains on the training persons of one age "
        "only, as the protocols here do, is inferred",
        "20 frames per second, by one user's account; the preparation records what the files say",
    )

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. The folders of persons above the file are ignored."""
        video = _parse_name(path)
        if video.subject >= FIRST_LIVING_LAB_PERSON:
            raise UserError(
                f"{path!r}: persons from {FIRST_LIVING_LAB_PERSON} on are those of ETRI-Activity3D-LivingLab, another "
                f"data set (--dataset=etri_livinglab); those of ETRI-Activity3D are 1 to {NUM_PERSONS}"
            )
        check_range(path, "persons", video.subject, NUM_PERSONS)
        check_range(path, "groups", video.performance, NUM_GROUPS)
        check_range(path, "cameras", video.camera, NUM_CAMERAS)
        return video

    def format(self, video: Video) -> str:
        numbers = f"A{video.label + 1:03}_P{video.subject:03}_G{video.performance:03}"
        return f"{numbers}_C{video.camera:03}.mp4"


class LivingLab(ETRI):
    """ETRI-Activity3D-LivingLab: people at home, in files that are called as ETRI-Activity3D's."""

    name = "etri_livinglab"
    protocols: ClassVar = {"random": random_takes}
    published = ()
    remarks = (
        f"that its persons are {FIRST_LIVING_LAB_PERSON} and up rests on one user's account, and that its actions are "
        "those of ETRI-Activity3D is inferred from the names; how many groups and cameras there are is not known, so "
        "any number is taken",
    )

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. The folders above the file are ignored."""
        video = _parse_name(path)
        if video.subject < FIRST_LIVING_LAB_PERSON:
            raise UserError(
                f"{path!r}: persons below {FIRST_LIVING_LAB_PERSON} are those of ETRI-Activity3D, another data set "
                "(--dataset=etri)"
            )
        if 0 in (video.performance, video.camera):
            raise UserError(f"{path!r}: groups and cameras count from 1")
        return video
