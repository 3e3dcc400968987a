"""The people who act: their proportions, clothes and manner, and the body that joint angles move.

A body is a set of round cones (two spheres of different radii and what a sphere sweeps between them), flattened
across the bone where the body is flat. In body coordinates x points forwards, y to the left, z up.
"""

import colorsys
import dataclasses
import itertools

import numpy as np

from data.synthetic.actions import JOINT_ANGLES

_ARM, _LEG = ("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")
JOINTS = ("pelvis", "spine", "neck", *(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM + _LEG))
_CHAINS = [("pelvis", "spine", "neck")] + [
    (start, *(f"{side}_{joint}" for joint in limb))
    for side in ("left", "right")
    for start, limb in (("neck", _ARM), ("pelvis", _LEG))
]
BONES = tuple((JOINTS.index(a), JOINTS.index(b)) for chain in _CHAINS for a, b in itertools.pairwise(chain))
NOMINAL_HEIGHT = 1.75  # metres; the bone lengths below add up to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One person. Colours are RGB in 0..1, lengths metres."""

    height: float
    # Proportions relative to a nominal body of the same height.
    leg_scale: float
    arm_scale: float
    girth: float
    # Manner of moving, 1 = nominal.
    speed: float
    amplitude: float
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    shirt: tuple[float, float, float]
    shirt_accent: tuple[float, float, float]
    trousers: tuple[float, float, float]
    shoes: tuple[float, float, float]
    cloth: str  # pattern of the shirt, one of 'plain', 'hoops', 'stripes', 'checks', 'dots'
    cloth_period: float  # the pattern's period
    # What is covered.
    long_sleeves: bool
    long_trousers: bool
    long_hair: bool


_SKIN = ((0.96, 0.80, 0.69), (0.89, 0.69, 0.55), (0.78, 0.57, 0.42), (0.60, 0.41, 0.29), (0.42, 0.28, 0.20))
_HAIR = (
    (0.10, 0.08, 0.07),
    (0.28, 0.17, 0.10),
    (0.48, 0.30, 0.15),
    (0.80, 0.64, 0.34),
    (0.55, 0.22, 0.12),
    (0.62, 0.61, 0.60),
)


def make_subject(seed: int, subject: int) -> Subject:
    """The person with NTU number `subject` (P), the same in every setup and every take."""
    rng = np.random.default_rng([seed, 1, subject])
    # By the golden ratio, neighbours differ clearly.
    hue = (0.618034 * subject + np.random.default_rng([seed, 1]).uniform()) % 1
    return Subject(
        height=rng.uniform(1.56, 1.90),
        leg_scale=rng.uniform(0.96, 1.05),
        arm_scale=rng.uniform(0.95, 1.06),
        girth=rng.uniform(0.90, 1.18),
        speed=rng.uniform(0.88, 1.14),
        amplitude=rng.uniform(0.88, 1.06),
        skin=_SKIN[rng.integers(len(_SKIN))],
        hair=_HAIR[rng.integers(len(_HAIR))],
        shirt=colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.85), rng.uniform(0.70, 0.95)),
        shirt_accent=colorsys.hsv_to_rgb(
            (hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.1, 0.6), rng.uniform(0.8, 1.0)
        ),
        trousers=colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.15, 0.6), rng.uniform(0.22, 0.55)),
        shoes=colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.7), rng.choice([0.15, 0.9])),
        cloth=str(rng.choice(["plain", "hoops", "stripes", "checks", "dots"])),
        cloth_period=rng.uniform(0.10, 0.16),
        long_sleeves=bool(rng.uniform() < 0.5),
        long_trousers=bool(rng.uniform() < 0.7),
        long_hair=bool(rng.uniform() < 0.5),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """The posed body: P round cones in T frames, in world coordinates and metres."""

    names: tuple[str, ...]  # the P part names
    start: np.ndarray  # float64[T, P, 3], centre of the first sphere
    axes: np.ndarray  # float64[T, P, 3, 3], rows are the part's own x, y, z in the world; z runs along the bone
    length: np.ndarray  # float64[P], distance of the two centres
    radii: np.ndarray  # float64[P, 2], of the two spheres, before flattening
    flatness: np.ndarray  # float64[P, 2], factors on the radii along the part's own x and y
    joints: dict[str, np.ndarray]  # joint name -> float64[T, 3]


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Right-handed rotations about a coordinate axis: angle float[T] -> float64[T, 3, 3]."""
    matrix = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -matrix[..., j, i]
    return matrix


# (part, joint frame, bone direction, start and end along the bone, radii, flatness along the part's x and y), in
# metres at the nominal height; [ours], from common body proportions.
_TRUNK_PARTS = (
    ("pelvis", "pelvis", "up", (0.00, 0.06), (0.118, 0.145), (0.80, 1.08)),
    ("abdomen", "spine", "up", (0.06, 0.20), (0.138, 0.140), (0.70, 1.0)),
    ("chest", "spine", "up", (0.22, 0.40), (0.142, 0.150), (0.68, 1.08)),
    ("neck", "neck", "up", (-0.02, 0.09), (0.055, 0.050), (1.0, 1.0)),
    ("head", "neck", "up", (0.135, 0.205), (0.078, 0.100), (1.0, 0.86)),
)
_LIMB_PARTS = (
    ("upper_arm", "shoulder", "down", (0.0, 0.27), (0.058, 0.044), (1.0, 1.0)),
    ("forearm", "elbow", "down", (0.0, 0.24), (0.044, 0.034), (1.0, 1.0)),
    ("hand", "wrist", "down", (0.02, 0.11), (0.042, 0.036), (0.75, 1.0)),
    ("thigh", "hip", "down", (0.0, 0.42), (0.085, 0.062), (1.0, 1.0)),
    ("shin", "knee", "down", (0.0, 0.40), (0.060, 0.045), (1.0, 1.0)),
    ("foot", "ankle", "forward", (-0.03, 0.14), (0.050, 0.044), (0.85, 0.95)),
)
SPINE, NECK, SHOULDER_UP, SHOULDER_OUT, HIP_OUT = 0.08, 0.46, 0.40, 0.185, 0.095
UPPER_ARM, FOREARM, THIGH, SHIN = 0.28, 0.25, 0.43, 0.41
FOOT_DROP, SOLE = 0.03, 0.045  # from the ankle down to the bone of the foot, and on to the floor
_BONE_AXES = {  # columns of the joint frame (and signs) that are the part's x, y, z
    "up": ((0, 1), (1, 1), (2, 1)),
    "down": ((0, 1), (1, -1), (2, -1)),
    "forward": ((2, 1), (1, -1), (0, 1)),
}


def pose_body(subject: Subject, angles: np.ndarray, place: np.ndarray, facing: float) -> Body:
    """Forward kinematics, with the feet on the floor.

    Args:
      angles: radians, float[T, J], columns as in actions.JOINT_ANGLES.
      place: float[2], where on the floor the person stands, metres.
      facing: radians about the vertical, 0 = world x.
    """
    joints, frames = _skeleton(subject, angles)
    scale, arm, leg = subject.height / NOMINAL_HEIGHT, subject.arm_scale, subject.leg_scale
    stretches = {"upper_arm": arm, "forearm": arm, "thigh": leg, "shin": leg}
    parts = [("", *part) for part in _TRUNK_PARTS]
    parts += [(side, *part) for side in ("left_", "right_") for part in _LIMB_PARTS]
    starts, axes, lengths, radii = [], [], [], []
    for side, name, joint, bone, (low, high), ends, _ in parts:
        frame = frames[side + joint]
        own = np.stack([sign * frame[..., column] for column, sign in _BONE_AXES[bone]], axis=1)  # (T, 3, 3)
        offset = low * own[:, 2] - (FOOT_DROP if name == "foot" else 0.0) * frame[..., 2]
        starts.append(joints[side + joint] + scale * offset)
        axes.append(own)
        lengths.append(scale * stretches.get(name, 1.0) * (high - low))
        girth = 1.0 if name in ("head", "hand", "foot") else subject.girth
        radii.append(scale * girth * np.array(ends))
    stand, turn = _standing_point(joints, scale), _rotation(2, np.asarray(facing))
    return Body(
        names=tuple(side + name for side, name, *_ in parts),
        start=(np.stack(starts, axis=1) - stand[:, None]) @ turn.T + [*place, 0.0],
        axes=np.stack(axes, axis=1) @ turn.T,
        length=np.array(lengths),
        radii=np.array(radii),
        flatness=np.array([flatness for *_, flatness in parts]),
        joints={name: (points - stand) @ turn.T + [*place, 0.0] for name, points in joints.items()},
    )


def _skeleton(subject: Subject, angles: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Joint positions float64[T, 3] and orientations float64[T, 3, 3] relative to the pelvis, by joint name."""
    angle = dict(zip(JOINT_ANGLES, angles.T, strict=True))
    scale, arm, leg = subject.height / NOMINAL_HEIGHT, subject.arm_scale, subject.leg_scale
    unturned = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    joints, frames = {"pelvis": np.zeros((len(angles), 3))}, {"pelvis": unturned}

    def attach(name: str, parent: str, offset: tuple[float, float, float], rotation: np.ndarray) -> None:
        joints[name] = joints[parent] + frames[parent] @ (scale * np.array(offset))
        frames[name] = frames[parent] @ rotation

    for trunk, parent, up in (("spine", "pelvis", SPINE), ("neck", "spine", NECK)):
        lean = _rotation(2, angle[f"{trunk}_yaw"]) @ _rotation(1, angle[f"{trunk}_pitch"])
        attach(trunk, parent, (0, 0, up), lean @ _rotation(0, -angle[f"{trunk}_roll"]))
    for side, sign in (("left", 1), ("right", -1)):
        swing = _rotation(0, sign * angle[f"{side}_shoulder_spread"]) @ _rotation(1, -angle[f"{side}_shoulder_raise"])
        twist = _rotation(2, sign * angle[f"{side}_shoulder_twist"])
        attach(f"{side}_shoulder", "spine", (0, sign * SHOULDER_OUT, SHOULDER_UP), swing @ twist)
        elbow = _rotation(1, -angle[f"{side}_elbow_bend"])
        attach(f"{side}_elbow", f"{side}_shoulder", (0, 0, -UPPER_ARM * arm), elbow)
        attach(f"{side}_wrist", f"{side}_elbow", (0, 0, -FOREARM * arm), unturned)
        swing = _rotation(0, sign * angle[f"{side}_hip_spread"]) @ _rotation(1, -angle[f"{side}_hip_raise"])
        attach(f"{side}_hip", "pelvis", (0, sign * HIP_OUT, 0), swing)
        attach(f"{side}_knee", f"{side}_hip", (0, 0, -THIGH * leg), _rotation(1, angle[f"{side}_knee_bend"]))
        attach(f"{side}_ankle", f"{side}_knee", (0, 0, -SHIN * leg), unturned)
    return joints, frames


def _standing_point(joints: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """The point relative to the pelvis that stands on the floor at the person's place, float64[T, 3].

    The lower foot stands where it stands at rest; both feet share the weight when level. So bending the knees lowers
    the hips and moves them back, as it does with people.
    """
    ankles = np.stack([joints["left_ankle"], joints["right_ankle"]], axis=1)  # (T, 2, 3)
    lowest = ankles[..., 2].min(axis=1)  # (T,)
    weight = np.exp((lowest[:, None] - ankles[..., 2]) / 0.02)  # (T, 2): within about 2 cm both carry
    weight /= weight.sum(axis=1, keepdims=True)
    at_rest = np.array([[0, HIP_OUT, 0], [0, -HIP_OUT, 0]])
    stand = np.einsum("tf,tfi->ti", weight, ankles - at_rest)  # (T, 3)
    stand[:, 2] = lowest - scale * (SOLE + FOOT_DROP)
    return stand
