"""Generates a data set: all takes, in parallel, continuing where an earlier call stopped."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib

import numpy as np

from console import progress
from console.errors import UserError
from console.workers import pool
from data import catalog
from data.catalog.synthetic import CLASS_NAMES
from data.store import truth
from data.store.whole_files import only_one, remove_leftovers, write_whole
from data.synthetic import actors, rooms, writer
from data.synthetic.design import Take, plan_takes, subjects_by_setup
from data.synthetic.sheet import SHEET

DESCRIPTION = "synthetic.json"
CATALOG = catalog.get("synthetic")


def generate(
    output: pathlib.Path,
    num_takes: int,
    seed: int,
    workers: int,
    num_setups: int | None = None,
    num_subjects: int | None = None,
    style: rooms.Style = rooms.STANDARD,
) -> None:
    """Writes the data set, or what is missing from it or cut off; `num_setups` and `num_subjects` as in design.py.

    Raises:
      ValueError: the arguments make no sense, the folder holds something else, another call writes to it, or a process
        was killed.
      OSError: the folder cannot be written.
    """
    if seed < 0:
        raise UserError(f"--seed must not be negative, got {seed}")
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    takes = plan_takes(num_takes, seed, num_setups, num_subjects)
    _claim(output, description(num_takes, seed, num_setups, num_subjects, style), takes)
    with only_one(output / DESCRIPTION, f"another data.synthetic is at work in {output}; wait for it"):
        remove_leftovers(output)
        _write_truth(output / truth.FOLDER, takes, seed, style)
        todo = [take for take in takes if writer.missing(output, take)]
        write = functools.partial(writer.write_take, output, seed, style=style)
        workers = min(workers, max(1, len(todo)))
        with progress.Bar(len(takes), "generating", "takes", initial=len(takes) - len(todo)) as bar:
            if workers == 1:
                for take in todo:
                    write(take)
                    bar.advance()
                return
            with pool(workers) as processes:
                for done in concurrent.futures.as_completed([processes.submit(write, take) for take in todo]):
                    done.result()
                    bar.advance()


def _write_truth(folder: pathlib.Path, takes: list[Take], seed: int, style: rooms.Style) -> None:
    """Writes what the renderer uses, in the form of data/store/truth.py: joints, facing and cameras of every take.

    Does nothing if they are there and can be read.
    """
    with contextlib.suppress(UserError):
        truth.read_tables(folder)
        return
    names, numbers, facing, joints, cameras = [], [], [], [], collections.defaultdict(list)
    for take in takes:
        name = CATALOG.parse(take.file_name(1)).take
        body = writer.take_body(seed, take, style)
        left = body.joints["left_hip"] - body.joints["right_hip"]  # (T, 3)
        facing.append(np.arctan2(-left[:, 0], left[:, 1]))
        joints.append(np.stack([body.joints[joint] for joint in actors.JOINTS], axis=1, dtype=np.float32))  # (T, J, 3)
        numbers.append(np.arange(len(left)))
        names += [name] * len(left)
        room = rooms.make_room(seed, take.setup, style)
        for number in rooms.CAMERA_DEGREES:
            camera = rooms.make_camera(room, number, style.width, style.height)
            K = camera.intrinsics
            for key, value in {
                "take": name,
                "view": CATALOG.parse(take.file_name(number)).view,
                "rotation": camera.rotation,
                "translation": camera.translation,
                "focal": K[[0, 1], [0, 1]],
                "centre": K[:2, 2],
                "width": style.width,
                "height": style.height,
            }.items():
                cameras[key].append(value)
    table = truth.joints_table(names, np.concatenate(numbers), np.concatenate(facing), np.concatenate(joints))
    skeleton = truth.skeleton_json(actors.JOINTS, actors.BONES, "pelvis")
    truth.write_tables(folder, skeleton, table, truth.cameras_table(cameras))


def description(
    num_takes: int,
    seed: int,
    num_setups: int | None = None,
    num_subjects: int | None = None,
    style: rooms.Style = rooms.STANDARD,
) -> dict:
    """The content of synthetic.json: the arguments and the ground truth of rooms and cameras."""
    setups = {}
    for setup, subjects in subjects_by_setup(num_takes, num_setups, num_subjects).items():
        room = rooms.make_room(seed, setup, style)
        cameras = {}
        for number in rooms.CAMERA_DEGREES:
            camera = rooms.make_camera(room, number, style.width, style.height)
            matrices = {"K": camera.intrinsics, "R": camera.rotation, "t": camera.translation}
            cameras[f"C{number:03}"] = {name: matrix.tolist() for name, matrix in matrices.items()}
        setups[f"S{setup:03}"] = {"subjects": subjects, "cameras": cameras}
    return {
        "seed": seed,
        "takes": num_takes,
        "num_setups": num_setups,
        "num_subjects": num_subjects,
        **dataclasses.asdict(style),
        "class_names": list(CLASS_NAMES),
        "convention": "pixel = K (R X + t); metres, world z up; x right, y down; pixel centres at integers",
        "setups": setups,
    }


def _claim(output: pathlib.Path, wanted: dict, takes: list[Take]) -> None:
    """Makes the folder and its synthetic.json. Refuses a folder that holds anything but this data set."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / DESCRIPTION
    if path.exists():
        try:
            there = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete {output} or use another folder") from error
        defaults = {"num_subjects": None} | dataclasses.asdict(rooms.STANDARD)  # folders of older versions lack these
        arguments = ("seed", "takes", "num_setups", "class_names", *defaults)
        found = defaults | there
        differences = [
            f"{key} {found.get(key)} there, {wanted[key]} asked" for key in arguments if found.get(key) != wanted[key]
        ]
        if differences:
            raise UserError(
                f"{output} holds another generated data set: {'; '.join(differences)}; delete it or use another"
            )
    mine = {take.file_name(camera) for take in takes for camera in rooms.CAMERA_DEGREES} | {DESCRIPTION}
    names = {file.name for file in output.iterdir() if not file.name.startswith(".")}
    strangers = sorted(names - mine - {SHEET, truth.FOLDER})
    if strangers:
        raise UserError(
            f"{output} holds files that are not of this data set, e.g. {strangers[0]}; choose another --output"
        )
    if names and not path.exists():
        raise UserError(f"{output} lacks {DESCRIPTION}, so nothing tells what its files show: delete it or use another")
    if not path.exists():
        write_whole(path, json.dumps(wanted, indent=1) + "\n")
