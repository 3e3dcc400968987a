"""NTU RGB+D 60 and 120 (Shahroudy et al. 2016, Liu et al. 2019): `SsssCcccPpppRrrrAaaa_rgb.avi`.

S is the setup, C the camera, P the performer, R the performance, A the action. The three cameras of an (S, P, R, A) run
together: they are the views of a take. R is not a view but a second performance: C001 always stands at 45 degrees; in
R001 the performer faces C003 and C002 sees the side, in R002 the two change places.

In copies the names may lack `_rgb`, be in lower case or have another container's extension. The most used preparation
of the RGB videos writes `S001C001P001R001A001.mp4`.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import CONTAINER, Catalog, Row, Split, Video, by, check_range, random_takes

# Spelling of the authors' list (github.com/shahroudy/NTURGB-D).
# fmt: off
CLASS_NAMES = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw",  # A1 to A7
    "sitting down", "standing up (from sitting position)", "clapping", "reading", "writing",  # A8 to A12
    "tear up paper", "wear jacket", "take off jacket", "wear a shoe", "take off a shoe",  # A13 to A17
    "wear on glasses", "take off glasses", "put on a hat/cap", "take off a hat/cap", "cheer up",  # A18 to A22
    "hand waving", "kicking something", "reach into pocket", "hopping (one foot jumping)", "jump up",  # A23 to A27
    "make a phone call/answer phone", "playing with phone/tablet", "typing on a keyboard",  # A28 to A30
    "pointing to something with finger", "taking a selfie", "check time (from watch)",  # A31 to A33
    "rub two hands together", "nod head/bow", "shake head", "wipe face", "salute",  # A34 to A38
    "put the palms together", "cross hands in front (say stop)", "sneeze/cough", "staggering",  # A39 to A42
    "falling", "touch head (headache)", "touch chest (stomachache/heart pain)", "touch back (backache)",  # A43 to A46
    "touch neck (neckache)", "nausea or vomiting condition",  # A47 to A48
    "use a fan (with hand or paper)/feeling warm", "punching/slapping other person",  # A49 to A50
    "kicking other person", "pushing other person", "pat on back of other person",  # A51 to A53
    "point finger at the other person", "hugging other person", "giving something to other person",  # A54 to A56
    "touch other person's pocket", "handshaking", "walking towards each other",  # A57 to A59
    "walking apart from each other", "put on headphone", "take off headphone", "shoot at the basket",  # A60 to A63
    "bounce ball", "tennis bat swing", "juggling table tennis balls", "hush (quite)", "flick hair",  # A64 to A68
    "thumb up", "thumb down", "make ok sign", "make victory sign", "staple book", "counting money",  # A69 to A74
    "cutting nails", "cutting paper (using scissors)", "snapping fingers", "open bottle",  # A75 to A78
    "sniff (smell)", "squat down", "toss a coin", "fold paper", "ball up paper", "play magic cube",  # A79 to A84
    "apply cream on face", "apply cream on hand back", "put on bag", "take off bag",  # A85 to A88
    "put something into a bag", "take something out of a bag", "open a box", "move heavy objects",  # A89 to A92
    "shake fist", "throw up cap/hat", "hands up (both hands)", "cross arms", "arm circles",  # A93 to A97
    "arm swings", "running on the spot", "butt kicks (kick backward)", "cross toe touch", "side kick",  # A98 to A102
    "yawn", "stretch oneself", "blow nose", "hit other person with something",  # A103 to A106
    "wield knife towards other person", "knock over other person (hit with body)",  # A107 to A108
    "grab other person's stuff", "shoot at other person with a gun", "step on foot", "high-five",  # A109 to A112
    "cheers and drink", "carry something with other person", "take a photo of other person",  # A113 to A115
    "follow other person", "whisper in other person's ear", "exchange things with other person",  # A116 to A118
    "support somebody with hand", "finger-guessing game (playing rock-paper-scissors)",  # A119 to A120
)
# fmt: on

# Setup -> its performers. Every performer of a setup did every action of it, twice, before three cameras, so the table
# gives the complete list of names. Checked against the public lists of available and of missing skeletons.
SUBJECTS_OF_SETUP = {
    1: (1, 2, 3, 4, 5, 6, 7, 8),
    2: (3, 7, 8, 9, 10, 11, 12, 13, 14),
    3: (1, 2, 7, 8, 15, 16, 17, 18, 19),
    4: (3, 7, 8, 20),
    5: (4, 10, 13, 15, 16, 17, 18, 21),
    6: (1, 7, 8, 15, 16, 17, 19, 22, 23, 24),
    7: (1, 7, 8, 15, 16, 17, 18, 19, 25, 26, 27, 28),
    8: (1, 7, 8, 15, 19, 25, 29, 30, 31, 32, 33, 34, 35, 36),
    9: (7, 8, 15, 16, 17, 19, 25),
    10: (7, 8, 13, 15, 16, 17, 18, 19, 21, 25),
    11: (1, 2, 7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 38),
    12: (7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 37),
    13: (7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 37),
    14: (7, 8, 15, 17, 19, 25, 27, 37, 39),
    15: (7, 8, 15, 16, 17, 19, 25, 37),
    16: (7, 8, 19, 21, 25, 39, 40),
    17: (3, 7, 8, 9, 15, 16, 17, 20),
    18: (8, 41, 42, 43, 44, 45),
    19: (8, 41, 42, 46, 47, 48, 49, 50, 51),
    20: (8, 41, 43, 44, 52, 53, 54),
    21: (55, 56, 57, 58, 59, 60),
    22: (61, 62, 63, 64, 65, 66, 67),
    23: (55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68),
    24: (57, 60, 61, 62, 63, 64, 67),
    25: (55, 56, 58, 59, 65, 66, 68),
    26: (8, 41, 44, 49, 50, 51, 69, 70, 71, 72, 74, 75, 76, 77),
    27: (6, 8, 11, 41, 43, 44, 78, 79, 80, 81, 82, 83, 84, 85, 86),
    28: (8, 41, 42, 43, 46, 48, 70, 73, 87),
    29: (6, 8, 41, 43, 44, 48, 49, 51, 67, 74, 75, 80, 88, 89, 90),
    30: (8, 11, 41, 43, 44, 48, 67, 75, 76, 81, 85, 88, 91, 92, 93, 94, 95, 96),
    31: (6, 8, 41, 42, 43, 44, 51, 67, 82, 85, 96, 97, 98, 99, 100, 101),
    32: (8, 41, 43, 44, 67, 102, 103, 104, 105, 106),
}

# Official training performers: the papers' lists, as in CTR-GCN and MS-G3D; all others are for testing.
NTU60_TRAIN_SUBJECTS = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
# fmt: off
NTU120_TRAIN_SUBJECTS = NTU60_TRAIN_SUBJECTS | {
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80,
    81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
}
# fmt: on
NUM_CAMERAS = 3
NUM_PERFORMANCES = 2
NTU60_CLASSES = range(60)  # labels of NTU-60, the first of NTU-120
# One-shot recognition of NTU-120, by the authors' README (github.com/shahroudy/NTURGB-D, ac2ebc8): the novel classes
# are A1, A7, ..., A115, with one video of each as the exemplar; the other 100 classes are the auxiliary set.
NOVEL_CLASSES = range(0, 120, 6)
EXEMPLAR_SETUPS, EXEMPLAR = (1, 18), (3, 8, 1)  # camera, performer, performance

_NAME = re.compile(rf"S(\d{{3}})C(\d{{3}})P(\d{{3}})R(\d{{3}})A(\d{{3}})(?:_rgb)?{CONTAINER}", re.ASCII | re.IGNORECASE)


# Cross-subject: of NTU-60, 20 performers train and the other 20 test; of NTU-120, 53 train and the other 53 test.
_xsub60 = by("subject", lambda subject: subject not in NTU60_TRAIN_SUBJECTS)
_xsub120 = by("subject", lambda subject: subject not in NTU120_TRAIN_SUBJECTS)
xview = by("camera", lambda camera: camera == 1)  # cross-view of NTU-60: cameras 2 and 3 train, camera 1 tests


def _of_ntu60(protocol: Callable[[Row], Split]) -> Callable[[Row], Split | None]:
    """A protocol of NTU-60 on NTU-120: rows of the other 60 classes are in neither split."""
    return lambda row: protocol(row) if row.label in NTU60_CLASSES else None


_XVIEW_OF_NTU60 = _of_ntu60(xview)


def one_shot(row: Row) -> Split | None:
    """One-shot recognition of NTU-120's 20 novel classes: one exemplar of each is known, all other videos are tested.

    The tested videos include the exemplar's own take from the other two cameras.
    """
    if row.label not in NOVEL_CLASSES:
        return None
    is_exemplar = row.setup in EXEMPLAR_SETUPS and (row.camera, row.subject, row.performance) == EXEMPLAR
    return "train" if is_exemplar else "test"


def one_shot_auxiliary(row: Row) -> Split | None:
    """The training data of one-shot recognition: all videos of the other 100 classes. It has no test split."""
    return None if row.label in NOVEL_CLASSES else "train"


class NamedAsNTU(Catalog):
    """Files that are called as NTU's are, of any setups, performers and actions."""

    def parse(self, path: str) -> Video:
        matched = _NAME.fullmatch(path.rpartition("/")[2])
        if not matched:
            raise UserError(
                f"{path!r} is not of the form SsssCcccPpppRrrrAaaa_rgb.avi, as S001C002P003R001A013_rgb.avi is"
            )
        setup, camera, subject, performance, action = map(int, matched.groups())
        check_range(path, "cameras", camera, NUM_CAMERAS)
        check_range(path, "performances", performance, NUM_PERFORMANCES)
        return Video(
            path=path,
            take=f"S{setup:03}P{subject:03}R{performance:03}A{action:03}",
            view=f"C{camera:03}",
            label=action - 1,
            subject=subject,
            setup=setup,
            camera=camera,
            performance=performance,
        )

    def format(self, video: Video) -> str:
        who_and_where = f"S{video.setup:03}C{video.camera:03}P{video.subject:03}"
        return f"{who_and_where}R{video.performance:03}A{video.label + 1:03}_rgb.avi"


class NTU(NamedAsNTU):
    """What both editions share."""

    setups: range

    @staticmethod
    def actions(setup: int) -> range:
        """The one-based actions of a setup: A1 to A60 in setups 1 to 17, A61 to A120 from setup 18 on."""
        return range(1, 61) if setup <= 17 else range(61, 121)

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. The numbers must be ones that exist: this setup's performers and actions."""
        video = super().parse(path)
        if video.setup not in self.setups:
            raise UserError(f"{path!r}: {self.name} has setups 1 to {self.setups[-1]}, not {video.setup}")
        actions = self.actions(video.setup)
        if video.label + 1 not in actions:
            raise UserError(
                f"{path!r}: setup {video.setup} has actions {actions[0]} to {actions[-1]}, not {video.label + 1}"
            )
        if video.subject not in SUBJECTS_OF_SETUP[video.setup]:
            performers = ", ".join(map(str, SUBJECTS_OF_SETUP[video.setup]))
            raise UserError(f"{path!r}: setup {video.setup} has performers {performers}, not {video.subject}")
        return video

    def names(self) -> Iterator[str]:
        """Every file name of the complete data set, in order of setup, performer, performance, action, camera."""
        performances, cameras = range(1, NUM_PERFORMANCES + 1), range(1, NUM_CAMERAS + 1)
        for s in self.setups:
            for p, r, a, c in itertools.product(SUBJECTS_OF_SETUP[s], performances, self.actions(s), cameras):
                yield f"S{s:03}C{c:03}P{p:03}R{r:03}A{a:03}_rgb.avi"


class NTU60(NTU):
    """NTU RGB+D 60: 56,880 videos of 60 classes, 40 performers, 17 setups."""

    name = "ntu60"
    class_names = CLASS_NAMES[:60]
    setups = range(1, 18)
    protocols: ClassVar = {"xsub": _xsub60, "xview": xview, "random": random_takes}


class NTU120(NTU):
    """NTU RGB+D 120: 114,480 videos of 120 classes, 106 performers, 32 setups; holds NTU-60."""

    name = "ntu120"
    class_names = CLASS_NAMES
    setups = range(1, 33)
    protocols: ClassVar = {
        "xsub": _xsub120,
        "xset": by("setup", lambda setup: setup % 2 == 1),  # setups of even number train, of odd number test
        "ntu60_xsub": _of_ntu60(_xsub60),
        "ntu60_xview": _XVIEW_OF_NTU60,
        "xview": _XVIEW_OF_NTU60,  # NTU-120 has none of its own
        "one_shot": one_shot,
        "one_shot_auxiliary": one_shot_auxiliary,
        "random": random_takes,
    }
    labels_of: ClassVar = {
        "ntu60_xsub": tuple(NTU60_CLASSES),
        "ntu60_xview": tuple(NTU60_CLASSES),
        "xview": tuple(NTU60_CLASSES),
        "one_shot": tuple(NOVEL_CLASSES),
        "one_shot_auxiliary": tuple(label for label in range(120) if label not in NOVEL_CLASSES),
    }
