"""The README's commands on a small scale: raw videos in, a pre-trained model and pictures out."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
REAL_VIDEOS = ROOT.parent / "shared" / "real_multiview" / "pose2sim_single"


def command(*arguments, returncode=0):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == returncode, result.stderr
    return result


def assert_is_a_finished_run(workdir: pathlib.Path, area: str):
    results = json.loads((workdir / "metrics.json").read_text())
    assert np.isfinite(list(results["metrics"].values())).all()
    assert f"{area}/loss_cross" in results["metrics"]
    history = [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]
    assert {"train/loss_self", "train/loss_cross", "train/loss_mean_prediction", "train/ess_fraction"} <= history[
        0
    ].keys()
    assert list((workdir / "pictures").glob("*.png")) and list((workdir / "pictures").glob("*.gif"))
    assert list((workdir / "tensorboard").glob("events*"))
    assert list((workdir / "checkpoints").iterdir())
    assert (workdir / "starts.jsonl").read_text().count("\n") == 1


@pytest.mark.long
def test_generated_videos_to_pictures(tmp_path):
    raw, prepared, workdir = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    command("-m", "data.synthetic", f"--output={raw}", "--takes=8", "--resolution=64x48", "--workers=2")
    assert len(list(raw.glob("S???C00?P???R00?A???_rgb.avi"))) == 24
    command("-m", "data.prepare", "--dataset=synthetic", f"--input={raw}", f"--output={prepared}", "--short_side=40")
    shrunk = [f"--config.{key}" for key in (f"data.dir={prepared}", "total_steps=3", "data.crop_size=(32,32)")]
    shrunk += ["--config.eval.num_pictures=1", "--config.eval.batch_size=8", "--config.eval.clips_per_element=1"]
    shrunk += ["--config.data.num_workers=1", "--config.eval.max_feature_takes=6"]
    shrunk += ["--config.model.depth=1", "--config.model.decoder_depth=1"]  # compiling takes most of the time
    started = command("run.py", "--config=configs/demo.py", f"--workdir={workdir}", *shrunk)
    assert_is_a_finished_run(workdir, "eval")
    measured = json.loads((workdir / "metrics.json").read_text())["metrics"]
    assert 0 <= measured["eval/knn_top_1"] <= 1 <= measured["eval/retrieval_mean_rank"]
    assert f"Report: {workdir}/report.html" in started.stdout and (workdir / "report.html").exists()
    for words in ("devices", "parameters", "visible", "held out", "epochs", "learning rate", "stated by the paper"):
        assert words in started.stdout


@pytest.mark.long
def test_a_pretrained_run_is_fine_tuned_and_probed(synthetic_set, tmp_path):
    """The commands in the docstrings of the demo's downstream configs, on a small scale."""
    clips = [f"--config.{key}" for key in (f"data.dir={synthetic_set}", "data.crop_size=(32,32)")]
    clips += ["--config.log.report=False"]
    shrunk = [*clips, "--config.eval.batch_size=16", "--config.eval.num_pictures=0", "--config.total_steps=2"]
    command("run.py", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", *shrunk)

    clips += [f"--config.init_from={tmp_path / 'run'}"]
    command(
        "run.py",
        "--config=configs/finetune_demo.py",
        f"--workdir={tmp_path / 'tuned'}",
        *clips,
        "--config.total_steps=2",
    )
    tuned = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert 0 <= tuned["metrics"]["test/top_1"] <= 1 and tuned["protocol"] == "xsub"
    assert np.sum(tuned["confusion_matrix"]) == 36, "12 takes of the second subject from three cameras"

    command(
        "run.py", "--config=configs/probe.py", f"--workdir={tmp_path / 'probed'}", *clips, "--config.probe.epochs=1"
    )
    probed = json.loads((tmp_path / "probed" / "metrics.json").read_text())["metrics"]
    assert {"knn/top_1", "linear/top_1", "attentive/top_1", "retrieval/recall_1"} <= probed.keys()


@pytest.mark.long
@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason=f"the real multi-view videos are not in {REAL_VIDEOS}")
def test_real_videos_of_four_cameras_to_pictures(tmp_path):
    """The commands of "Your own videos" in the README on one take: portrait, 1080p, two codecs, 60 frames a second."""
    prepared, workdir = tmp_path / "prepared", tmp_path / "run"
    pattern = "--pattern={take}_cam{view}.mp4"
    command("-m", "data.prepare", "--dataset=folder", f"--input={REAL_VIDEOS}", pattern, f"--output={prepared}")
    overrides = tiny.overrides(f"data.dir={prepared}", *tiny.OVERRIDES, "data.frame_stride=8")
    started = command("run.py", "--config=configs/folder.py", f"--workdir={workdir}", *overrides)
    assert "1 takes, 4 (take, target view) elements" in started.stdout
    assert_is_a_finished_run(workdir, "eval_on_training_takes")


def test_a_missing_data_set_names_the_command_that_makes_it(tmp_path):
    arguments = ("--config=configs/demo.py", f"--workdir={tmp_path}", f"--config.data.dir={tmp_path / 'nothing'}")
    refused = command("run.py", *arguments, returncode=2)
    assert "python -m data.prepare" in refused.stderr and "Traceback" not in refused.stderr
