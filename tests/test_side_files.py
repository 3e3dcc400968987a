"""Damaged small files are reported, set aside by the run that writes them, and passed over by readers."""

import json
import os

import pytest

from mv2mae_jax.report import __main__ as report
from mv2mae_jax.report import collect
from mv2mae_jax.runs import metrics_file, side_files, starts_file
from tests import tiny

ROWS = [{"step": 2, "train/loss": 1.5}, {"step": 4, "train/loss": 1.25}, {"step": 6, "train/loss": 1.0}]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]
BAD_LINES = {
    "no JSON": b'{"step": 4, "train/loss": 1.2\xae}\n',
    "no text": b"\xff\xfe\x00\n",
    "empty": b"\n",
    "another kind": b"[4, 1.25]\n",
    "no step": b'{"stap": 4, "train/loss": 1.25}\n',
    "no number": b'{"step": 4, "train/loss": "1.25"}\n',
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_the_other_lines_are_read_and_kept(tmp_path, capsys, line):
    path, content = tmp_path / "history.jsonl", LINES[0] + line + LINES[2]
    path.write_bytes(content)
    for _ in range(2):  # reading alone changes nothing
        assert side_files.read_rows(path, side_files.is_numbers) == [ROWS[0], ROWS[2]]
        assert capsys.readouterr().out == f"{path} is damaged in line 2. Its other 2 line(s) are used.\n"
        assert path.read_bytes() == content
    assert side_files.read_rows(path, side_files.is_numbers, repair=True) == [ROWS[0], ROWS[2]]
    assert "line 2: renamed to history.jsonl.damaged, not deleted" in capsys.readouterr().out
    assert (tmp_path / "history.jsonl.damaged").read_bytes() == content
    assert path.read_bytes() == LINES[0] + LINES[2]
    assert side_files.read_rows(path, side_files.is_numbers, repair=True) == [ROWS[0], ROWS[2]]
    assert capsys.readouterr().out == "" and len(os.listdir(tmp_path)) == 2


def test_a_line_that_is_being_written_is_no_damage_to_a_reader(tmp_path, capsys):
    path = tmp_path / "history.jsonl"
    path.write_bytes(LINES[0] + LINES[1][:-9])
    assert side_files.read_rows(path, side_files.is_numbers) == ROWS[:1]
    assert capsys.readouterr().out == ""
    assert side_files.read_rows(path, side_files.is_numbers, repair=True) == ROWS[:1]
    assert "line 2: renamed" in capsys.readouterr().out and path.read_bytes() == LINES[0]


def test_a_run_that_is_resumed_by_other_code_says_so(tmp_path, monkeypatch):
    told = []
    for first_step, revision in ((0, "a1"), (4, "a1"), (4, "b2-dirty"), (8, "b2-dirty"), (0, "c3")):
        monkeypatch.setattr(metrics_file, "git_revision", lambda revision=revision: revision)
        told.append(starts_file.record_start(str(tmp_path), tiny.make_config(), {}, first_step))
    assert told == ["", "", "The code has changed since the last start: a1 -> b2-dirty.", "", ""]


def test_no_file_is_no_damage(tmp_path, capsys):
    assert side_files.read_rows(tmp_path / "history.jsonl", side_files.is_row, repair=True) == []
    assert side_files.read(tmp_path / "metrics.json", metrics_file.is_whole, repair=True) is None
    assert os.listdir(tmp_path) == [] and capsys.readouterr().out == ""


def test_a_start_is_recorded_after_a_line_that_was_cut_off(tmp_path):
    for first_step in (0, 2, 4):
        starts_file.record_start(str(tmp_path), tiny.make_config(), {"devices": "1"}, first_step)
        if first_step == 2:
            path = tmp_path / starts_file.STARTS_FILE
            path.write_bytes(path.read_bytes()[:-100])
    assert [start["first_step"] for start in starts_file.read_starts(str(tmp_path))] == [0, 4]


def test_rows_that_go_back_in_their_steps_are_told_and_put_in_order(tmp_path, capsys):
    metrics_file.write(str(tmp_path), tiny.make_config(), 6, {"eval/loss": 1.0}, {})
    (tmp_path / "history.jsonl").write_bytes(b"".join([LINES[2], LINES[0], LINES[0], LINES[1]]))
    run = collect.read(str(tmp_path))
    assert "history.jsonl goes back in its steps" in capsys.readouterr().out
    assert run.series("train/loss")[0].tolist() == [2, 2, 4, 6] and run.step == 6
    (tmp_path / "history.jsonl").write_bytes(b"".join([LINES[0], LINES[1], LINES[1]]))  # training's and evaluation's
    collect.read(str(tmp_path))
    assert capsys.readouterr().out == ""


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "another byte": lambda content: content.replace(b'"config"', b'"con\xffig"'),
    "another key": lambda content: content.replace(b'"metrics"', b'"metrocs"'),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_damaged_results_are_as_if_they_had_not_been_written(tmp_path, harm):
    metrics_file.write(str(tmp_path), tiny.make_config(), 6, {"eval/loss": 1.0}, {})
    path = tmp_path / metrics_file.RESULTS_FILE
    assert metrics_file.read(str(tmp_path), 6) == {"eval/loss": 1.0}
    path.write_bytes(harm(path.read_bytes()))
    assert metrics_file.read(str(tmp_path), 6) is None
    assert os.listdir(tmp_path) == ["metrics.json.damaged"]


@pytest.mark.parametrize("name", ["history.jsonl", "metrics.json", "starts.jsonl"])
@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_report_is_written_of_what_is_whole(tmp_path, capsys, name, harm):
    workdir = str(tmp_path)
    starts_file.record_start(workdir, tiny.make_config(), {"devices": "1"})
    metrics_file.write(workdir, tiny.make_config(), 6, {"eval/loss": 1.0}, {})
    (tmp_path / "history.jsonl").write_bytes(b"".join(LINES))
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(harm(before))
    assert report.main([f"--workdir={workdir}", "--samples=0", "--max_clips=0", "--progress=none"]) == 0
    told, run = capsys.readouterr().out, collect.read(workdir)
    assert "Report: " in told and run.config.task == "pretrain"
    assert (tmp_path / name).read_bytes() == harm(before), "a reader leaves the run's files alone"
    if name == "metrics.json":
        assert "metrics.json is damaged: passed over." in told and run.results is None
