"""What is known of a take beside its pictures: 3D joints of the person and calibrated cameras. Optional.

A folder `truth/` beside the raw videos holds it, from `python -m data.synthetic` or from a motion-capture rig:
  skeleton.json     {"joint_names": [...], "edges": [[a, b], ...], "root": "pelvis"}
  joints.parquet    take, frame, facing (radians about the world's z), joints float32[3 * J] (metres, world z up)
  cameras.parquet   take, view, rotation float64[9] (world to camera, row by row), translation float64[3] (metres),
                    focal float64[2], centre float64[2] (pixels), width, height (pixels of the raw video)
Takes and views are named as in the manifest, frames counted as in the videos. Cameras follow OpenCV's convention:
pixel = K (R X + t), x right, y down, z forwards, pixel centres at integers. Preparation carries the tables to the
prepared set, with cameras in pixels of the stored frames.
"""

import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from console.errors import UserError

FOLDER = "truth"
SKELETON, JOINTS, CAMERAS = "skeleton.json", "joints.parquet", "cameras.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """The truth of a prepared set. Tables are read when they are first asked for; picklable.

    Attributes:
      directory: holds the three files.
      views: the manifest's columns; `take`, `view`, `fps` and `num_frames` are used.
      joint_names: of the J joints.
      edges: pairs of joint numbers, the bones.
      root: number of the joint that poses are relative to.
    """

    directory: str
    views: Mapping[str, np.ndarray]
    joint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int

    @classmethod
    def open(cls, directory: Path, views: Mapping[str, np.ndarray]) -> "Truth | None":
        """That of a prepared set in `directory`; None if it has none."""
        if not (directory / SKELETON).exists():
            return None
        names, edges, root = read_skeleton(directory / SKELETON)
        return cls(directory=str(directory), views=views, joint_names=names, edges=edges, root=root)

    def in_world(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Joints in metres: manifest rows int[M] and their stored frames int[M, T] -> float32[M, T, J, 3]."""
        return self._joints[self._entries(rows, frames)]

    def in_camera(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """As `in_world`, in the frame of the row's camera: x right, y down, z forwards."""
        rotation, translation = (self._cameras[name][rows] for name in ("rotation", "translation"))
        joints = np.einsum("mij,mtkj->mtki", rotation, self.in_world(rows, frames))
        return (joints + translation[:, None, None]).astype(np.float32)

    def in_actor(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """As `in_world`, in the person's own frame: from the root; x forwards, y to the left, z up."""
        entries = self._entries(rows, frames)
        joints, facing = self._joints[entries], self._facing[entries]  # (M, T, J, 3), (M, T)
        joints = joints - joints[:, :, [self.root]]
        cosine, sine = np.cos(facing)[..., None], np.sin(facing)[..., None]
        x, y, z = np.moveaxis(joints, -1, 0)
        return np.stack([x * cosine + y * sine, y * cosine - x * sine, z], axis=-1)  # (M, T, J, 3)

    def in_pixels(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Where the row's camera sees the joints: float32[M, T, J, 2], (x, y) in pixels of the stored frames."""
        return self.project(rows, self.in_camera(rows, frames))

    def project(self, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Points float[M, ..., 3] in each row's camera frame -> pixels (x, y) of stored frames, float32[M, ..., 2]."""
        shape = (len(rows), *[1] * (points.ndim - 2), 2)
        focal, centre = (self._cameras[name][rows].reshape(shape) for name in ("focal", "centre"))
        return (points[..., :2] / points[..., 2:] * focal + centre).astype(np.float32)

    def fps(self, rows: np.ndarray) -> np.ndarray:
        """Frames per second of the stored frames: float[M]."""
        return self.views["fps"][rows]

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """int64[rows], where in the tables the frames of a row's take begin."""
        take = np.asarray(pq.read_table(Path(self.directory, JOINTS), columns=["take"])["take"].to_numpy(), np.str_)
        names, first = np.unique(take, return_index=True)
        place = np.searchsorted(names, self.views["take"])
        return first[place]

    @functools.cached_property
    def _joints(self) -> np.ndarray:
        return _column(pq.read_table(Path(self.directory, JOINTS), columns=["joints"]), "joints").reshape(
            -1, len(self.joint_names), 3
        )

    @functools.cached_property
    def _facing(self) -> np.ndarray:
        return _column(pq.read_table(Path(self.directory, JOINTS), columns=["facing"]), "facing")

    @functools.cached_property
    def _cameras(self) -> dict[str, np.ndarray]:
        """By manifest row; a prepared set holds them in its order."""
        table = pq.read_table(Path(self.directory, CAMERAS))
        columns = {name: _column(table, name) for name in ("rotation", "translation", "focal", "centre")}
        return columns | {"rotation": columns["rotation"].reshape(-1, 3, 3)}

    def _entries(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        rows, frames = np.asarray(rows), np.asarray(frames)
        if frames.min() < 0 or (frames.max(axis=1) >= self.views["num_frames"][rows]).any():
            raise UserError(f"frames {frames.min()} to {frames.max()} are asked for, beyond the end of a view")
        return self._first[rows][:, None] + frames  # (M, T)

    def __getstate__(self) -> dict:
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in fields}


def read_skeleton(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], int]:
    """(joint names, edges, number of the root) of skeleton.json.

    Raises:
      ValueError: it is no such file.
    """
    try:
        skeleton = json.loads(path.read_bytes())
        names = tuple(str(name) for name in skeleton["joint_names"])
        edges = tuple((int(a), int(b)) for a, b in skeleton["edges"])
        root = names.index(skeleton["root"])
        if (
            not names
            or len(set(names)) < len(names)
            or not all(0 <= end < len(names) for edge in edges for end in edge)
        ):
            raise UserError("joint names are to be different, and edges pairs of their numbers from 0")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a skeleton ({error!r}); data/truth.py shows its form") from error
    return names, edges, root


def skeleton_json(joint_names: Sequence[str], edges: Sequence[Sequence[int]], root: str) -> bytes:
    """The text of skeleton.json."""
    content = {"joint_names": list(joint_names), "edges": [list(edge) for edge in edges], "root": root}
    return (json.dumps(content, indent=1) + "\n").encode()


def joints_table(take: Sequence[str], frame: np.ndarray, facing: np.ndarray, joints: np.ndarray) -> pa.Table:
    """Columns of M frames; `joints` float32[M, J, 3], metres in the world."""
    return pa.table(
        {
            "take": pa.array(take, pa.string()),
            "frame": pa.array(frame, pa.int32()),
            "facing": pa.array(facing, pa.float32()),
            "joints": _lists(joints, pa.float32()),
        }
    )


def cameras_table(columns: Mapping[str, Sequence]) -> pa.Table:
    """Columns of M cameras, named as in cameras.parquet: `rotation` float[M, 3, 3], `focal` float[M, 2] and so on."""
    texts = {name: pa.array(columns[name], pa.string()) for name in ("take", "view")}
    lists = {name: _lists(columns[name], pa.float64()) for name in ("rotation", "translation", "focal", "centre")}
    return pa.table(texts | lists | {name: pa.array(columns[name], pa.int32()) for name in ("width", "height")})


def carry(source: Path, views: pa.Table, output: Path, write: Callable[[Path, bytes], None]) -> None:
    """Copies the truth of the takes that were prepared, in the order of the manifest.

    Args:
      source: the folder with the three files.
      views: the manifest.
      output: the folder to make.
      write: writes a file as a whole or not at all.

    Raises:
      ValueError: a file does not have its form, or lacks a prepared take, view or frame; names the first.
    """
    names, edges, root = read_skeleton(source / SKELETON)
    joints, cameras = (_read(source / name, schema) for name, schema in ((JOINTS, _JOINTS), (CAMERAS, _CAMERAS)))
    size = joints["joints"].type.list_size
    if size != 3 * len(names):
        raise UserError(
            f"{source / JOINTS}: a frame has {size} numbers, and the {len(names)} joints of {SKELETON} need "
            f"{3 * len(names)}"
        )
    take, view, length = (np.asarray(views[name].to_pylist()) for name in ("take", "view", "num_frames"))
    joints, row_of = joints.sort_by([("take", "ascending"), ("frame", "ascending")]), {}
    there, frame = np.asarray(joints["take"].to_pylist()), joints["frame"].to_numpy()
    first, last = np.searchsorted(there, take), np.searchsorted(there, take, "right")
    for i in range(len(take)):
        frames = frame[first[i] : last[i]]
        if len(frames) < length[i] or not np.array_equal(frames, np.arange(len(frames))):
            raise UserError(
                f"{source / JOINTS}: take {take[i]} has {len(frames)} frames there, and its view {view[i]} has "
                f"{length[i]}; frames 0 to {length[i] - 1} are needed, each once. Complete them, or prepare without "
                "truth: --truth=none"
            )
    for i, key in enumerate(zip(*(cameras[name].to_pylist() for name in ("take", "view")), strict=True)):
        row_of[key] = i
    if missing := [key for key in zip(take.tolist(), view.tolist(), strict=True) if key not in row_of]:
        raise UserError(
            f"{source / CAMERAS} lacks view {missing[0][1]} of take {missing[0][0]} and {len(missing) - 1} others that "
            "were prepared. Complete it, or prepare without truth: --truth=none"
        )
    kept = np.unique(take)
    joints = joints.filter(pa.array(np.isin(there, kept)))
    cameras = cameras.take([row_of[key] for key in zip(take.tolist(), view.tolist(), strict=True)])
    output.mkdir(exist_ok=True)
    write(output / JOINTS, _bytes(joints))
    write(output / CAMERAS, _bytes(_scaled(cameras, views)))
    write(output / SKELETON, skeleton_json(names, edges, names[root]))  # last: with it the truth is there


def _scaled(cameras: pa.Table, views: pa.Table) -> pa.Table:
    """Intrinsics in pixels of the stored frames; pixel centres stay at integers."""
    columns = {name: _column(cameras, name) for name in cameras.column_names if name not in ("take", "view")}
    before = np.stack([columns["width"], columns["height"]], axis=1)
    after = np.stack([views[name].to_numpy() for name in ("width", "height")], axis=1)
    factor = after / before
    texts = {name: cameras[name].to_pylist() for name in ("take", "view")}
    return cameras_table(
        texts
        | columns
        | {
            "focal": columns["focal"] * factor,
            "centre": (columns["centre"] + 0.5) * factor - 0.5,
            "width": after[:, 0],
            "height": after[:, 1],
        }
    )


_JOINTS = {"take": pa.string(), "frame": pa.int32(), "facing": pa.float32(), "joints": None}
_CAMERAS = {
    "take": pa.string(),
    "view": pa.string(),
    "rotation": pa.list_(pa.float64(), 9),
    "translation": pa.list_(pa.float64(), 3),
    "focal": pa.list_(pa.float64(), 2),
    "centre": pa.list_(pa.float64(), 2),
    "width": pa.int32(),
    "height": pa.int32(),
}


def _read(path: Path, schema: Mapping[str, pa.DataType | None]) -> pa.Table:
    try:
        table = pq.read_table(path, columns=list(schema))
        if missing := [name for name in schema if name not in table.column_names]:
            raise UserError(f"column {missing[0]} is missing")
        for index, (name, kind) in enumerate(schema.items()):
            column = table[name]
            if name == "joints":
                sizes = {len(joints) for joints in column.to_pylist()} if pa.types.is_list(column.type) else None
                if sizes is not None and len(sizes) != 1:
                    raise UserError("rows of joints have different lengths")
                kind = pa.list_(pa.float32(), sizes.pop() if sizes else column.type.list_size)
            table = table.set_column(index, name, column.cast(kind))
    except (OSError, pa.ArrowException, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as part of the truth: {error}. Its form: data/truth.py") from error
    for name in schema:
        if table[name].null_count:
            raise UserError(f"{path}: column {name} has {table[name].null_count} empty entries")
        values = _column(table, name) if name not in ("take", "view") else np.zeros(1)
        if not np.isfinite(values).all():
            raise UserError(f"{path}: column {name} holds numbers that are not finite")
    return table


def _column(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)  # (M, size)
    return column.to_numpy(zero_copy_only=False)


def _lists(values: Sequence, kind: pa.DataType) -> pa.FixedSizeListArray:
    array = np.asarray(values)
    flat = array.reshape(len(array), -1)  # (M, size)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), kind), flat.shape[1])


def _bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def write_tables(folder: Path, skeleton: bytes, joints: pa.Table, cameras: pa.Table) -> None:
    """Writes a `truth/` folder; each file as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((JOINTS, _bytes(joints)), (CAMERAS, _bytes(cameras)), (SKELETON, skeleton)):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
