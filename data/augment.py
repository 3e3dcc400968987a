"""Augmentation of labelled clips."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training clip goes through besides its random crop; everything is off by default.

    Attributes:
      randaugment_num_ops: operations drawn per clip.
      randaugment_magnitude: their mean strength, of 10.
      randaugment_magnitude_std: its standard deviation from operation to operation.
      random_erasing: probability that a box is overwritten by noise.
      flip: probability of a mirror image.
    """

    randaugment_num_ops: int = 0
    randaugment_magnitude: float = 7.0
    randaugment_magnitude_std: float = 0.5
    random_erasing: float = 0.0
    flip: float = 0.0


_SIDES = {"left", "right", "leftward", "rightward", "leftwards", "rightwards"}
_TURNS = {"clockwise", "anticlockwise", "counterclockwise"}


def has_left_right(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The class names that speak of a side or a sense of rotation: in a mirror they are another class's."""
    return tuple(name for name in class_names if (_SIDES | _TURNS) & set(_words(name)))


def _words(name: str) -> list[str]:
    """'TurnLeft', 'turn_left' and 'turn left' are the same two words."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
