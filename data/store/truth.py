"""What is known of a take besides its pictures: 3D joints of the person and calibrated cameras. Optional.

A folder `truth/` beside the raw videos holds it, from `python -m data.synthetic` or from a motion-capture rig:
  skeleton.json     {"joint_names": [...], "edges": [[a, b], ...], "root": "pelvis"}
  joints.parquet    take, frame, facing (radians about the world's z), joints float32[3 * J] (metres, world z up)
  cameras.parquet   take, view, rotation float64[9] (world to camera, row by row), translation float64[3] (metres),
                    focal float64[2], centre float64[2] (pixels), width, height (pixels of the raw video)
Takes and views are named as in the manifest, frames counted as in the videos from 0; takes that are cut from a longer
recording (PKU-MMD) are known by the recording's name and frames. Cameras follow OpenCV's convention:
pixel = K (R X + t), x right, y down, z forwards, pixel centres at integers. Preparation carries the tables to the
prepared set, with cameras in pixels of the stored frames and in the manifest's order.
"""

import dataclasses
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from console.command import did_you_mean, nearest
from console.errors import UserError
from data.store import digests
from data.store.whole_files import write_whole

FOLDER = "truth"
SKELETON, JOINTS, CAMERAS = "skeleton.json", "joints.parquet", "cameras.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """The truth of a prepared set. Picklable. Tables are read when they are first used."""

    directory: str  # holds the three files
    views: Mapping[str, np.ndarray]  # the manifest's columns; `take`, `view`, `fps` and `num_frames` are used
    joint_names: tuple[str, ...]  # of the J joints
    edges: tuple[tuple[int, int], ...]  # pairs of joint numbers, the bones
    root: int  # number of the joint that poses are relative to
    tables: Mapping[str, digests.Unchanged]  # by name, those that must keep their content until they are read

    @classmethod
    def open(
        cls, directory: Path, views: Mapping[str, np.ndarray], listed: Mapping[str, str] | None = None
    ) -> "Truth | None":
        """The truth of the prepared set in `directory`; None if it has none.

        `listed` are the digests of the set's files, by their paths in it.
        """
        if not (directory / SKELETON).exists():
            return None
        names, edges, root = read_skeleton(directory / SKELETON)
        sha256 = {name: (listed or {}).get(f"{FOLDER}/{name}") for name in (JOINTS, CAMERAS)}
        tables = {name: digests.Unchanged(directory / name, digest) for name, digest in sha256.items()}
        return cls(directory=str(directory), views=views, joint_names=names, edges=edges, root=root, tables=tables)

    def in_world(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Joints in metres: manifest rows int[M] and their stored frames int[M, T] -> float32[M, T, J, 3]."""
        return self._joints[self._entries(rows, frames)]

    def in_camera(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """As `in_world`, in the frame of the row's camera: x right, y down, z forwards."""
        return self.from_world(rows, self.in_world(rows, frames)).astype(np.float32)

    def from_world(self, rows: np.ndarray, points: np.ndarray, translation: float = 1.0) -> np.ndarray:
        """Points [M, T, K, 3] of the world in the frame of each row's camera, its translation times a factor."""
        camera = self.camera(rows)
        points = np.einsum("mij,mtkj->mtki", camera["rotation"], points)  # (M, T, K, 3)
        return points + translation * camera["translation"][:, None, None]

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
        """Points float[M, ..., 3] in each row's camera frame -> pixels (x, y) of stored frames, float32[M, ..., 2].

        NaN for a point behind the camera.
        """
        shape = (len(rows), *[1] * (points.ndim - 2), 2)
        focal, centre = (self._cameras[name][rows].reshape(shape) for name in ("focal", "centre"))
        depth = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
        return (points[..., :2] / depth * focal + centre).astype(np.float32)

    def camera(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of each row: rotation float64[M, 3, 3], translation [M, 3], focal [M, 2] and centre [M, 2], as above."""
        return {name: self._cameras[name][rows] for name in ("rotation", "translation", "focal", "centre")}

    def fps(self, rows: np.ndarray) -> np.ndarray:
        """Frames per second of the stored frames: float[M]."""
        return self.views["fps"][rows]

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """int64[rows], where in joints.parquet the frames of a manifest row begin."""
        if "first" in self._cameras:
            return self._cameras["first"]
        names, code = encoded(self._table(JOINTS, ["take"])["take"])
        frames_of = dict(zip(names.tolist(), np.bincount(code).tolist(), strict=True))
        views = zip(self.views["take"].tolist(), self.views["num_frames"].tolist(), strict=True)
        self._check_complete(JOINTS, [take for take, length in views if frames_of.get(take, 0) < length])
        _, first = np.unique(code, return_index=True)
        return first[np.searchsorted(names, self.views["take"])]

    @functools.cached_property
    def _joints(self) -> np.ndarray:
        return column_of(self._table(JOINTS, ["joints"]), "joints").reshape(-1, len(self.joint_names), 3)

    @functools.cached_property
    def _facing(self) -> np.ndarray:
        return column_of(self._table(JOINTS, ["facing"]), "facing")

    @functools.cached_property
    def _cameras(self) -> dict[str, np.ndarray]:
        """The cameras by manifest row; a prepared set holds them in the manifest's order."""
        table = self._table(CAMERAS)
        self._check_complete(CAMERAS, self.views["take"][len(table) :].tolist())
        columns = {name: column_of(table, name) for name in table.column_names if name not in ("take", "view")}
        return columns | {"rotation": columns["rotation"].reshape(-1, 3, 3)}

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        if not (path := Path(self.directory, name)).is_file():
            raise UserError(f"{path} is missing. Prepare the set again")
        self.tables[name].check()
        return pq.read_table(path, columns=columns)

    def _check_complete(self, name: str, lacking: Sequence[str]) -> None:
        if lacking:
            raise UserError(
                f"{Path(self.directory, name)} is not of this set: it lacks rows for {len(lacking)} of its "
                f"{len(self.views['take'])} views, e.g. of take {lacking[0]}. Prepare the set again"
            )

    def _entries(self, rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
        rows, frames = np.asarray(rows), np.asarray(frames)
        if frames.size and (frames.min() < 0 or (frames >= self.views["num_frames"][rows][:, None]).any()):
            raise UserError(f"frames {frames.min()} to {frames.max()} are asked for, beyond the end of a view")
        return self._first[rows][:, None] + frames  # (M, T)

    def __getstate__(self) -> dict:
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in fields}


def read_skeleton(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], int]:
    """(joint names, edges, number of the root) of skeleton.json. Raises ValueError if it is no such file."""
    try:
        skeleton = json.loads(path.read_bytes())
        if not isinstance(skeleton["joint_names"], list):
            raise UserError(f"joint_names is to be a list of names, not {skeleton['joint_names']!r}")
        names, root = tuple(str(name) for name in skeleton["joint_names"]), str(skeleton["root"])
        if len(set(names)) < len(names):
            raise UserError(f"joint names are to be different: {', '.join(names)}")
        if root not in names:
            near = did_you_mean(nearest(root, names))
            raise UserError(f"its root {root} is none of the joints {', '.join(names)}.{near}")
        numbers, edges = range(len(names)), tuple(tuple(edge) for edge in skeleton["edges"])
        for edge in edges:
            if len(edge) != 2 or not all(end in numbers for end in edge):
                raise UserError(f"edge {list(edge)} is to be a pair of joints' numbers, from 0 to {len(names) - 1}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{path} does not describe a skeleton (its form: data/store/truth.py): {said}") from error
    return names, tuple((int(a), int(b)) for a, b in edges), names.index(root)


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
            "joints": _array(joints, pa.list_(pa.float32(), 3 * joints.shape[1])),
        }
    )


def cameras_table(columns: Mapping[str, Sequence]) -> pa.Table:
    """Columns of M cameras, named as in cameras.parquet: `rotation` float[M, 3, 3], `focal` float[M, 2] and so on."""
    return pa.table({name: _array(columns[name], kind) for name, kind in _CAMERAS.items()})


def encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Texts as (the distinct texts, sorted; for each row the number of its text). A table may have millions of rows."""
    coded = column.combine_chunks().dictionary_encode()
    names, number = np.unique(np.array(coded.dictionary.to_pylist(), np.str_), return_inverse=True)
    return names, number[coded.indices.to_numpy()]


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
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


def read_tables(source: Path) -> tuple[tuple, pa.Table, pa.Table]:
    """(what `read_skeleton` returns, joints, cameras), with the forms checked and names as the manifest has them."""
    skeleton = read_skeleton(source / SKELETON)
    joints, cameras = (_read(source / name, schema) for name, schema in ((JOINTS, _JOINTS), (CAMERAS, _CAMERAS)))
    size, names = joints["joints"].type.list_size, skeleton[0]
    if size != 3 * len(names):
        raise UserError(
            f"{source / JOINTS}: a frame has {size} numbers, and the {len(names)} joints of {SKELETON} need "
            f"{3 * len(names)}"
        )
    return skeleton, joints, cameras


def _read(path: Path, schema: Mapping[str, pa.DataType | None]) -> pa.Table:
    try:
        if missing := [name for name in schema if name not in pq.read_schema(path).names]:
            raise UserError(f"column {missing[0]} is missing")
        table = pq.read_table(path, columns=list(schema))
        if not len(table):
            raise UserError("it has no rows")
        for index, (name, kind) in enumerate(schema.items()):
            if table[name].null_count:
                raise UserError(f"column {name} has {table[name].null_count} empty entries")
            lists = kind is None or pa.types.is_fixed_size_list(kind)
            column = _of_one_size(table[name], name, kind) if lists else table[name].cast(kind)
            column = pc.utf8_normalize(column, form="NFC") if kind == pa.string() else column
            table = table.set_column(index, name, column)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as part of the truth: {error}. Its form: data/store/truth.py"
        ) from error
    for name in schema:
        values = column_of(table, name) if name not in ("take", "view") else np.zeros(1)
        if not np.isfinite(values).all():
            raise UserError(f"{path}: column {name} holds numbers that are not finite")
    return table


def _of_one_size(column: pa.ChunkedArray, name: str, kind: pa.DataType | None) -> pa.Array:
    """Rows of numbers as lists of one size, that of `kind`; from lists of any kind, or lists of lists of 3 numbers."""
    values, sizes = column.combine_chunks(), []
    while any(is_of_kind(values.type) for is_of_kind in _LISTS):
        lengths = pc.list_value_length(values).unique().to_pylist()
        if len(lengths) != 1 or None in lengths:
            raise UserError(f"rows of {name} have different lengths")
        values, sizes = pc.list_flatten(values), sizes + lengths
    if not sizes or sizes[1:] not in ([], [3]):
        raise UserError(f"column {name} is of type {column.type}; lists of numbers are needed, or of 3 numbers each")
    size = math.prod(sizes)
    if kind is not None and size != kind.list_size:
        raise UserError(f"rows of {name} have {size} numbers, and {kind.list_size} are needed")
    return pa.FixedSizeListArray.from_arrays(values.cast(kind.value_type if kind else pa.float32()), size)


def column_of(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)  # (M, size)
    return column.to_numpy(zero_copy_only=False)


def _array(values: Sequence, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values), kind.value_type), kind.list_size)


def write_tables(folder: Path, skeleton: bytes, joints: pa.Table, cameras: pa.Table, *, durable: bool = False) -> None:
    """Writes a `truth/` folder; each file as a whole or not at all, and last SKELETON, which makes it a truth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SKELETON).unlink(missing_ok=True)  # of an earlier truth
    for name, table in ((JOINTS, joints), (CAMERAS, cameras)):
        file = io.BytesIO()
        pq.write_table(table, file)
        write_whole(folder / name, file.getvalue(), durable=durable)
    write_whole(folder / SKELETON, skeleton, durable=durable)
