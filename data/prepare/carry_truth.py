"""Carries a truth, 3D joints and cameras, from a user's folder into a prepared set; data/store/truth.py shows its form.

What does not fit the videos, or cannot be in the units and conventions of the form, is refused with a reason.
"""

import re
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

# Limits [ours] beyond which numbers are taken for a wrong unit, convention or rate.
MORE_FRAMES = 1.1, 5  # times the longest view's frames, and frames more, in a take; a rig of 12 Hz has 1.2 times 10's
USUAL_REACH = 0.3, 2.0  # metres from the root to the farthest joint, the median; a toddler's 0.35, from a foot 1.8
MAX_REACH = 3.0  # the same, of every frame; from a foot, with arms overhead, 2.6
MAX_REPEATED = 0.9  # of the frames; a rig of 5 Hz whose poses are repeated for 30 has 0.83
MAX_TURN_DEGREES = 30  # from across hips and shoulders to `facing`, the median; both turn less against each other
MAX_LYING = 1.5  # the body's extent along x or y, of that along z; 1 with arms stretched out
DISTANCE = 0.3, 100.0  # metres from camera to root; a drone's, and that of a camera 1 m away in centimetres
CENTRE = 0.3, 0.7  # of width and height; 0.25 if K counts half of the pixels, 1 if twice as many
MIN_FOCAL = 0.2  # of the longer side, which then spans 136 degrees; in millimetres it is less
MIN_IN_PICTURE = 0.5  # of the root's positions, over all views; people leave a camera's picture for a while
SAMPLED_FRAMES = 16  # of a view, looked at for MIN_IN_PICTURE
ROTATION_TOLERANCE = 1e-3  # of R times its transpose, from the unit matrix

_SIDES = (("left", "right"), ("l", "r"))  # in names of joints, before or after the joint: left_hip, LHip, hip_l
_ACROSS = ("hip", "upleg", "shoulder")  # joints whose left and right tell where a person looks


def check(source: Path, videos: Sequence[Video]) -> list[str]:
    """Checks a truth, the folder with the three files, as far as possible before the videos are decoded.

    Returns:
      Remarks for the user: what the truth holds, and warnings about missing takes and views, and about what is
      improbable. `carry` refuses missing ones, unless their videos were set aside before.

    Raises:
      ValueError: a file does not have its form, or holds numbers of another unit or convention.
    """
    (names, _, root), joints, cameras = truth.read_tables(source)
    told = [f"truth: {len(names)} joints in {len(joints)} frames, {len(cameras)} cameras: {source}"]
    pairs, wanted = _pairs(cameras), {(_key(v), v.view) for v in videos}
    takes, views = set(joints["take"].unique().to_pylist()), set(pairs)
    lacking = [(v.view, v.take) for v in videos if _key(v) not in takes or (_key(v), v.view) not in views]
    if lacking:
        said = "{} lacks joints or camera of {} of the {} views, e.g. of view {} of take {}".format(
            source, len(lacking), len(videos), *lacking[0]
        )
        if len(lacking) > 0.5 * len(videos):  # more than quarantine explains
            raise UserError(
                f"{said}. Its own are called e.g. view {pairs[0][1]} of take {pairs[0][0]}: name takes and views as "
                "the videos are named, or prepare without truth: --truth=none"
            )
        told.append(f"warning: {said}; it will be refused after decoding if these can be used")
    if not videos:
        return told
    joints = joints.filter(pc.is_in(joints["take"], pa.array(sorted({take for take, _ in wanted}))))
    cameras = cameras.filter(pa.array([pair in wanted for pair in pairs]))
    return [*told, *_check_joints(source / truth.JOINTS, joints, names, root), *_check_centres(source, cameras)]


def carry(source: Path, views: pa.Table, videos: Sequence[Video], output: Path) -> None:
    """Copies the truth of the takes that were prepared: from `source`, the folder with the three files, to `output`.

    `views` is the manifest, and `videos` are what its rows show.

    Raises:
      ValueError: a file does not have its form, lacks a prepared take, view or frame, or has numbers of another unit or
        convention; the message counts such rows and names the first.
    """
    if not videos:
        return  # all are in quarantine
    (names, edges, root), joints, cameras = truth.read_tables(source)
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
    ends = [video.interval[1] if video.interval else n for video, n in zip(videos, stored[0], strict=True)]
    longest = {}
    for video, end in zip(videos, ends, strict=True):
        longest[_key(video)] = max(end, longest.get(_key(video), 0))
    problems, take_of, camera_of = [], [], []
    for video, end, width, height in zip(videos, ends, *stored[1:], strict=True):
        most = longest[_key(video)]
        take, which = number.get(_key(video)), camera.get((_key(video), video.view))
        if take is None:
            problem = f"{truth.JOINTS} lacks it"
        elif not complete[take] or count[take] < end:
            problem = (
                f"{truth.JOINTS} has {count[take]} frames of it, and the video's are 0 to {end - 1}, each needed once"
            )
        elif video.interval is None and count[take] > MORE_FRAMES[0] * most + MORE_FRAMES[1]:
            problem = (
                f"{truth.JOINTS} has {count[take]} frames of it, {count[take] / most:.2f} times the {most} of its "
                "longest view. Resample the joints to the video's frames, or leave out what was recorded after its end"
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
    _check_cameras(source, joints, cameras, root, begins + starts, np.array(stored[0]))
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


def _called(cameras: pa.Table, row: int) -> str:
    return f"view {cameras['view'][row]} of take {cameras['take'][row]}"


def _misfit(cameras: pa.Table, row: int, width: int, height: int) -> str:
    """What is wrong with a camera of a view that is stored with width x height pixels; '' if nothing is."""
    size, focal = (cameras["width"][row].as_py(), cameras["height"][row].as_py()), cameras["focal"][row].as_py()
    if min(size) <= 0 or min(focal) < MIN_FOCAL * max(size):
        return f"focal lengths {focal} and size {size} are to be positive pixels, of one picture"
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


def _check_joints(path: Path, joints: pa.Table, names: Sequence[str], root: int) -> list[str]:
    """Raises ValueError where joints or `facing` cannot be as data/store/truth.py has them; returns warnings."""
    joints = joints.sort_by([("take", "ascending"), ("frame", "ascending")])
    take, frame, facing = joints["take"], joints["frame"], truth.column_of(joints, "facing")
    points = truth.column_of(joints, "joints").reshape(len(joints), -1, 3)
    if np.median(np.abs(facing)) > 2 * np.pi:
        raise UserError(f"{path}: facing is in radians, and the numbers there are too large for that")

    lost = (points == 0).all(axis=2)  # (M, J)
    lost &= ~(lost.all(axis=0) & lost[:, root].all())  # the root is the origin, and the joint one with it
    if lost.any():
        row, joint = np.argwhere(lost)[0]
        raise UserError(
            f"{path}: {names[joint]} lies at exactly 0, 0, 0 in {lost[:, joint].sum()} of {len(joints)} frames, e.g. "
            f"frame {frame[row]} of take {take[row]}, as rigs write joints that they have lost. Fill them in, or leave "
            "out such takes with their videos"
        )

    reach = np.linalg.norm(points - points[:, [root]], axis=2)  # (M, J)
    farthest = reach.max(axis=1)
    usual = np.median(farthest)
    if not USUAL_REACH[0] <= usual <= USUAL_REACH[1]:
        raise UserError(
            f"{path}: joints are in metres, and there they lie {usual:.4g} from the root {names[root]} (the farthest, "
            "median over frames); a person's lie {:g} to {:g}. Divide millimetres by 1,000, multiply feet by 0.3048, "
            "in cameras' translations, too".format(*USUAL_REACH)
        )
    if (astray := farthest > MAX_REACH).any():
        row, joint = np.unravel_index(reach.argmax(), reach.shape)
        raise UserError(
            f"{path}: in {astray.sum()} of {len(joints)} frames a joint lies more than {MAX_REACH:g} metres from the "
            f"root, at most {names[joint]} in frame {frame[row]} of take {take[row]}, {reach[row, joint]:.3g}. Correct "
            "them, or leave out such takes with their videos"
        )

    follows = np.diff(truth.encoded(take)[1]) == 0
    repeated = (points[1:] == points[:-1]).all(axis=(1, 2))[follows]
    if len(repeated) and repeated.mean() > MAX_REPEATED:
        raise UserError(
            f"{path}: {repeated.mean():.0%} of the frames repeat all joints of the frame before, and people move. "
            "Write the joints of each frame"
        )

    across = sum((points[:, left] - points[:, right] for left, right in _left_and_right(names)), np.zeros((1, 3)))
    level = np.linalg.norm(across[:, :2], axis=1) > 0.5 * np.linalg.norm(across, axis=1)  # not lying on a side
    if level.any():
        ahead = np.arctan2(-across[level, 0], across[level, 1])
        turn = np.rad2deg(np.median(np.abs(np.angle(np.exp(1j * (facing[level] - ahead))))))
        if turn > MAX_TURN_DEGREES:
            raise UserError(
                f"{path}: facing is {turn:.0f} degrees (median over frames) from the way that left and right hips and "
                "shoulders face. Compute it as docs/data_sets.md does; z is to be up, and left the person's left"
            )

    extent = np.median(np.ptp(points, axis=1), axis=0)  # (3,)
    if extent[:2].max() <= MAX_LYING * extent[2]:
        return []
    return [
        "warning: {}: bodies extend over {:.2g} m along x, {:.2g} along y, {:.2g} along z (median over frames). If "
        "people do not lie there, another axis than z is up: turn joints and cameras".format(path, *extent)
    ]


def _left_and_right(names: Sequence[str]) -> list[tuple[int, int]]:
    """Numbers of the left and right hips and shoulders, of those that have usual names."""
    plain = [re.sub("[^a-z]", "", name.lower()) for name in names]
    pairs = [
        pair
        for joint in _ACROSS
        for left, right in _SIDES
        for pair in ((left + joint, right + joint), (joint + left, joint + right))
    ]
    return [(plain.index(left), plain.index(right)) for left, right in pairs if left in plain and right in plain]


def _check_centres(source: Path, cameras: pa.Table) -> list[str]:
    """Raises ValueError where most cameras count pixels of another size; returns a warning where some do."""
    size = np.stack([truth.column_of(cameras, name) for name in ("width", "height")], axis=1)
    place = truth.column_of(cameras, "centre") + 0.5
    # Both sides alike: of a video that was cut out of a larger one, one may be.
    off = (place < CENTRE[0] * size).all(axis=1) | (place > CENTRE[1] * size).all(axis=1)
    if not off.any():
        return []
    row = int(off.argmax())
    said = (
        f"{source / truth.CAMERAS}: the centre of {off.sum()} of {len(off)} cameras is far from the picture's middle, "
        f"e.g. of {_called(cameras, row)}, {cameras['centre'][row].as_py()} in {size[row, 0]}x{size[row, 1]} pixels. "
        "Focal, centre, width and height are to count the same pixels"
    )
    if off.mean() > 0.5:
        raise UserError(said)
    return [f"warning: {said}, unless the videos were cut out of larger ones"]


def _check_cameras(
    source: Path, joints: pa.Table, cameras: pa.Table, root: int, first: np.ndarray, length: np.ndarray
) -> None:
    """Raises ValueError where cameras cannot be those of data/store/truth.py; arguments as in `carry`."""
    points = truth.column_of(joints, "joints").reshape(len(joints), -1, 3)
    sampled = first[:, None] + (np.linspace(0, 1, SAMPLED_FRAMES) * (length[:, None] - 1)).astype(np.int64)  # (M, 16)
    rotation = truth.column_of(cameras, "rotation").reshape(-1, 3, 3)
    seen = np.einsum("mij,mtj->mti", rotation, points[sampled, root]) + truth.column_of(cameras, "translation")[:, None]
    distance = np.median(np.linalg.norm(seen, axis=2), axis=1)  # (M,)
    far = np.flatnonzero((distance < DISTANCE[0]) | (distance > DISTANCE[1]))
    if len(far):
        raise UserError(
            f"{source}: {len(far)} of {len(distance)} cameras lie less than {DISTANCE[0]:g} or more than "
            f"{DISTANCE[1]:g} metres from the person, e.g. {_called(cameras, far[0])}, {distance[far[0]]:.1f}. "
            "Translations are in metres, as joints are, and -rotation times the camera's position"
        )
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
