"""Generates a data set: all takes, in parallel, going on where an earlier call stopped."""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib

import cv2

from console import progress
from data.synthetic import rooms, writer
from data.synthetic.actions import CLASS_NAMES
from data.synthetic.design import Take, plan_takes, subjects_by_setup
from data.synthetic.sheet import SHEET

DESCRIPTION = "synthetic.json"


def generate(
    output: pathlib.Path,
    num_takes: int,
    seed: int,
    width: int,
    height: int,
    workers: int,
    num_setups: int | None = None,
) -> None:
    """Writes the data set, all of it or what is missing of it; `num_setups` as in design.py.

    Raises:
      ValueError: the arguments make no sense, or the folder holds something else.
      OSError: the folder cannot be written.
    """
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    takes = plan_takes(num_takes, seed, num_setups)
    _claim(output, description(num_takes, seed, width, height, num_setups), takes)
    write = functools.partial(_write_take, output, seed, width, height)
    todo = [t for t in takes if not all((output / t.file_name(c)).exists() for c in rooms.CAMERA_DEGREES)]
    workers = min(workers, max(1, len(todo)))
    with progress.Bar(len(takes), "generating", "takes", initial=len(takes) - len(todo)) as bar:
        if workers == 1:
            for take in todo:
                write(take)
                bar.advance()
            return
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            for done in concurrent.futures.as_completed([pool.submit(write, take) for take in todo]):
                done.result()
                bar.advance()


def _write_take(output: pathlib.Path, seed: int, width: int, height: int, take: Take) -> None:
    cv2.setNumThreads(1)  # Workers are processes.
    writer.write_take(output, seed, take, width, height)


def description(num_takes: int, seed: int, width: int, height: int, num_setups: int | None = None) -> dict:
    """What synthetic.json says: the arguments and the ground truth of rooms and cameras."""
    setups = {}
    for setup, subjects in subjects_by_setup(num_takes, num_setups).items():
        room = rooms.make_room(seed, setup)
        cameras = {number: rooms.make_camera(room, number, width, height) for number in rooms.CAMERA_DEGREES}
        setups[f"S{setup:03}"] = {
            "subjects": subjects,
            "cameras": {
                f"C{number:03}": {
                    "K": camera.intrinsics.tolist(),
                    "R": camera.rotation.tolist(),
                    "t": camera.translation.tolist(),
                }
                for number, camera in cameras.items()
            },
        }
    return {
        "seed": seed,
        "takes": num_takes,
        "num_setups": num_setups,
        "width": width,
        "height": height,
        "fps": writer.FPS,
        "class_names": list(CLASS_NAMES),
        "convention": "pixel = K (R X + t); metres, world z up; x right, y down; pixel centres at integers",
        "setups": setups,
    }


def _claim(output: pathlib.Path, wanted: dict, takes: list[Take]) -> None:
    """Makes the folder and its synthetic.json; refuses a folder that holds anything else than this data set.

    Files that an earlier call left half-written are removed.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / DESCRIPTION
    if path.exists():
        there = json.loads(path.read_text())
        arguments = ("seed", "takes", "num_setups", "width", "height", "class_names")
        differences = [
            f"{key} {there.get(key)} there, {wanted[key]} asked" for key in arguments if there.get(key) != wanted[key]
        ]
        if differences:
            raise ValueError(
                f"{output} holds another generated data set: {'; '.join(differences)}; delete it or use another"
            )
    mine = {take.file_name(camera) for take in takes for camera in rooms.CAMERA_DEGREES} | {DESCRIPTION}
    names = {file.name for file in output.iterdir() if not file.name.startswith(".")}
    partial = {name + writer.PARTIAL for name in mine} & names
    strangers = sorted(names - partial - mine - {SHEET})
    if strangers:
        raise ValueError(
            f"{output} holds files that are not of this data set, e.g. {strangers[0]}; choose another --output"
        )
    for name in partial:
        (output / name).unlink()
    if not path.exists():
        writing = output / (DESCRIPTION + writer.PARTIAL)
        writing.write_text(json.dumps(wanted, indent=1) + "\n")
        os.replace(writing, path)
