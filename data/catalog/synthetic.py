"""The generated data set of `python -m data.synthetic`: names and meaning as in NTU, actions of its own."""

from typing import ClassVar

from console.errors import UserError
from data.catalog import ntu
from data.catalog.base import Row, Split, Video, by, check_range, random_takes

CLASS_NAMES = (  # label order: A001 is index 0
    "wave with the left hand",
    "wave with the right hand",
    "punch with the left hand",
    "punch with the right hand",
    "kick with the left leg",
    "kick with the right leg",
    "sit down",
    "stand up",
    "raise both arms",
    "lower both arms",
    "circle the arms backwards",
    "circle the arms forwards",
    "clap slowly",
    "clap fast",
    "march slowly",
    "march fast",
)


# Cross-subject: subjects of odd number train, of even number test. [ours]: halves, as NTU's.
_xsub = by("subject", lambda subject: subject % 2 == 0)


def xsub_xview(row: Row) -> Split:
    """Tests on other people, seen by a camera that training has not seen. [ours]"""
    split = _xsub(row)
    return split if split == ntu.xview(row) else None


class Synthetic(ntu.NamedAsNTU):
    """Generated takes; any number of setups and subjects, three cameras, two performances."""

    name = "synthetic"
    class_names = CLASS_NAMES
    protocols: ClassVar = {"xsub": _xsub, "xview": ntu.xview, "xsub_xview": xsub_xview, "random": random_takes}

    def parse(self, path: str) -> Video:
        video = super().parse(path)
        check_range(path, "actions", video.label + 1, len(CLASS_NAMES))
        if video.subject < 1 or video.setup < 1:
            raise UserError(f"{path!r}: setups and subjects count from 1")
        return video
