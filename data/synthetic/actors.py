"""Who acts: subjects with their own proportions, clothes and manner, and the body that joint angles move.

A body is a set of round cones (two spheres of different radii and what a sphere sweeps between them), flattened
across the bone where the body is flat. In body coordinates x points forwards, y to the left, z up.
"""

import colorsys
import dataclasses

import numpy as np

from data.synthetic.actions import JOINT_ANGLES

NOMINAL_HEIGHT = 1.75  # metres; the bone lengths below add up to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One person. Colours are RGB in 0..1, lengths metres.

    Attributes:
      height: body height.
      leg_scale, arm_scale, girth: proportions relative to a nominal body of the same height.
      speed, amplitude: manner of moving, 1 = nominal.
      cloth: pattern of the shirt, one of 'plain', 'hoops', 'stripes', 'checks', 'dots'.
      cloth_period: the pattern's period.
      long_sleeves, long_trousers, long_hair: what is covered.
    """

    height: float
    leg_scale: float
    arm_scale: float
    girth: float
    speed: float
    amplitude: float
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    shirt: tuple[float, float, float]
    shirt_accent: tuple[float, float, float]
    trousers: tuple[float, float, float]
    shoes: tuple[float, float, float]
    cloth: str
    cloth_period: float
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
    hue = (
        0.618034 * subject + np.random.default_rng([seed, 1]).uniform()
    ) % 1  # golden ratio: neighbours differ clearly
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
    """The posed body: P round cones in T frames, in world coordinates and metres.

    Attributes:
      names: the P part names.
      start: float64[T, P, 3], centre of the first sphere.
      axes: float64[T, P, 3, 3], rows are the part's own x, y, z in the world; z runs along the bone.
      length: float64[P], distance of the two centres.
      radii: float64[P, 2], of the two spheres, before flattening.
      flatness: float64[P, 2], factors on the radii along the part's own x and y.
      joints: joint name -> float64[T, 3].
    """

    names: tuple[str, ...]
    start: np.ndarray
    axes: np.ndarray
    length: np.ndarray
    radii: np.ndarray
    flatness: np.ndarray
    joints: dict[str, np.ndarray]


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
UPPER_ARM, FOREARM, THIGH, SHIN, SOLE = 0.28, 0.25, 0.43, 0.41, 0.045
_BONE_AXES = {  # columns of the joint frame (and signs) that are the part's x, y, z
    "up": ((0, 1), (1, 1), (2, 1)),
    "down": ((0, 1), (1, -1), (2, -1)),
    "forward": ((2, 1), (1, -1), (0, 1)),
}


def pose_body(subject: Subject, angles: np.ndarray, place: np.ndarray, facing: float) -> Body:
    """Forward kinematics, with the feet on the floor.

    The lower foot stands on the floor (z = 0) where it stands at rest; both feet share the weight when level. So
    bending the knees lowers the hips and moves them back, as it does with people.

    Args:
      subject: the person.
      angles: radians, float[T, J], columns as in actions.JOINT_ANGLES.
      place: float[2], where on the floor the person stands, metres.
      facing: radians about the vertical, 0 = world x.
    """
    angle = dict(zip(JOINT_ANGLES, angles.T, strict=True))
    scale = subject.height / NOMINAL_HEIGHT
    frames, joints = {}, {}
    upright = np.broadcast_to(np.eye(3), (len(angles), 3, 3))

    def attach(name: str, parent: str, offset: tuple[float, float, float], rotation: np.ndarray) -> None:
        joints[name] = joints[parent] + frames[parent] @ (scale * np.array(offset))
        frames[name] = frames[parent] @ rotation

    frames["pelvis"], joints["pelvis"] = upright, np.zeros((len(angles), 3))
    for trunk, parent, up in (("spine", "pelvis", SPINE), ("neck", "spine", NECK)):
        lean = _rotation(2, angle[f"{trunk}_yaw"]) @ _rotation(1, angle[f"{trunk}_pitch"])
        attach(trunk, parent, (0, 0, up), lean @ _rotation(0, -angle[f"{trunk}_roll"]))
    arm, leg = subject.arm_scale, subject.leg_scale
    for side, sign in (("left", 1), ("right", -1)):
        swing = _rotation(0, sign * angle[f"{side}_shoulder_spread"]) @ _rotation(1, -angle[f"{side}_shoulder_raise"])
        twist = _rotation(2, sign * angle[f"{side}_shoulder_twist"])
        attach(f"{side}_shoulder", "spine", (0, sign * SHOULDER_OUT, SHOULDER_UP), swing @ twist)
        elbow = _rotation(1, -angle[f"{side}_elbow_bend"])
        attach(f"{side}_elbow", f"{side}_shoulder", (0, 0, -UPPER_ARM * arm), elbow)
        attach(f"{side}_wrist", f"{side}_elbow", (0, 0, -FOREARM * arm), upright)
        swing = _rotation(0, sign * angle[f"{side}_hip_spread"]) @ _rotation(1, -angle[f"{side}_hip_raise"])
        attach(f"{side}_hip", "pelvis", (0, sign * HIP_OUT, 0), swing)
        attach(f"{side}_knee", f"{side}_hip", (0, 0, -THIGH * leg), _rotation(1, angle[f"{side}_knee_bend"]))
        attach(f"{side}_ankle", f"{side}_knee", (0, 0, -SHIN * leg), upright)

    ankles = np.stack([joints["left_ankle"], joints["right_ankle"]], axis=1)  # (T, 2, 3)
    weight = np.exp(
        -(ankles[..., 2:] - ankles[..., 2:].min(axis=1, keepdims=True)) / 0.02
    )  # (T, 2, 1), 2 cm share weight
    stand = (weight / weight.sum(axis=1, keepdims=True) * (ankles - [[[0, HIP_OUT, 0], [0, -HIP_OUT, 0]]])).sum(axis=1)
    stand[:, 2] = ankles[..., 2].min(axis=1) - scale * (SOLE + 0.03)  # (T, 3)
    turn = _rotation(2, np.asarray(facing))

    def to_world(points: np.ndarray) -> np.ndarray:
        return (points - stand) @ turn.T + [*place, 0.0]

    names, start, axes, length, radii, flatness = [], [], [], [], [], []
    parts = [(part, "", 1.0) for part in _TRUNK_PARTS]
    for side in ("left_", "right_"):
        parts += [
            (part, side, arm if "arm" in part[0] else leg if part[0] in ("thigh", "shin") else 1.0)
            for part in _LIMB_PARTS
        ]
    for (name, joint, bone, (near, far), part_radii, flat), side, stretch in parts:
        frame = frames[side + joint]
        own = np.stack([sign * frame[..., column] for column, sign in _BONE_AXES[bone]], axis=1)  # (T, 3, 3)
        sole = -scale * 0.03 * frame[..., 2] if name == "foot" else 0.0
        names.append(side + name)
        start.append(to_world(joints[side + joint] + scale * near * own[:, 2] + sole))
        axes.append(own @ turn.T)
        length.append(scale * stretch * (far - near))
        radii.append(scale * np.array(part_radii) * (1.0 if name in ("head", "hand", "foot") else subject.girth))
        flatness.append(flat)
    return Body(
        names=tuple(names),
        start=np.stack(start, axis=1),
        axes=np.stack(axes, axis=1),
        length=np.array(length),
        radii=np.array(radii),
        flatness=np.array(flatness),
        joints={name: to_world(points) for name, points in joints.items()},
    )
