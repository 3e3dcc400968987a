"""Renders takes and writes them as H.264 AVI files."""

import pathlib

import av
import cv2
import numpy as np

from data.store.whole_files import whole_file
from data.synthetic import actions, actors, renderer, rooms
from data.synthetic.design import Take

FPS = 30  # NTU RGB+D
MIN_FRAMES, MAX_FRAMES = 60, 90  # at FPS


def take_body(seed: int, take: Take, style: rooms.Style = rooms.STANDARD) -> actors.Body:
    """The posed actor of a take over its 2 to 3 seconds. Length, place, onset and sway are drawn from (seed, take)."""
    rng = np.random.default_rng([seed, 3, take.setup, take.subject, take.performance, take.action])
    action = actions.ACTIONS[take.action - 1]
    subject = actors.make_subject(seed, take.subject)
    num_frames = round(int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1)) * style.fps / FPS)
    place = rng.uniform(-0.05, 0.05, 2)
    spread = style.facing_spread
    faced = rooms.facing(rooms.make_room(seed, take.setup, style), take.performance)
    facing = faced + np.deg2rad(rng.uniform(-spread, spread))
    phase = actions.phases(action, num_frames, style.fps, subject.speed * rng.uniform(0.95, 1.05), rng)
    angles = actions.pose(action, phase, subject.amplitude) + actions.idle_sway(num_frames, style.fps, rng)
    return actors.pose_body(subject, angles, place, facing)


def render_take(
    seed: int, take: Take, cameras: tuple[int, ...], style: rooms.Style = rooms.STANDARD
) -> dict[int, np.ndarray]:
    """The wanted cameras' videos of a take: camera number -> uint8[T, H, W, 3] RGB."""
    if not cameras:
        return {}
    room, subject = rooms.make_room(seed, take.setup, style), actors.make_subject(seed, take.subject)
    body = take_body(seed, take, style)
    stills = [renderer.still_picture(seed, take.setup, take.performance, number, style) for number in cameras]
    return dict(zip(cameras, renderer.render_views(room, stills, subject, body), strict=True))


def missing(directory: pathlib.Path, take: Take) -> tuple[int, ...]:
    """The cameras whose file of a take is not there, or was cut off since."""
    return tuple(camera for camera in rooms.CAMERA_DEGREES if not _is_whole(directory / take.file_name(camera)))


def _is_whole(path: pathlib.Path) -> bool:
    """Whether an AVI file is there and as long as it says: 'RIFF', then the number of bytes that follow."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return path.stat().st_size == 8 + int.from_bytes(file.read(8)[4:], "little")


def write_take(directory: pathlib.Path, seed: int, take: Take, style: rooms.Style) -> None:
    """Writes those of the take's three files that are `missing`."""
    cv2.setNumThreads(1)  # Workers are processes.
    for camera, video in render_take(seed, take, missing(directory, take), style).items():
        with whole_file(directory / take.file_name(camera)) as path:
            encode_video(path, video, style.fps)


def encode_video(path: pathlib.Path, video: np.ndarray, fps: int = FPS) -> None:
    """Writes uint8[T, H, W, 3] RGB as H.264 in AVI, yuv420p; the same bytes for the same frames."""
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        # One thread: workers are processes. No B frames: AVI stores no presentation times. No macroblock tree: x264's
        # vector code for it reads uninitialised memory at small widths, so that two runs would differ.
        options = {"preset": "superfast", "crf": "18", "threads": "1", "bf": "0", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
