"""Procedural surfaces: functions from a position on a surface (metres) to a colour."""

import colorsys
from collections.abc import Callable

import numpy as np

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (N,), (N,) metres -> (N, 3) RGB in 0..1


def plain(colour: np.ndarray | float) -> Texture:
    """One colour, float[3] in 0..1, or a grey."""
    return lambda x, y: np.broadcast_to(colour, (*np.broadcast(x, y).shape, 3))


def _noise(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise in 0..1: a periodic table of random values, interpolated."""
    size = len(table)
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    corners = [table[(i + a) % size, (j + b) % size] for a in (0, 1) for b in (0, 1)]
    return (1 - fx) * ((1 - fy) * corners[0] + fy * corners[1]) + fx * ((1 - fy) * corners[2] + fy * corners[3])


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)))


def _wood(rng: np.random.Generator) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.uniform(0.05, 0.11), rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.75)))


def random_floor(rng: np.random.Generator) -> Texture:
    """Planks, tiles or carpet."""
    kind = rng.choice(["planks", "tiles", "carpet"])
    table = rng.uniform(size=(64, 64))
    turn, size = rng.uniform(-0.5, 0.5), rng.uniform(0.35, 0.6)
    base = _wood(rng) if kind == "planks" else _colour(rng, (0.08, 0.3), (0.5, 0.75))

    def floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        if kind == "planks":
            row = np.floor(v / 0.16).astype(int)
            plank = np.floor(u / 1.3 + 0.37 * row).astype(int)
            tone = 0.78 + 0.3 * table[row % 64, plank % 64] + 0.10 * (_noise(table, 3 * u, 40 * v) - 0.5)
            tone = np.where(v / 0.16 - row < 0.07, 0.62, tone)
        elif kind == "tiles":
            i, j = np.floor(u / size).astype(int), np.floor(v / size).astype(int)
            seam = np.minimum(u / size - i, v / size - j) < 0.035
            tone = np.where(seam, 0.7, 0.92 + 0.16 * ((i + j) % 2) + 0.08 * (table[i % 64, j % 64] - 0.5))
        else:
            tone = 0.85 + 0.2 * _noise(table, 2 * u, 2 * v) + 0.18 * (_noise(table, 14 * u, 14 * v) - 0.5)
        return base * tone[:, None]

    return floor


def random_walls(rng: np.random.Generator) -> tuple[Texture, Texture, Texture]:
    """Back wall, right wall and left wall: one wallpaper, their own pictures, windows and doors."""
    kind = rng.choice(["plain", "stripes", "bricks", "panels"])
    base = _colour(rng, (0.04, 0.22), (0.66, 0.88))
    accent = base * rng.uniform(0.72, 0.85) if kind != "panels" else _colour(rng, (0.1, 0.4), (0.4, 0.6))
    table = rng.uniform(size=(64, 64))
    period = rng.uniform(0.3, 0.5)

    def wallpaper(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        if kind == "stripes":
            share = ((x / period) % 1 < 0.5).astype(float)
        elif kind == "bricks":
            row = np.floor(z / 0.14).astype(int)
            along = x / 0.36 + 0.5 * (row % 2)
            brick = np.floor(along).astype(int)
            seam = ((z / 0.14 - row) < 0.12) | ((along - brick) < 0.05)
            share = np.where(seam, 0.0, 0.6 + 0.5 * table[row % 64, brick % 64])
        elif kind == "panels":
            share = (z < 1.0).astype(float)
        else:
            share = 0.25 * _noise(table, 1.5 * x, 1.5 * z)
        colours = base + share[:, None] * (accent - base)
        skirting = z < 0.1
        colours[skirting] = 0.8 * base + 0.15
        return colours

    return tuple(_decorated(wallpaper, rng) for _ in range(3))


def _decorated(wallpaper: Texture, rng: np.random.Generator) -> Texture:
    """A wall with things that hang on it."""
    decorations = [_decoration(rng, x + rng.uniform(-0.4, 0.4)) for x in (-2.4, -0.9, 0.9, 2.4) if rng.uniform() < 0.75]

    def wall(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        colours = wallpaper(x, z)
        for (left, bottom, width, height), picture in decorations:
            inside = (x > left) & (x < left + width) & (z > bottom) & (z < bottom + height)
            colours[inside] = picture((x[inside] - left) / width, (z[inside] - bottom) / height)
        return colours

    return wall


def _decoration(rng: np.random.Generator, x: float) -> tuple[tuple[float, float, float, float], Texture]:
    """A picture, a window or a door around x: its rectangle in metres and its texture over the unit square."""
    kind = rng.choice(["picture", "picture", "window", "door"])
    table = rng.uniform(size=(8, 8))
    first, second = _colour(rng, (0.3, 0.8), (0.3, 0.9)), _colour(rng, (0.2, 0.7), (0.5, 1.0))
    frame = _wood(rng) * rng.uniform(0.4, 1.2)

    def framed(border: float, inner: Texture) -> Texture:
        def texture(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            edge = np.minimum.reduce([u, 1 - u, v, 1 - v]) < border
            return np.where(edge[:, None], frame, inner(u, v))

        return texture

    def painting(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        share = (_noise(table, 3 * u, 3 * v) > 0.5)[:, None]
        return np.where(share, first, second)

    def view(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        bar = (np.abs(u - 0.5) < 0.03) | (np.abs(v - 0.5) < 0.02)
        sky = np.array([0.72, 0.86, 1.0]) + 0.25 * (v[:, None] - 0.5)
        return np.where(
            bar[:, None],
            frame,
            np.where((v < 0.3 + 0.15 * _noise(table, 4 * u, 0 * u))[:, None], [0.45, 0.6, 0.4], sky),
        )

    def panel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        inset = (np.abs(u - 0.5) < 0.32) & (np.abs((v * 2) % 1 - 0.5) < 0.36)
        return first * 0.5 + 0.35 - 0.08 * inset[:, None]

    if kind == "window":
        width, height = rng.uniform(0.8, 1.3), rng.uniform(0.9, 1.2)
        return (x - width / 2, 1.0, width, height), framed(0.04, view)
    if kind == "door":
        return (x - 0.42, 0.0, 0.84, 2.05), framed(0.03, panel)
    width, height = rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.8)
    return (x - width / 2, rng.uniform(1.25, 1.5), width, height), framed(0.06, painting)


def random_seat(rng: np.random.Generator) -> Texture:
    """A plain stool."""
    base = _colour(rng, (0.3, 0.7), (0.4, 0.8))
    table = rng.uniform(size=(64, 64))
    return lambda x, z: base * (0.9 + 0.2 * _noise(table, 4 * x, 4 * z))[:, None]


def random_furniture(rng: np.random.Generator) -> Texture:
    """Wood with drawers, a painted front, or cloth."""
    kind = rng.choice(["drawers", "shelves", "painted"])
    base = _wood(rng) if rng.uniform() < 0.5 else _colour(rng, (0.15, 0.55), (0.35, 0.8))
    table = rng.uniform(size=(64, 64))
    spacing = rng.uniform(0.22, 0.35)

    def furniture(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        level = np.floor(z / spacing).astype(int)
        height = z / spacing - level
        tone = 0.9 + 0.2 * _noise(table, 4 * x, 25 * z)
        if kind == "drawers":
            knob = (np.abs(height - 0.5) < 0.12) & (np.abs(x) < 0.05)
            tone = np.where(height < 0.08, 0.6, np.where(knob, 0.45, tone))
        elif kind == "shelves":
            book = np.floor(x / 0.05).astype(int)
            shelf = (height < 0.1)[:, None]
            spine = 0.25 + 0.6 * np.stack([table[book % 64, (level + 3 * k) % 64] for k in range(3)], axis=1)
            return np.where(shelf, base * tone[:, None], spine * np.where(height < 0.82, 1.0, 0.3)[:, None])
        return base * tone[:, None]

    return furniture
