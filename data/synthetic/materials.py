"""Colours of the body parts as functions of the position on the part, so that patterns move with the cloth."""

import numpy as np

from data.synthetic.actors import Subject


def part_colours(subject: Subject, part: str, local: np.ndarray) -> np.ndarray:
    """Albedo of surface points of a part that is named as in actors.Body.names: float32[N, 3], RGB in 0..1.

    `local` is float32[N, 3], metres in the part's frame; x is its front, z runs along the bone.
    """
    kind = part.removeprefix("left_").removeprefix("right_")
    if kind == "head":
        return _head(subject, local)
    if kind in ("chest", "abdomen", "upper_arm") or (kind == "forearm" and subject.long_sleeves):
        return _shirt(subject, kind, local)
    if kind in ("pelvis", "thigh") or (kind == "shin" and subject.long_trousers):
        return _plain(subject.trousers, local)
    return _plain(subject.shoes if kind == "foot" else subject.skin, local)


def _plain(colour: tuple[float, float, float], local: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), local.shape)


def _shirt(subject: Subject, kind: str, local: np.ndarray) -> np.ndarray:
    height = local[:, 2] + (0.16 if kind == "chest" else 0.0)  # The chest's frame begins that far above the abdomen's.
    hoop = (height / subject.cloth_period) % 1
    stripe = (local[:, 1] / subject.cloth_period + 0.25) % 1
    accent = {
        "plain": np.zeros(len(local), bool),
        "hoops": hoop < 0.4,
        "stripes": stripe < 0.4,
        "checks": (hoop < 0.5) ^ (stripe < 0.5),
        "dots": (hoop - 0.5) ** 2 + (stripe - 0.5) ** 2 < 0.09,
    }[subject.cloth]
    if kind == "chest":  # A badge shows which side is the front.
        accent = accent ^ ((local[:, 0] > 0) & (np.abs(local[:, 1]) < 0.06) & (np.abs(local[:, 2] - 0.08) < 0.05))
    return np.where(accent[:, None], np.float32(subject.shirt_accent), np.float32(subject.shirt))


def _head(subject: Subject, local: np.ndarray) -> np.ndarray:
    x, y, z = local.T
    hairline = np.where(x > 0.045, 0.105, np.where(x > -0.01, 0.06, -0.10 if subject.long_hair else 0.0))
    colours = np.where((z > hairline)[:, None], np.float32(subject.hair), np.float32(subject.skin))
    eye = (x > 0.04) & (np.abs(np.abs(y) - 0.032) < 0.014) & (np.abs(z - 0.055) < 0.012)
    mouth = (x > 0.04) & (np.abs(y) < 0.026) & (np.abs(z + 0.02) < 0.008)
    colours[eye] = (0.10, 0.08, 0.08)
    colours[mouth] = (0.55, 0.22, 0.20)
    return colours
