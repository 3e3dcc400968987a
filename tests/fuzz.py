"""Damaged and hostile input, made from a seed: each case ends in success, a quarantine entry or a short error."""

import contextlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.prepare import __main__ as prepare
from data.store import frame_index, takes
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks
from mv2mae_jax.runs import step_folders
from tests import video_files


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy: flipped bits, overwritten bytes, a lost end, a missing or repeated part, or only random bytes."""
    if not content:
        return b"\0"
    changed = bytearray(content)
    start = int(rng.integers(len(content)))
    length = int(min(len(content) - start, rng.integers(1, max(2, len(content) // 4))))
    kind = rng.integers(6)
    if kind == 0:
        for position in rng.integers(len(content), size=int(rng.integers(1, 30))):
            changed[position] ^= 1 << rng.integers(8)
    elif kind == 1:
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        del changed[start:]
    elif kind == 3:
        del changed[start : start + length]
    elif kind == 4:
        changed[start:start] = changed[start : start + length]
    else:
        changed = bytearray(rng.bytes(len(content)))
    return bytes(changed)


def video_seeds(folder: Path) -> list[bytes]:
    """Small videos in three containers and codecs."""
    frames = video_files.moving_square(6, 24, 32, seed=0)
    written = [
        video_files.write_video(folder / "a.avi", frames),
        video_files.write_video(folder / "a.mp4", frames),
        video_files.write_video(folder / "a.webm", frames, codec="libvpx-vp9"),
    ]
    return [path.read_bytes() for path in written]


def prepare_mutated_videos(folder: Path, seeds: list[bytes], seed: int, num_takes: int) -> tuple[int, int]:
    """A folder of takes of two views, one of which is mutated -> (views prepared, views in quarantine).

    Raises:
      AssertionError: no set was prepared, or a view was left out without a reason.
    """
    rng = np.random.default_rng(seed)
    raw, output = folder / "raw", folder / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    raw.mkdir(parents=True)
    for take in range(num_takes):
        original = seeds[rng.integers(len(seeds))]
        (raw / f"t{take:04}_cam0.avi").write_bytes(original)
        (raw / f"t{take:04}_cam1.avi").write_bytes(mutate(original, rng))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = prepare.main(
            ["--dataset=folder", f"--input={raw}", f"--output={output}", "--workers=1", "--max_quarantined=1000000"]
        )
    assert code == 0, errors.getvalue()
    told = json.loads((output / "prepared.json").read_text())["counts"]
    assert told["videos"] + told["quarantined"] == told["videos_in"] == 2 * num_takes
    quarantine = (output / "quarantine.csv").read_text().splitlines()[1:]
    assert len(quarantine) == told["quarantined"] and all(line.split(",", 2)[2] for line in quarantine)
    assert sorted(path.name for path in folder.iterdir()) == ["prepared", "raw"]
    prepared = takes.open_prepared(output)
    for record, num_frames in enumerate(prepared.views["num_frames"].tolist()):
        prepared.read(record, np.arange(num_frames))
    return told["videos"], told["quarantined"]


def mutated_files(folder: Path, seed: int, cases: int, which=lambda path: True) -> Iterator[Path]:
    """Mutates one file below `folder` per case, yields it, and mends it again."""
    rng = np.random.default_rng(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and which(path))
    for _ in range(cases):
        path = paths[rng.integers(len(paths))]
        content = path.read_bytes()
        changed = mutate(content, rng)
        while changed == content:
            changed = mutate(content, rng)
        path.write_bytes(changed)
        yield path
        path.write_bytes(content)


def read_mutated_set(folder: Path, seed: int, cases: int) -> tuple[int, int]:
    """Reads prepared sets with one mutated file. Each frame is as written or refused -> (read, refused).

    Raises:
      AssertionError: a changed frame was read without an error.
    """
    frames, read, refused = np.array([0, 3, 3, 5]), 0, 0
    wanted = takes.open_prepared(folder)
    wanted = [wanted.read(record, frames) for record in range(len(wanted.views["record"]))]
    shards_and_index = lambda path: "array_record" in path.name or path.name == frame_index.NAME  # noqa: E731
    for path in mutated_files(folder, seed, cases, shards_and_index):
        try:
            prepared = takes.open_prepared(folder)
        except ValueError:
            refused += 1
            continue
        for record, pixels in enumerate(wanted):
            try:
                np.testing.assert_array_equal(prepared.read(record, frames), pixels, err_msg=str(path))
                read += 1
            except takes.DamagedRecord as error:
                assert prepared.views["take"][record] in str(error)
                refused += 1
    return read, refused


def check_mutated_step(step: Path, seed: int, cases: int) -> None:
    """Checks that a checkpoint with one mutated file is recognised as damaged.

    Raises:
      AssertionError: the damage was not found.
    """
    for path in mutated_files(step, seed, cases):
        assert step_folders.describe(step), path
    assert not step_folders.describe(step)


VALUES = [
    0,
    1,
    -1,
    3,
    7.5,
    -0.5,
    1e30,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "x",
    (),
    (1,),
    (1, 2),
    (0, 0),
    (-3, 7),
]


def validate_random_config(base: str, seed: int, data_dir: str) -> bool:
    """A config with a few keys set to anything: loaded and validated -> whether it may be run.

    Raises:
      AssertionError: the refusal is not a short text that names a key.
      Exception: validation failed with another error than ValueError, which is a fault of the validation.
    """
    draw = random.Random(seed)
    keys = [key for key, _ in configs.flatten(configs.load(base)) if key != "data.dir"]
    chosen = draw.sample(keys, draw.randint(1, 4))
    overrides = [f"{key}={draw.choice(VALUES)!r}" for key in chosen]
    try:
        config_checks.validate(configs.load(base, [f"data.dir={data_dir}", *overrides]))
    except ValueError as error:
        text = str(error)
        assert len(text) < 3000 and any(key.rpartition(".")[2] in text for key in keys), text
        return False
    return True


def hostile_zip(path: Path, video: bytes, outside: str) -> None:
    """A zip file whose members lead out of the folder that they are unpacked to."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t1_cam0.avi", video)
        archive.writestr("t1_cam1.avi", video)
        archive.writestr(f"../{outside}_cam0.avi", video)
        archive.writestr(f"/tmp/{outside}_cam1.avi", video)
        archive.writestr(f"a/../../{outside}_cam2.avi", video)


def avi_claiming(
    video: bytes, *, width: int | None = None, height: int | None = None, frames: int | None = None
) -> bytes:
    """An AVI file with other numbers in its headers: avih (frames, size), strh (length) and strf (size)."""
    changed = bytearray(video)

    def put(position: int, value: int | None) -> None:
        if value is not None:
            changed[position : position + 4] = value.to_bytes(4, "little")

    avih, strh, strf = (video.index(name) + 8 for name in (b"avih", b"strh", b"strf"))
    put(avih + 16, frames)
    put(avih + 32, width)
    put(avih + 36, height)
    put(strh + 32, frames)
    put(strf + 4, width)
    put(strf + 8, height)
    return bytes(changed)


class Bomb:
    """Unpickling an instance runs a command."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)
