"""What the actors do: one table of action classes and the joint angles of each as a function of its phase.

The classes come in pairs: left and right limb (mirror images of one path), forwards and backwards in time (one path,
reversed) and slow and fast (one path at two rates). Single frames do not tell the last two apart. All angles and
rates are [ours]: chosen to look like the action, within what human joints do.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from data.catalog.synthetic import CLASS_NAMES

AXIAL = ("spine_pitch", "spine_roll", "spine_yaw", "neck_pitch", "neck_roll", "neck_yaw")
PAIRED = (
    "shoulder_raise",  # forwards and up, from hanging
    "shoulder_spread",  # sideways and up, away from the body
    "shoulder_twist",  # about the upper arm; turns a bent forearm outwards
    "elbow_bend",
    "hip_raise",  # thigh forwards and up
    "hip_spread",
    "knee_bend",
)
JOINT_ANGLES = (*AXIAL, *(f"left_{name}" for name in PAIRED), *(f"right_{name}" for name in PAIRED))

Path = Callable[[np.ndarray, float], Mapping[str, np.ndarray | float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """One class: a path through joint space and how it is travelled."""

    name: str  # of the class
    path: Path  # (phase float[T], amplitude) -> degrees by joint angle name; angles that are left out stay at rest
    seconds: float  # time that phase needs from 0 to 1 at speed 1
    # Whether the path closes at phase 1 and goes round again; otherwise the actor waits, acts once, and stays.
    repeats: bool = True
    reverse: bool = False  # travel the path backwards
    mirror: bool = False  # swap left and right


def _there_and_back(phase: np.ndarray) -> np.ndarray:
    return (1 - np.cos(2 * np.pi * phase)) / 2


def _ease(phase: np.ndarray) -> np.ndarray:
    s = np.clip(phase, 0, 1)
    return s * s * (3 - 2 * s)


def _both(**degrees: np.ndarray | float) -> dict[str, np.ndarray | float]:
    """The same angles on the left and on the right."""
    return {f"{side}_{name}": values for side in ("left", "right") for name, values in degrees.items()}


def _wave(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    swing = np.sin(2 * np.pi * phase)
    return {
        "left_shoulder_spread": 92 + 6 * swing,
        "left_shoulder_twist": 90,
        "left_elbow_bend": 72 + 42 * amplitude * swing,
        "spine_roll": -3 * swing,
    }


def _punch(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    reach = amplitude * _there_and_back(phase)
    return {
        "left_shoulder_raise": 15 + 70 * reach,
        "left_elbow_bend": 125 - 115 * reach,
        "right_shoulder_raise": 25,
        "right_elbow_bend": 125,
        "spine_yaw": 12 - 34 * reach,
        "neck_yaw": -10 + 28 * reach,
        "spine_pitch": 4 + 6 * reach,
        "left_hip_raise": 8,
        "right_hip_raise": -8,
    }


def _kick(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    lift = amplitude * _there_and_back(phase)
    return {
        "left_hip_raise": 82 * lift,
        "left_knee_bend": 75 * np.sin(2 * np.pi * phase).clip(0) + 5,
        "spine_pitch": -12 * lift,
        "left_shoulder_raise": -28 * lift,
        "right_shoulder_raise": 38 * lift,
        "left_shoulder_spread": 12 + 18 * lift,
        "right_shoulder_spread": 12 + 18 * lift,
        "left_elbow_bend": 25,
        "right_elbow_bend": 35,
    }


def _sit_down(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    del amplitude  # The seat sets how far down is.
    s = _ease(phase)
    lean = 40 * np.sin(np.pi * s) + 3 * s
    arms = _both(shoulder_raise=35 * np.sin(np.pi * s) + 22 * s, elbow_bend=12 + 45 * s)
    return {"spine_pitch": lean, "neck_pitch": -0.4 * lean, **arms, **_both(hip_raise=88 * s, knee_bend=88 * s)}


def _raise_arms(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    s = _ease(phase)
    return {**_both(shoulder_spread=8 + 155 * amplitude * s), "spine_pitch": -5 * s, "neck_pitch": -12 * s}


def _circle_arms(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    arms = _both(shoulder_raise=360 * phase, shoulder_spread=14 * amplitude)
    return {**arms, "spine_pitch": 4 * np.sin(2 * np.pi * phase)}


def _clap(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    opening = _there_and_back(phase)
    twist, spread = -30 + 75 * amplitude * opening, 6 + 22 * amplitude * opening
    return _both(shoulder_twist=twist, shoulder_spread=spread, shoulder_raise=32.0, elbow_bend=75.0)


def _march(phase: np.ndarray, amplitude: float) -> Mapping[str, np.ndarray | float]:
    stride = np.sin(2 * np.pi * phase)
    left, right = stride.clip(0), (-stride).clip(0)
    return {
        "left_hip_raise": 68 * amplitude * left,
        "right_hip_raise": 68 * amplitude * right,
        "left_knee_bend": 88 * amplitude * left,
        "right_knee_bend": 88 * amplitude * right,
        "left_shoulder_raise": -42 * amplitude * stride,
        "right_shoulder_raise": 42 * amplitude * stride,
        "left_elbow_bend": 60,
        "right_elbow_bend": 60,
        "spine_yaw": -6 * stride,
    }


ACTIONS = (
    Action(name="wave with the left hand", path=_wave, seconds=0.9),
    Action(name="wave with the right hand", path=_wave, seconds=0.9, mirror=True),
    Action(name="punch with the left hand", path=_punch, seconds=1.1),
    Action(name="punch with the right hand", path=_punch, seconds=1.1, mirror=True),
    Action(name="kick with the left leg", path=_kick, seconds=1.4),
    Action(name="kick with the right leg", path=_kick, seconds=1.4, mirror=True),
    Action(name="sit down", path=_sit_down, seconds=1.8, repeats=False),
    Action(name="stand up", path=_sit_down, seconds=1.8, repeats=False, reverse=True),
    Action(name="raise both arms", path=_raise_arms, seconds=1.8, repeats=False),
    Action(name="lower both arms", path=_raise_arms, seconds=1.8, repeats=False, reverse=True),
    Action(name="circle the arms backwards", path=_circle_arms, seconds=1.5),
    Action(name="circle the arms forwards", path=_circle_arms, seconds=1.5, reverse=True),
    Action(name="clap slowly", path=_clap, seconds=1.5),
    Action(name="clap fast", path=_clap, seconds=0.6),
    Action(name="march slowly", path=_march, seconds=2.0),
    Action(name="march fast", path=_march, seconds=0.8),
)
assert tuple(action.name for action in ACTIONS) == CLASS_NAMES  # label order

REST_DEGREES = _both(shoulder_spread=9.0, elbow_bend=14.0, hip_spread=4.0)
_MIRROR_ORDER = [
    JOINT_ANGLES.index(name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right"))
    for name in JOINT_ANGLES
]
_MIRROR_SIGN = np.array([-1.0 if name.endswith(("_roll", "_yaw")) else 1.0 for name in JOINT_ANGLES])


def mirrored(angles: np.ndarray) -> np.ndarray:
    """The mirror image of joint angles float[T, J]: left and right swapped, sideways lean and turn negated."""
    return angles[:, _MIRROR_ORDER] * _MIRROR_SIGN


def pose(action: Action, phase: np.ndarray, amplitude: float = 1.0) -> np.ndarray:
    """Joint angles of an action: radians, float64[T, J], columns as in JOINT_ANGLES.

    Args:
      phase: float[T]; one repetition per unit for actions that repeat, 0 = not begun and 1 = done for the others.
      amplitude: size of the movement, 1 = nominal.
    """
    degrees = REST_DEGREES | dict(action.path(1 - phase if action.reverse else phase, amplitude))
    angles = np.zeros((len(phase), len(JOINT_ANGLES)))
    for name, values in degrees.items():
        angles[:, JOINT_ANGLES.index(name)] = np.deg2rad(values)
    return mirrored(angles) if action.mirror else angles


def phases(action: Action, num_frames: int, fps: float, speed: float, rng: np.random.Generator) -> np.ndarray:
    """The action's phase in every frame, float64[T].

    A repeated action starts anywhere in its cycle. An action that happens once starts at a random time that leaves room
    for all of it, so that its beginning or end does not give away the class.
    """
    seconds = np.arange(num_frames) / fps
    if action.repeats:
        return rng.uniform() + speed * seconds / action.seconds
    duration = min(action.seconds / speed, seconds[-1])
    onset = rng.uniform(0, seconds[-1] - duration)
    return np.clip((seconds - onset) / duration, 0, 1)


def idle_sway(num_frames: int, fps: float, rng: np.random.Generator) -> np.ndarray:
    """Small slow movements of every joint that have nothing to do with the action: radians, float64[T, J]."""
    seconds = np.arange(num_frames)[:, None, None] / fps
    shape = (2, len(JOINT_ANGLES))  # Two sines per joint.
    legs = np.array([any(part in name for part in ("hip", "knee")) for name in JOINT_ANGLES])
    degrees = rng.uniform(0.8, 2.2, shape) * np.where(legs, 0.3, 1.0)
    waves = np.sin(2 * np.pi * (rng.uniform(0.15, 0.6, shape) * seconds + rng.uniform(size=shape)))  # (T, 2, J)
    return np.deg2rad(degrees * waves).sum(axis=1)  # (T, J)
