"""Setups: a room with its own textures, furniture, light and camera rig, and its still picture from each camera.

World coordinates: metres, z up, the actor acts at the origin. The cameras stand on the +x side at about -45, 0 and +45
degrees; walls and furniture are behind the actor on the -x side. Numbers without another origin are [ours].
"""

import dataclasses

import numpy as np

from data.synthetic import textures
from data.synthetic.cameras import Camera, look_at

# NTU RGB+D: C001 is the camera in the middle; the actor faces C003 in performance R001 and C002 in R002.
CAMERA_DEGREES = {1: 0.0, 2: 45.0, 3: -45.0}
FACED_CAMERA = {1: 3, 2: 2}
SEAT_DISTANCE, SEAT_HEIGHT, SEAT_WIDTH = 0.47, 0.36, 0.36  # metres; the seat stands behind the actor in every take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What a user may ask of the videos and their scenes."""

    width: int = 320  # pixels, even
    height: int = 180
    # 'furnished', or 'plain': walls and floor of one colour each and nothing in the room, not even the seat.
    rooms: str = "furnished"
    actor_share: float | None = None  # of the frame height, for a person of 1.75 m; None draws it for each room
    facing_spread: float = 7.0  # degrees that the actor turns at most to either side of the camera that it faces
    fps: int = 30  # frames per second of the videos


STANDARD = Style()
ROOMS = ("furnished", "plain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A piece of furniture: a box standing upright, turned by `yaw` radians about the vertical; metres."""

    centre: np.ndarray
    size: np.ndarray
    yaw: float
    texture: textures.Texture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """A setup."""

    low: np.ndarray  # float64[3], a corner of the room
    high: np.ndarray  # float64[3], the opposite one
    # Floor, back wall, right wall (-y), left wall (+y).
    surfaces: tuple[textures.Texture, textures.Texture, textures.Texture, textures.Texture]
    boxes: tuple[Box, ...]  # furniture
    seat: textures.Texture | None  # texture of the seat behind the actor; None where there is none
    light: np.ndarray  # float64[3], position of the lamp
    lamp_colour: np.ndarray  # float64[3]
    ambient_colour: np.ndarray  # float64[3]
    # Camera number -> (azimuth in radians, distance, height, height looked at).
    rig: dict[int, tuple[float, float, float, float]]
    actor_share: float  # how much of the frame height a person of 1.75 m takes up, if the frame is wide enough
    # Metres; a frame shows at least this much at the actor's place, so that spread arms fit narrow frames.
    seen_width: float = 2.5


def make_room(seed: int, setup: int, style: Style = STANDARD) -> Room:
    """The room with NTU number `setup` (S)."""
    room = _draw_room(seed, setup)
    if style.rooms == "plain":
        rng = np.random.default_rng([seed, 4, setup])
        wall, floor = (textures.plain(rng.uniform(low, high, 3)) for low, high in ((0.45, 0.75), (0.35, 0.6)))
        room = dataclasses.replace(room, surfaces=(floor, wall, wall, wall), boxes=(), seat=None)
    if style.actor_share is not None:
        width = min(room.seen_width, 1.75 / style.actor_share)
        room = dataclasses.replace(room, actor_share=style.actor_share, seen_width=width)
    return room


def _draw_room(seed: int, setup: int) -> Room:
    rng = np.random.default_rng([seed, 2, setup])
    low = np.array([rng.uniform(-2.9, -2.2), rng.uniform(-4.0, -3.2), 0.0])
    high = np.array([6.0, rng.uniform(3.2, 4.0), rng.uniform(3.0, 3.3)])
    walls = textures.random_walls(rng)
    distance, height = rng.uniform(3.2, 3.8), rng.uniform(1.0, 1.7)
    rig = {
        camera: (
            np.deg2rad(degrees + rng.uniform(-5, 5)),
            distance + rng.uniform(-0.15, 0.15),
            height + rng.uniform(-0.1, 0.1),
            rng.uniform(1.04, 1.10),
        )
        for camera, degrees in CAMERA_DEGREES.items()
    }
    warmth = rng.uniform(-0.05, 0.08)
    return Room(
        low=low,
        high=high,
        surfaces=(textures.random_floor(rng), *walls),
        boxes=tuple(_furnish(rng, low, high)),
        seat=textures.random_seat(rng),
        light=np.array([rng.uniform(0.6, 1.8), rng.choice([-1, 1]) * rng.uniform(0.5, 1.6), rng.uniform(2.6, 2.9)]),
        lamp_colour=rng.uniform(0.60, 0.75) * np.array([1 + warmth, 1.0, 1 - warmth]),
        ambient_colour=rng.uniform(0.48, 0.58) * np.array([1 - warmth, 1.0, 1 + warmth]),
        rig=rig,
        actor_share=rng.uniform(0.59, 0.64),
    )


def _furnish(rng: np.random.Generator, low: np.ndarray, high: np.ndarray) -> list[Box]:
    """Four to six boxes along the back and side walls, out of the actor's way."""
    boxes = []
    for _ in range(rng.integers(4, 7)):
        size = np.array(
            [rng.uniform(0.35, 0.6), rng.uniform(0.4, 1.3), rng.choice([0.45, 0.75, 1.1, 1.8]) * rng.uniform(0.9, 1.1)]
        )
        if rng.uniform() < 0.5:  # At the back wall.
            place = [low[0] + size[0] / 2, rng.uniform(low[1] + 0.6, high[1] - 0.6)]
        else:  # At a side wall.
            size[:2] = size[1::-1]
            left = rng.uniform() < 0.5
            place = [rng.uniform(low[0] + 0.6, 0.4), high[1] - size[1] / 2 if left else low[1] + size[1] / 2]
        boxes.append(
            Box(
                centre=np.array([*place, size[2] / 2]),
                size=size,
                yaw=rng.uniform(-0.08, 0.08),
                texture=textures.random_furniture(rng),
            )
        )
    return boxes


def make_camera(room: Room, camera: int, width: int, height: int) -> Camera:
    """Camera number 1..3 of a setup. The focal length follows from how large the actor is to appear."""
    azimuth, distance, camera_height, target_height = room.rig[camera]
    seen_height = 1.75 / room.actor_share  # metres at the actor
    focal_pixels = distance * min(height / seen_height, width / room.seen_width)
    position = np.array([distance * np.cos(azimuth), distance * np.sin(azimuth), camera_height])
    return look_at(position, np.array([0.0, 0.0, target_height]), focal_pixels, width, height)


def facing(room: Room, performance: int) -> float:
    """The direction the actor faces in performance 1 or 2, radians about the vertical."""
    return room.rig[FACED_CAMERA[performance]][0]


def seat_box(room: Room, performance: int) -> Box:
    """The seat: behind the actor, so its place depends on the performance."""
    yaw = facing(room, performance)
    place = -SEAT_DISTANCE * np.array([np.cos(yaw), np.sin(yaw)])
    size = np.array([SEAT_WIDTH, SEAT_WIDTH, SEAT_HEIGHT])
    return Box(centre=np.array([*place, SEAT_HEIGHT / 2]), size=size, yaw=yaw, texture=room.seat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StillPicture:
    """The room without actor as one camera sees it."""

    camera: Camera
    image: np.ndarray  # uint8[H, W, 3] RGB
    depth: np.ndarray  # float32[H, W], metres along the optical axis
    # float32[H, W, 2], the floor point (x, y) in metres that a pixel sees; NOT_FLOOR where it sees something else.
    floor: np.ndarray


NOT_FLOOR = 1e4


def take_picture(room: Room, performance: int, camera: Camera, width: int, height: int) -> StillPicture:
    """Traces one ray per pixel through the empty room."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    rays = pixels @ np.linalg.inv(camera.intrinsics).T @ camera.rotation  # (H, W, 3), length along the optical axis 1
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    origin = camera.centre

    depth = np.full((height, width), np.inf)
    image = np.zeros((height, width, 3))
    floor = np.full((height, width, 2), NOT_FLOOR, np.float32)
    boxes = room.boxes if room.seat is None else (*room.boxes, seat_box(room, performance))
    planes = (  # axis, position, normal, texture coordinates (axes)
        (2, room.low[2], 1, (0, 1), room.surfaces[0]),
        (0, room.low[0], 1, (1, 2), room.surfaces[1]),
        (1, room.low[1], 1, (0, 2), room.surfaces[2]),
        (1, room.high[1], -1, (0, 2), room.surfaces[3]),
        (0, room.high[0], -1, (1, 2), room.surfaces[1]),
        (2, room.high[2], -1, (0, 1), textures.plain(0.85)),  # a white ceiling
    )
    for axis, position, direction, along, texture in planes:
        t = (position - origin[axis]) / rays[..., axis]
        seen = (t > 0) & (t < depth)
        points = origin + t[seen][:, None] * rays[seen]  # (N, 3)
        inside = np.all((points > room.low - 1e-6) & (points < room.high + 1e-6), axis=1)
        seen[seen] = inside
        points = points[inside]
        normal = np.zeros(3)
        normal[axis] = direction
        colours = texture(points[:, along[0]], points[:, along[1]])
        shade = _occlusion(points, room, axis)
        if axis == 2 and direction == 1:
            floor[seen] = points[:, :2]
            for box in boxes:
                shade = shade * _contact(points, box)
        image[seen] = colours * shade[:, None] * _lighting(room, points, normal)
        depth[seen] = t[seen]
    for box in boxes:
        _draw_box(room, box, origin, rays, depth, image, floor)
    image = np.clip(255 * image, 0, 255).astype(np.uint8)
    return StillPicture(camera=camera, image=image, depth=depth.astype(np.float32), floor=floor)


def _lighting(room: Room, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Lambert's law for the lamp with mild fall-off, and ambient light: (N, 3), (N, 3) or (3,) -> (N, 3)."""
    to_lamp = room.light - points
    distance = np.linalg.norm(to_lamp, axis=1, keepdims=True)
    lambert = np.sum(to_lamp / distance * normals, axis=1, keepdims=True).clip(0)
    return room.ambient_colour * 1.1 + room.lamp_colour * lambert * (3.0 / (distance + 1.0))


def _occlusion(points: np.ndarray, room: Room, axis: int) -> np.ndarray:
    """Corners between walls, floor and ceiling receive less light."""
    shade = np.ones(len(points))
    for other in {0, 1, 2} - {axis}:
        for wall in (room.low[other], room.high[other]):
            shade *= 1 - 0.3 * np.exp(-np.abs(points[:, other] - wall) / 0.25)
    return shade


def _to_box(points: np.ndarray, box: Box) -> np.ndarray:
    c, s = np.cos(box.yaw), np.sin(box.yaw)
    return points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _contact(points: np.ndarray, box: Box) -> np.ndarray:
    """The floor is darker close to what stands on it."""
    local = _to_box(points - [*box.centre[:2], 0], box)[:, :2]
    outside = np.linalg.norm((np.abs(local) - box.size[:2] / 2).clip(0), axis=1)
    return 1 - 0.45 * np.exp(-outside / 0.09)


def _draw_box(
    room: Room, box: Box, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, image: np.ndarray, floor: np.ndarray
) -> None:
    """Draws a box into depth, image and floor wherever it is nearer than what was drawn before."""
    o, d = _to_box(origin - box.centre, box), _to_box(rays, box)
    near = (-np.sign(d) * box.size / 2 - o) / d  # (H, W, 3)
    far = (np.sign(d) * box.size / 2 - o) / d
    t, side = near.max(axis=-1), near.argmax(axis=-1)
    seen = (t < far.min(axis=-1)) & (t > 0) & (t < depth)
    local = o + t[seen][:, None] * d[seen]  # (N, 3)
    side = side[seen]
    normal = np.zeros_like(local)
    rows = np.arange(len(local))
    normal[rows, side] = -np.sign(d[seen][rows, side])
    horizontal = np.where(side == 0, local[:, 1], local[:, 0])
    vertical = np.where(side == 2, local[:, 1], local[:, 2])
    colours = box.texture(horizontal, vertical)
    c, s = np.cos(box.yaw), np.sin(box.yaw)
    to_world = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    shade = 1 - 0.35 * np.exp(-(local[:, 2] + box.size[2] / 2) / 0.1)
    lit = _lighting(room, local @ to_world + box.centre, normal @ to_world)
    image[seen] = colours * shade[:, None] * lit
    depth[seen] = t[seen]
    floor[seen] = NOT_FLOOR
