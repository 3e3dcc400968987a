"""Carries a truth, 3D joints and cameras, from a user's folder into a prepared set; data/store/truth.py shows its form.

What does not fit the videos, or cannot be in the units and conventions of the form, is refused with a reason.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from console.errors import UserError
from data.catalog import Video
from data.prepare.boxes import MANIFEST_COLUMNS
from data.prepare.preparation_report import SHOWN_IN_MESSAGE
from data.store import truth

# Limits [ours] beyond which numbers are taken for a wrong unit or convention.
MAX_REACH_METRES = 10.0  # from the root to the farthest joint; a person's is about 1, or 1,000 in millimetres
MIN_IN_PICTURE = 0.5  # of the root's positions, over all views; people leave a camera's picture for a while
SAMPLED_FRAMES = 16  # of a view, looked at for MIN_IN_PICTURE
ROTATION_TOLERANCE = 1e-3  # of R times its transpose, from the unit matrix


def check(source: Path, videos: Sequence[Video]) -> list[str]:
    """Checks a truth, the folder with the three files, as far as possible before the videos are decoded.

    Returns:
      Remarks for the user: what the truth holds, and a warning about missing takes and views. `carry` refuses missing
      ones, unless their videos were set aside before.

    Raises:
      ValueError: a file does not have its form.
    """
    (names, _, _), joints, cameras = _read_tables(source)
    there = f"truth: {len(names)} joints in {len(joints)} frames, {len(cameras)} cameras: {source}"
    takes, views = set(joints["take"].unique().to_pylist()), set(_pairs(cameras))
    lacking = [(v.take, v.view) for v in videos if _key(v) not in takes or (_key(v), v.view) not in views]
    if not lacking:
        return [there]
    return [
        there,
        f"warning: {source} lacks joints or camera of {len(lacking)} of the {len(videos)} views, e.g. of view "
        f"{lacking[0][1]} of take {lacking[0][0]}; it will be refused after decoding if these can be used",
    ]


def carry(source: Path, views: pa.Table, videos: Sequence[Video], output: Path) -> None:
    """Copies the truth of the takes that were prepared: from `source`, the folder with the three files, to `output`.

    `views` is the manifest, and `videos` are what its rows show.

    Raises:
      ValueError: a file does not have its form, lacks a prepared take, view or frame, or has numbers of another unit or
        convention; the message counts such rows and names the first.
    """
    if not videos:
        return  # all are in quarantine
    (names, edges, root), joints, cameras = _read_tables(source)
    known, code = truth.encoded(joints["take"])
    frame = joints["frame"].to_numpy()
    order = np.lexsort((frame, code))
    code, frame = code[order], frame[order]
    first, count = np.searchsorted(code, np.arange(len(known))), np.bincount(code, minlength=len(known))
    complete = np.bincount(code, weights=frame != np.arange(len(code)) - first[code], minlength=len(known)) == 0
    number, camera = {name: i for i, name in enumerate(known.tolist())}, {}
    for i, pair in enumerate(_pairs(cameras)):
        if camera.setdefault(pair, i) != i:
            raise UserError(f"{source / truth.CAMERAS} has view {pair[1]} of take {pair[0]} twice")
    _check_numbers(source, views)
    cropped = "crop_left" in views.column_names
    shape = ("raw_width", "raw_height") if cropped else ("width", "height")
    stored = [views[name].to_pylist() for name in ("num_frames", *shape)]
    problems, take_of, camera_of = [], [], []
    for video, length, width, height in zip(videos, *stored, strict=True):
        end = length if video.interval is None else video.interval[1]
        take, which = number.get(_key(video)), camera.get((_key(video), video.view))
        if take is None:
            problem = f"{truth.JOINTS} lacks it"
        elif not complete[take] or count[take] < end:
            problem = (
                f"{truth.JOINTS} has {count[take]} frames of it, and the video's are 0 to {end - 1}, each needed once"
            )
        elif which is None:
            problem = f"{truth.CAMERAS} lacks it"
        else:
            problem = _misfit(cameras, which, width, height)
            take_of.append(take)
            camera_of.append(which)
        if problem:
            problems.append(f"view {video.view} of take {video.take}: {problem}")
    if problems:
        more = [f"... and {len(problems) - SHOWN_IN_MESSAGE} more"] if len(problems) > SHOWN_IN_MESSAGE else []
        raise UserError(
            f"{source} does not fit {len(problems)} of {len(videos)} prepared views. Correct it, or prepare without "
            "truth: --truth=none\n  " + "\n  ".join(problems[:SHOWN_IN_MESSAGE] + more)
        )
    kept = np.zeros(len(known), bool)
    kept[take_of] = True
    joints = joints.take(order[kept[code]])
    begins = (np.cumsum(count * kept) - count)[take_of]  # of a row's take, among the kept frames
    starts = np.array([0 if video.interval is None else video.interval[0] for video in videos], np.int64)
    cameras = truth.cameras_table(_scaled(cameras.take(camera_of), views))
    if any(video.interval for video in videos):  # a take of a recording, in which each view begins where it was cut
        for column, name in enumerate(("take", "view")):
            cameras = cameras.set_column(column, name, views[name])
        cameras = cameras.append_column("first", pa.array(begins + starts, pa.int64()))
    _check_sense(source, joints, cameras, root, begins + starts, np.array(stored[0]))
    skeleton = truth.skeleton_json(names, edges, names[root])
    truth.write_tables(output, skeleton, joints, cameras, durable=True)


def join(sources: Sequence[Path], output: Path) -> None:
    """Puts carried truths one behind the other; arguments as of `carry`. Raises ValueError where joints are others."""
    skeleton, joints, cameras, num_frames = (sources[0] / truth.SKELETON).read_bytes(), [], [], 0
    for source in sources:
        if truth.read_skeleton(source / truth.SKELETON) != truth.read_skeleton(sources[0] / truth.SKELETON):
            raise UserError(f"{source} has other joints than {sources[0]}")
        table = pq.read_table(source / truth.CAMERAS)
        if "first" in table.column_names:
            index = table.column_names.index("first")
            table = table.set_column(index, "first", pc.add(table["first"], num_frames))
        cameras.append(table)
        joints.append(pq.read_table(source / truth.JOINTS))
        num_frames += len(joints[-1])
    truth.write_tables(output, skeleton, pa.concat_tables(joints), pa.concat_tables(cameras), durable=True)


def _read_tables(source: Path) -> tuple[tuple, pa.Table, pa.Table]:
    """As `truth.read_tables`, with names as the manifest has them."""
    skeleton, joints, cameras = truth.read_tables(source)
    return skeleton, _composed(joints, "take"), _composed(cameras, "take", "view")


def _composed(table: pa.Table, *names: str) -> pa.Table:
    for name in names:
        index = table.column_names.index(name)
        table = table.set_column(index, name, pc.utf8_normalize(table[name], form="NFC"))
    return table


def _check_numbers(source: Path, views: pa.Table) -> None:
    """Raises ValueError if frames were resampled to another clock, because the truth counts the videos' own frames."""
    other = [i for i, resampled in enumerate(views["resampled"].to_pylist()) if resampled]
    if other:
        take, view = views["take"][other[0]], views["view"][other[0]]
        raise UserError(
            f"{source / truth.JOINTS} counts frames as the videos do, but {len(other)} of {len(views)} prepared views "
            f"were put on a clock on which their frames have other numbers, e.g. view {view} of take {take}. Pair "
            "frames by number, if the truth counts them so: --sync=frames; or prepare without truth: --truth=none"
        )


def _key(video: Video) -> str:
    """The take's name in the tables of a user."""
    return video.recording or video.take


def _pairs(cameras: pa.Table) -> list[tuple[str, str]]:
    return list(zip(*(cameras[name].to_pylist() for name in ("take", "view")), strict=True))


def _misfit(cameras: pa.Table, row: int, width: int, height: int) -> str:
    """What is wrong with a camera of a view that is stored with width x height pixels; '' if nothing is."""
    size, focal = (cameras["width"][row].as_py(), cameras["height"][row].as_py()), cameras["focal"][row].as_py()
    if min(*size, *focal) <= 0:
        return f"focal lengths {focal} and size {size} are to be positive pixels"
    # Stored sides are rounded, each by half a pixel at most.
    if abs(size[0] * height - size[1] * width) > 0.5 * sum(size) + 1e-6:
        return (
            f"its camera's picture has {size[0]}x{size[1]} pixels, of another shape than the stored {width}x{height}. "
            "Give the camera of the picture that a player shows, upright and with square pixels"
        )
    rotation = np.array(cameras["rotation"][row].as_py()).reshape(3, 3)
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        return f"its rotation is none (an orthonormal matrix of determinant 1): {rotation.round(3).tolist()}"
    return ""


def _check_sense(
    source: Path, joints: pa.Table, cameras: pa.Table, root: int, first: np.ndarray, length: np.ndarray
) -> None:
    """Raises ValueError where units or conventions cannot be those of data/store/truth.py; arguments as in `carry`."""
    if np.median(np.abs(truth.column_of(joints, "facing"))) > 2 * np.pi:
        raise UserError(f"{source / truth.JOINTS}: facing is in radians, and the numbers there are too large for that")
    points = truth.column_of(joints, "joints").reshape(len(joints), -1, 3)
    reach = np.median(np.linalg.norm(points - points[:, [root]], axis=2).max(axis=1))
    if reach > MAX_REACH_METRES:
        raise UserError(
            f"{source / truth.JOINTS}: joints are in metres, and there they lie {reach:.0f} from the root. Divide "
            "millimetres by 1,000, in cameras' translations, too"
        )
    sampled = first[:, None] + (np.linspace(0, 1, SAMPLED_FRAMES) * (length[:, None] - 1)).astype(np.int64)  # (M, 16)
    rotation = truth.column_of(cameras, "rotation").reshape(-1, 3, 3)
    seen = np.einsum("mij,mtj->mti", rotation, points[sampled, root]) + truth.column_of(cameras, "translation")[:, None]
    in_front = seen[..., 2] > 0
    focal, centre = (truth.column_of(cameras, name)[:, None] for name in ("focal", "centre"))
    pixels = seen[..., :2] / np.where(in_front, seen[..., 2], 1)[..., None] * focal + centre  # (M, 16, 2)
    size = np.stack([truth.column_of(cameras, name) for name in ("width", "height")], axis=1)[:, None]
    share = (in_front & ((pixels > -0.5) & (pixels < size - 0.5)).all(axis=2)).mean()
    if share < MIN_IN_PICTURE:
        raise UserError(
            f"{source}: only {share:.0%} of the time the cameras have the person's root in their pictures. Check units "
            "(metres, pixels) and conventions: rotation leads from the world to the camera, and translation is "
            "-rotation times the camera's position. Or prepare without truth: --truth=none"
        )


def _scaled(cameras: pa.Table, views: pa.Table) -> dict[str, np.ndarray | list[str]]:
    """Columns with intrinsics in pixels of the stored frames; pixel centres stay at integers.

    A stored frame shows the box that the manifest tells, or the whole picture.
    """
    columns = {name: truth.column_of(cameras, name) for name in cameras.column_names if name not in ("take", "view")}
    size = np.stack([columns["width"], columns["height"]], axis=1)
    after = np.stack([views[name].to_numpy() for name in ("width", "height")], axis=1)
    corner, extent = np.zeros(2), size
    if "crop_left" in views.column_names:
        left, top, right, bottom, *raw = (views[name].to_numpy() for name in MANIFEST_COLUMNS)
        to_camera = size / np.stack(raw, axis=1)  # the camera may be given for another size of the raw video
        corner = np.stack([left, top], axis=1) * to_camera
        extent = np.stack([right - left, bottom - top], axis=1) * to_camera
    factor = after / extent
    return (
        {name: cameras[name].to_pylist() for name in ("take", "view")}
        | columns
        | {
            "focal": columns["focal"] * factor,
            "centre": (columns["centre"] + 0.5 - corner) * factor - 0.5,
            "width": after[:, 0],
            "height": after[:, 1],
        }
    )
