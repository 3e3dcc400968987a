"""Draws actors into the picture of a room: exact ray intersections, a depth buffer, Lambert shading and a soft shadow.

Everything is drawn at SUPERSAMPLING times the resolution each way and averaged down. One body part is drawn in all
frames of a chunk and for all V cameras at once, so that NumPy's overhead is paid per part and not per frame. A picture
of camera v at frame t lies at v * T + t.
"""

import functools
import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from data.synthetic import rooms
from data.synthetic.actors import Body, Subject
from data.synthetic.cameras import Camera
from data.synthetic.materials import part_colours

SUPERSAMPLING = 2
CHUNK_PIXELS = 4_000_000  # frames x pixels drawn at once: 28 MB of depth and colour
SHADOW_METRES, SHADOW_PIXELS = 6.0, 160  # the square floor map of the shadow, centred on the actor's place


def render_views(
    room: rooms.Room, stills: Sequence[rooms.StillPicture], subject: Subject, body: Body
) -> list[np.ndarray]:
    """The videos of the cameras of `stills`, which have SUPERSAMPLING times their size: each uint8[T, H, W, 3] RGB."""
    cameras, shadows = [still.camera for still in stills], floor_shadows(room, body)
    height, width = stills[0].depth.shape
    num_frames = len(body.start)
    size = (num_frames, height // SUPERSAMPLING, width // SUPERSAMPLING, 3)
    videos = [np.empty(size, np.uint8) for _ in stills]
    floor_maps = [(still.floor + SHADOW_METRES / 2) * (SHADOW_PIXELS / SHADOW_METRES) - 0.5 for still in stills]
    step = max(1, CHUNK_PIXELS // (len(stills) * height * width))
    for first in range(0, num_frames, step):
        frames = slice(first, min(first + step, num_frames))
        shaded = [
            _shaded_floor(still.image, shadow, floor_map)
            for still, floor_map in zip(stills, floor_maps, strict=True)
            for shadow in shadows[frames]
        ]
        image = np.stack(shaded)  # (V * T, H, W, 3)
        depth = np.repeat([still.depth for still in stills], frames.stop - first, axis=0)  # (V * T, H, W)
        for part in range(len(body.names)):
            _draw_part(room, cameras, subject, body, part, frames, depth, image)
        rows = itertools.chain.from_iterable(video[frames] for video in videos)
        for row, frame in zip(rows, image, strict=True):
            cv2.resize(frame, (row.shape[1], row.shape[0]), dst=row, interpolation=cv2.INTER_AREA)
    return videos


def _shaded_floor(image: np.ndarray, shadow: np.ndarray, floor_map: np.ndarray) -> np.ndarray:
    light = cv2.remap(shadow, floor_map, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255)
    return cv2.multiply(image, cv2.merge([light, light, light]), scale=1 / 255)


def floor_shadows(room: rooms.Room, body: Body) -> np.ndarray:
    """How much of the lamp's light reaches the floor: uint8[T, SHADOW_PIXELS, SHADOW_PIXELS], 255 = all of it."""
    ends = np.stack([body.start, body.start + body.axes[:, :, 2] * body.length[:, None]], axis=2)  # (T, P, 2, 3)
    ends[..., 2] = ends[..., 2].clip(0, room.light[2] - 0.3)
    onto_floor = room.light + (ends - room.light) * (room.light[2] / (room.light[2] - ends[..., 2:]))
    per_metre = SHADOW_PIXELS / SHADOW_METRES
    pixels = (onto_floor[..., :2] + SHADOW_METRES / 2) * per_metre - 0.5  # (T, P, 2, 2)
    fixed_point = np.round(pixels * 16).astype(np.int32)  # cv2.line: 4 fractional bits
    thickness = np.maximum(1, np.round(2 * body.radii.mean(axis=1) * per_metre * 1.1)).astype(int)
    shadows = np.empty((len(ends), SHADOW_PIXELS, SHADOW_PIXELS), np.uint8)
    for shadow, lines in zip(shadows, fixed_point.tolist(), strict=True):
        shadow[:] = 255
        for (start, end), width in zip(lines, thickness.tolist(), strict=True):
            cv2.line(shadow, start, end, 120, width, cv2.LINE_8, shift=4)
        cv2.GaussianBlur(shadow, (7, 7), 1.6, dst=shadow)
    return shadows


def _draw_part(
    room: rooms.Room,
    cameras: Sequence[Camera],
    subject: Subject,
    body: Body,
    part: int,
    frames: slice,
    depth: np.ndarray,
    image: np.ndarray,
) -> None:
    """Draws one body part into depth float32[V * T, H, W] and image uint8[V * T, H, W, 3] where it is nearest."""
    _, height, width = depth.shape
    axes, start = body.axes[frames, part], body.start[frames, part]
    length, (r0, r1) = body.length[part], body.radii[part]
    stretch = 1 / np.array([*body.flatness[part], 1.0])
    boxes = _bounding_boxes(cameras, start, axes[:, 2], length, max(r0, r1) / stretch.min(), width, height)
    if boxes is None:
        return
    x, y = boxes  # (V * T, bw), (V * T, bh) pixels
    to_part = stretch[:, None] * axes  # (T, 3, 3): the part becomes a round cone along z
    origins = [np.einsum("tij,tj->ti", to_part, camera.centre - start) for camera in cameras]
    origin = np.concatenate(origins, dtype=np.float32)  # (V * T, 3)
    ray = _rays(cameras, to_part, x, y)
    t = _intersect_round_cone(origin, ray, np.float32(length), np.float32(r0), np.float32(r1))  # (V * T, bh, bw)

    frame, row, column = np.nonzero(t < np.inf)
    where = (frame * height + y[frame, row]) * width + x[frame, column]
    t = t[frame, row, column]
    nearest = t < depth.reshape(-1)[where]
    frame, row, column, where, t = (a[nearest] for a in (frame, row, column, where, t))
    local = np.stack([origin[frame, k] + t * ray[k][frame, row, column] for k in range(3)], axis=1)  # (N, 3)
    normal = local.copy()
    normal[:, 2] -= length * _along(local, length, r0, r1)
    normal *= stretch.astype(np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    to_lamp = room.light - (start + 0.5 * length * axes[:, 2])  # (T, 3)
    colours = part_colours(subject, body.names[part], local / stretch.astype(np.float32))
    depth.reshape(-1)[where] = t
    light = _light(room, normal, axes, to_lamp, frame % len(axes))
    image.reshape(-1, 3)[where] = np.minimum(255 * colours * light, 255).astype(np.uint8)


def _rays(cameras: Sequence[Camera], to_part: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Directions through pixel columns x int[V * T, bw] and rows y int[V * T, bh], one step in depth long.

    Returns:
      The three coordinates in the part's frame, each float32[V * T, bh, bw].
    """
    intrinsics = np.repeat([camera.intrinsics for camera in cameras], len(to_part), axis=0)  # (V * T, 3, 3)
    focal, cx, cy = intrinsics[:, 0, :1], intrinsics[:, 0, 2:], intrinsics[:, 1, 2:]
    right = ((x - cx) / focal).astype(np.float32)[:, None, :]
    down = ((y - cy) / focal).astype(np.float32)[:, :, None]
    basis = np.concatenate([to_part @ camera.rotation.T for camera in cameras], dtype=np.float32)[..., None, None]
    return [basis[:, k, 0] * right + (basis[:, k, 1] * down + basis[:, k, 2]) for k in range(3)]


def _light(
    room: rooms.Room, normal: np.ndarray, axes: np.ndarray, to_lamp: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """Lambert's law for the lamp, and ambient light that comes more from above: float32[N, 3], light by colour.

    `normal` float32[N, 3] are in the part's frame, each at frame `frame` int[N] of the T frames. `axes` float64[T, 3,
    3] are the part's axes in the world, and `to_lamp` float64[T, 3] points from it to the lamp.
    """
    to_lamp = to_lamp / np.linalg.norm(to_lamp, axis=1, keepdims=True)
    lamp = np.einsum("tij,tj->ti", axes, to_lamp).astype(np.float32)[frame]
    up = axes[:, :, 2].astype(np.float32)[frame]
    lambert = np.einsum("ni,ni->n", normal, lamp).clip(0)[:, None]
    sky = 0.75 + 0.25 * np.einsum("ni,ni->n", normal, up)[:, None]
    return 1.15 * room.ambient_colour.astype(np.float32) * sky + room.lamp_colour.astype(np.float32) * lambert


def _bounding_boxes(
    cameras: Sequence[Camera],
    start: np.ndarray,
    bone: np.ndarray,
    length: float,
    radius: float,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Columns int[V * T, bw] and rows int[V * T, bh] of boxes of one size around a part; None if no picture has it."""
    ends = np.stack([start, start + length * bone], axis=1)  # (T, 2, 3)
    lowest, highest = [], []
    for camera in cameras:
        pixels, depth = camera.project(ends)
        margin = camera.intrinsics[0, 0] * radius / (depth - radius)[..., None] + 1
        lowest.append((pixels - margin).min(axis=1))
        highest.append((pixels + margin).max(axis=1))
    low = np.floor(np.concatenate(lowest)).astype(int)  # (V * T, 2)
    high = np.ceil(np.concatenate(highest)).astype(int)
    if (high < 0).any(axis=1).all() or (low >= (width, height)).any(axis=1).all():
        return None
    size = np.minimum((high - low).max(axis=0) + 1, (width, height))
    low = np.clip(low, 0, (width, height) - size)
    return low[:, :1] + np.arange(size[0]), low[:, 1:] + np.arange(size[1])


def _along(local: np.ndarray, length: float, r0: float, r1: float) -> np.ndarray:
    """The place on the axis of the sphere whose surface holds a point: 0 = first end, 1 = second."""
    slope = (r0 - r1) / length
    distance = np.sqrt(local[:, 0] ** 2 + local[:, 1] ** 2)
    tangent = slope / np.sqrt(1 - slope * slope)
    return np.clip((local[:, 2] - tangent * distance) / length, 0, 1).astype(np.float32)


def _intersect_round_cone(
    origin: np.ndarray, ray: list[np.ndarray], length: np.float32, r0: np.float32, r1: np.float32
) -> np.ndarray:
    """Ray parameter at the first hit of a round cone along z, float32[T, bh, bw]; infinite without hit.

    The surface is that of a cone between two tangent circles and of the two spheres beyond them, each a quadratic in
    the ray parameter. Rays are `origin` float32[T, 3] and three coordinates float32[T, bh, bw] of directions of any
    length. The spheres' centres are 0 and `length` along z, and their radii `r0` and `r1`, with length > |r0 - r1|.
    """
    ox, oy, oz = (origin[:, k, None, None] for k in range(3))
    dx, dy, dz = ray
    taper = r0 - r1
    slant = length * length - taper * taper
    dd = dx * dx + dy * dy + dz * dz
    od = ox * dx + oy * dy + oz * dz
    oo = ox * ox + oy * oy + oz * oz
    k2 = slant * dd - (length * length) * dz * dz
    k1 = slant * od - (length * length) * oz * dz + (taper * r0 * length) * dz
    k0 = slant * oo - (length * length) * oz * oz + (2 * taper * r0 * length) * oz - length * length * r0 * r0
    with np.errstate(invalid="ignore", divide="ignore"):  # A negative root is a miss and becomes infinity below.
        t = (-k1 - np.sqrt(k1 * k1 - k0 * k2)) / k2
        side = length * (oz + t * dz) - r0 * taper
        t = np.where((side > 0) & (side < slant), t, np.inf)
        first = (-od - np.sqrt(od * od - dd * (oo - r0 * r0))) / dd
        od = od - length * dz
        last = (-od - np.sqrt(od * od - dd * (oo - 2 * length * oz + length * length - r1 * r1))) / dd
        return np.fmin(np.fmin(t, first), np.fmin(last, np.float32(np.inf)))


@functools.lru_cache(maxsize=12)
def still_picture(seed: int, setup: int, performance: int, camera: int, style: rooms.Style) -> rooms.StillPicture:
    """The cached empty room at SUPERSAMPLING times the resolution."""
    room = rooms.make_room(seed, setup, style)
    view = rooms.make_camera(room, camera, style.width, style.height).scaled(SUPERSAMPLING)
    return rooms.take_picture(room, performance, view, SUPERSAMPLING * style.width, SUPERSAMPLING * style.height)
