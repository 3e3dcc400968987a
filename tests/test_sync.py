"""Known offsets are estimated from claps and from motion, and none is given where the videos do not show one."""

import csv
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from console.command import ExitCode
from data import sync
from data.catalog.base import Video

SOUND_RATE = 8000


def write_take(
    path: Path, begin: float, seconds: float, path_of_light, clap: float | None, seed: int, size=32, silent=(0.0, 0.0)
) -> Path:
    """Writes a view that begins at `begin`. It shows a light, at `path_of_light(seconds)`, and may record a clap.

    Between the two times of its file in `silent` the sound is lost.
    """
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 4 * size, 3 * size, "yuv420p"
        stream.codec_context.thread_count = 1
        sound = None if clap is None else output.add_stream("aac", rate=SOUND_RATE, layout="mono")
        x, y = np.meshgrid(np.arange(4 * size), np.arange(3 * size))
        for number in range(round(seconds * 30)):
            place = path_of_light(begin + number / 30)
            across = (2 if seed % 2 else 2.6) * size + (size if seed % 2 else -0.8 * size) * place  # the views differ
            light = 200 * np.exp(-((x - across) ** 2 + (y - 1.5 * size) ** 2) / (0.1 * size**2))
            picture = np.repeat((30 + light)[..., None], 3, axis=2).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
        if clap is not None:
            heard = 0.01 * rng.standard_normal(round(seconds * SOUND_RATE)).astype(np.float32)
            at = round((clap - begin) * SOUND_RATE)
            heard[at : at + 400] += np.exp(-np.arange(400) / 80) * rng.standard_normal(400)
            for first in range(0, len(heard) - 1023, 1024):
                if silent[0] <= first / SOUND_RATE < silent[1]:
                    continue
                frame = av.AudioFrame.from_ndarray(heard[None, first : first + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, first, Fraction(1, SOUND_RATE)
                output.mux(sound.encode(frame))
            output.mux(sound.encode())
    return path


def wandering(seed: int):
    rng = np.random.default_rng(seed)
    moments, places = np.cumsum(rng.uniform(0.15, 0.7, 30)), rng.uniform(-1, 1, 30)
    return lambda seconds: float(np.interp(seconds, moments, places))


def estimated(paths: dict[str, Path], method: str) -> sync.Estimate:
    files = {view: io.BytesIO(path.read_bytes()) for view, path in paths.items()}
    return sync.estimate(files, method, sync.MAX_OFFSET_SECONDS, sync.MIN_CONFIDENCE)


@pytest.mark.parametrize("method, frames", [("sound", 0.3), ("motion", 1.0)])
def test_known_offsets_are_found(tmp_path, method, frames):
    begins = {"A": 0.4, "B": 0.0, "C": 0.75}
    clap = 2.2 if method == "sound" else None
    paths = {
        view: write_take(tmp_path / f"t_cam{view}.mp4", begin, 6, wandering(1), clap, seed)
        for seed, (view, begin) in enumerate(begins.items())
    }
    found = estimated(paths, "auto")
    assert found.method == method and not found.problems
    assert min(found.confidence.values()) >= sync.MIN_CONFIDENCE
    for view, begin in begins.items():
        assert abs(found.seconds[view] - (begin - begins["A"])) * 30 <= frames, view


def test_sound_that_was_lost_before_the_clap_does_not_shift_it(tmp_path):
    path_of_light, paths = wandering(seed=3), {}
    for seed, (view, begin, silent) in enumerate([("A", 0.4, (0, 0)), ("B", 0.0, (0.5, 1.1))]):
        path = tmp_path / f"t_cam{view}.mkv"
        paths[view] = write_take(path, begin, 3.0, path_of_light, clap=1.9, seed=seed, silent=silent)
    found = estimated(paths, "sound")
    assert found.seconds["B"] - found.seconds["A"] == pytest.approx(-0.4, abs=0.3 / 30)


def test_an_offset_that_the_videos_do_not_show_is_not_guessed(tmp_path, capsys):
    write_take(tmp_path / "t_camA.mp4", 0, 4, wandering(1), None, 0)
    write_take(tmp_path / "t_camB.mp4", 0, 4, wandering(2), None, 1)  # films another movement
    (tmp_path / "t_camC.mp4").write_bytes(b"no video")
    output = tmp_path / "out" / "offsets.csv"
    output.parent.mkdir()
    assert sync.main([f"--input={tmp_path}", f"--output={output}", "--workers=1"]) == ExitCode.PARTLY
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["take"], row["view"], row["seconds"]) for row in rows] == [("t", view, "") for view in "ABC"]
    assert (output.parent / "offsets_plots" / "t.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "1 take of 3 views: " in said and "t_camC.mp4: not a readable video" in said
    assert f"t_camB.mp4: confidence {rows[1]['confidence']}, below 0.7: not guessed" in said, "with the table's digits"
    again = [f"--input={tmp_path}", f"--output={output}", "--workers=1", "--min_confidence=0"]
    by_hand = "take,view,seconds\nt,A,0\nt,B,1.5\n"
    output.write_text(by_hand)
    assert sync.main(again) == ExitCode.REFUSED and output.read_text() == by_hand
    assert "set by hand" in capsys.readouterr().err
    assert sync.main([*again, "--overwrite"]) == ExitCode.PARTLY
    with open(output, newline="") as file:
        assert [bool(row["seconds"]) for row in csv.DictReader(file)] == [True, True, False], "nothing to be sure of"


def test_a_table_gets_its_folder_though_nothing_can_be_read(tmp_path):
    (tmp_path / "t_camA.mp4").write_bytes(b"no video")
    output = tmp_path / "new" / "offsets.csv"
    assert sync.main([f"--input={tmp_path}", f"--output={output}", "--workers=1"]) == ExitCode.PARTLY
    assert output.exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--max_offset=inf", "--max_offset above 0 and finite"),
        ("--frames_fps=0", "--frames_fps=0 is not above 0"),
        ("--frames_fps=nan", "--frames_fps=nan is not above 0"),
    ],
)
def test_a_number_without_meaning_is_refused(tmp_path, capsys, option, message):
    with pytest.raises(SystemExit, match=str(int(ExitCode.REFUSED))):
        sync.main([f"--input={tmp_path}", f"--output={tmp_path / 'offsets.csv'}", option])
    assert message in capsys.readouterr().err


def test_an_offset_that_rounds_to_zero_has_no_sign(tmp_path, monkeypatch):
    videos = [Video(path=f"t_cam{view}.mp4", take="t", view=view) for view in "AB"]
    for video in videos:
        (tmp_path / video.path).touch()
    found = sync.Estimate(
        method="", seconds={"A": 0.0, "B": -1e-9}, confidence={"A": 1.0, "B": 1.0}, curves={}, problems={}
    )
    monkeypatch.setattr(sync, "estimate", lambda *_: found)
    rows, _ = sync._take(
        videos, sync.make_parser().parse_args([f"--input={tmp_path}", f"--output={tmp_path / 'o.csv'}"])
    )
    assert [row[2] for row in rows] == ["0.0000", "0.0000"]


def test_names_are_no_formulas_in_the_plot(tmp_path):
    curves = {view: sync.Curve(first=0, values=np.arange(9.0)) for view in ("A", "$1_$")}
    numbers = dict.fromkeys(curves, 0.0)
    found = sync.Estimate(method="motion", seconds=numbers, confidence=numbers, curves=curves, problems={})
    sync.plot(found, "cost $5_$", 0.5, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000


def test_a_repeated_movement_is_not_sure():
    steps = np.arange(600)
    curve = sync.Curve(first=0, values=np.sqrt(2) * np.sin(2 * np.pi * steps / 60))
    _, confidence = sync.place({"A": curve, "B": curve}, "motion", 3.0)
    assert max(confidence.values()) < sync.MIN_CONFIDENCE
