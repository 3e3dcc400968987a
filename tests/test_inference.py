"""A run's encoder as a function and as a file, and the command that extracts features with it."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
import torch

from configs import pretrain_base
from data import clips, samples
from data.dataset import Dataset
from data.store import takes
from mv2mae_jax import config as configs
from mv2mae_jax import features, inference
from mv2mae_jax.features import __main__ as command
from mv2mae_jax.features import store
from mv2mae_jax.models import classifier, layers
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.state import TrainState
from tests import tiny, torch_runs
from tests.pages import fences
from tests.video_files import moving_square, write_timed, write_video

CLIP = (4, 32, 32)
GRID = (2, 4, 4)


def save_run(folder, config, params, **record):
    checkpointer = checkpoint.Checkpointer(folder)
    state = TrainState.create(params, optax.sgd(0.1), with_ema=False)
    checkpointer.save(3, state, {"config": config.to_json(), "git_revision": "", **record})
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(workdir, model, parameters) of a pre-training run."""
    config = tiny.make_config()
    task = Pretrain.from_config(config)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    return save_run(tmp_path_factory.mktemp("pretrained"), config, params), task.model, params


@pytest.fixture(scope="module")
def encoder(pretrained):
    return inference.load_encoder(pretrained[0])


def random_video(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *CLIP, 3), dtype=np.uint8)


def test_the_encoder_of_a_pretrained_run_is_the_models(pretrained, encoder):
    _, model, params = pretrained
    video = random_video(3)
    everything = np.broadcast_to(np.arange(32), (3, 32))
    expected = model.apply({"params": params}, video, everything, method="encode")
    np.testing.assert_allclose(encoder(video), expected, atol=1e-5)
    np.testing.assert_allclose(encoder(video[1]), expected[1], atol=1e-5)
    assert encoder(video).dtype == np.float32 and encoder.step == 3 and encoder.frame_stride == 4


def test_the_encoder_of_a_fine_tuned_run_gives_what_its_head_pools(tmp_path):
    config = tiny.make_finetune_config()
    model = classifier.from_config(config, 5)
    params = tiny.random_like(jax.eval_shape(model.init, jax.random.key(1), random_video(1))["params"])
    workdir = save_run(tmp_path / "run", config, params, class_names=list("abcde"))
    video = random_video(2)
    tokens = inference.load_encoder(workdir)(video)
    pooled = layers.LayerNorm().apply({"params": params["fc_norm"]}, tokens.mean(axis=1))
    logits = pooled @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, model.apply({"params": params}, video), atol=1e-4)


def test_a_missing_step_and_a_missing_run_are_refused(tmp_path, pretrained, capsys):
    with pytest.raises(ValueError, match="no checkpoint of step 7: it has steps 3"):
        inference.load_encoder(pretrained[0], 7)
    assert inference.main([f"--workdir={tmp_path}", f"--output={tmp_path}/x"]) == 2
    assert "missing or empty" in capsys.readouterr().err


def test_a_file_that_exists_is_not_replaced(pretrained, tmp_path, capsys):
    (tmp_path / "mine.npz").write_text("mine")
    assert inference.main([f"--workdir={pretrained[0]}", f"--output={tmp_path / 'mine.npz'}"]) == 2
    assert "mine.npz exists already. Remove it or" in capsys.readouterr().err
    assert (tmp_path / "mine.npz").read_text() == "mine"


def test_an_encoder_that_is_not_finite_is_refused_where_it_is_loaded(pretrained, tmp_path, capsys):
    params = jax.tree.map(np.array, pretrained[2])
    params["encoder"]["norm"]["scale"][1] = np.inf
    workdir, output = save_run(tmp_path / "run", tiny.make_config(), params), tmp_path / "x.jax_export"
    with pytest.raises(ValueError, match=r"Step 3 of .* 1 of the encoder's \d+ parameters are not finite.*norm/scale"):
        inference.load_encoder(workdir)
    assert inference.main([f"--workdir={workdir}", f"--output={output}"]) == 2
    assert "not finite" in capsys.readouterr().err and not output.exists()


def test_a_batch_of_no_clips_gives_no_tokens(encoder):
    found = encoder(random_video(3)[:0])
    assert found.shape == (0, 32, 24) and found.dtype == np.float32


def test_pixels_from_0_to_1_are_warned_of(encoder, recwarn):
    for largest in (0, 2, 255):
        encoder(np.full((1, *CLIP, 3), largest, np.uint8))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="largest value of the video is 1. Pixels are from 0 to 255"):
        encoder(random_video(1) // 255)


class Wrapped:
    """An object that NumPy reads by `__array__`, like a tensor of PyTorch."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    "form",
    [list, tuple, Wrapped, torch.from_numpy, jax.numpy.asarray]
    + [lambda video, kind=kind: [kind(clip) for clip in video] for kind in (Wrapped, torch.tensor, jax.numpy.asarray)],
)
def test_the_encoder_takes_what_numpy_reads_and_lists_of_it(encoder, form):
    video = random_video(3)
    np.testing.assert_array_equal(encoder(form(video)), encoder(video))
    assert encoder(form(video[0])).shape == (32, 24)  # a list may hold frames, too


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (np.zeros((1, *CLIP, 3), np.float32), r"got float32\[1, 4, 32, 32, 3\]. Pixels are from 0 to 255"),
        (np.zeros((1, 4, 16, 32, 3), np.uint8), r"got uint8\[1, 4, 16, 32, 3\]. Crop clips to this size."),
        (np.zeros((1, 4, 3, 32, 32), np.uint8), "Put the channels last."),
        (np.zeros((3, 4, 32, 32), np.uint8), "Put the channels last."),
        (np.zeros((32, 32, 3), np.uint8), r"got uint8\[32, 32, 3\]"),
        ([random_video(1)[0], random_video(1)[0][:2]], r"got a list of uint8\[2, .*\] and uint8\[4, "),
        ([], "got an empty list"),
        (["a.mp4"], "got str"),
        ("a.mp4", "got str"),
        (None, "got NoneType"),
        (torch.zeros(1, requires_grad=True), "NumPy cannot read Tensor"),
    ],
)
def test_what_the_encoder_does_not_take_is_refused_with_what_it_wants(encoder, video, said):
    with pytest.raises(ValueError, match=rf"uint8 clips of shape \(B, 4, 32, 32, 3\).*{said}"):
        encoder(video)


@pytest.mark.parametrize("layout", ["hf", "port"])
def test_an_exported_folder_gives_the_features_of_its_run(pretrained, encoder, synthetic_set, tmp_path, layout, capsys):
    assert torch_runs.run_command(pretrained[0], layout, tmp_path / "out") == 0
    exported, video = inference.load_encoder(tmp_path / "out"), random_video(2)
    np.testing.assert_allclose(exported(video), encoder(video), atol=1e-5)
    assert exported.step is None
    written = (tmp_path / "out/config.json").read_text()
    # A folder that transformers wrote has no frame_stride.
    others = {key: value for key, value in json.loads(written).items() if key != "frame_stride"}
    (tmp_path / "out/config.json").write_text(json.dumps(others))
    assert run_command(tmp_path / "out", synthetic_set, tmp_path / "f.npz") == 2
    assert "pass --frame_stride" in capsys.readouterr().err
    (tmp_path / "out/config.json").write_text(written)
    assert run_command(pretrained[0], synthetic_set, tmp_path / "run.npz") == 0
    assert run_command(tmp_path / "out", synthetic_set, tmp_path / "f.npz", "--protocol=xsub") == 0
    found = np.load(tmp_path / "f.npz")
    np.testing.assert_allclose(found["features"], np.load(tmp_path / "run.npz")["features"], atol=1e-5)
    assert inference.main([f"--workdir={tmp_path / 'out'}", f"--output={tmp_path}/x.jax_export"]) == 0
    assert run_command(tmp_path / "out", synthetic_set, tmp_path / "g.npz", "--step=3") == 2
    assert "has no steps" in capsys.readouterr().err


def test_the_encoder_of_an_exported_classifier_has_no_last_norm(tmp_path):
    config = tiny.make_finetune_config()
    model = classifier.from_config(config, 5)
    params = tiny.random_like(jax.eval_shape(model.init, jax.random.key(1), random_video(1))["params"])
    workdir = save_run(tmp_path / "run", config, params, class_names=list("abcde"))
    expected = inference.load_encoder(workdir)(random_video(2))
    for layout in ("hf", "port"):
        assert torch_runs.run_command(workdir, layout, tmp_path / layout) == 0
        np.testing.assert_allclose(inference.load_encoder(tmp_path / layout)(random_video(2)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "damaged or no JSON"),
        ("[]", "no table of settings"),
        ('{"model_type": "bert"}', "not that of a VideoMAE.*image_size"),
    ],
)
def test_a_folder_of_another_model_is_refused(tmp_path, config, said):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=said):
        inference.load_encoder(tmp_path)
    with pytest.raises(ValueError, match="is a file, which does not say the sizes"):
        inference.load_encoder(tmp_path / "config.json")


def test_the_exported_file_runs_without_this_package_at_any_batch_size(pretrained, encoder, tmp_path, capsys):
    assert inference.main([f"--workdir={pretrained[0]}", f"--output={tmp_path}/encoder.jax_export"]) == 0
    assert "uint8[B, 4, 32, 32, 3] RGB -> float32[B, 32, 24]" in capsys.readouterr().out
    videos = {f"batch_{batch}": random_video(batch) for batch in (1, 3)}
    np.savez(tmp_path / "in.npz", **videos)
    code = """
import sys, numpy, jax.export
encoder = jax.export.deserialize(bytearray(open(sys.argv[1] + "/encoder.jax_export", "rb").read()))
assert encoder.platforms == ("cpu", "cuda", "tpu")
inputs = numpy.load(sys.argv[1] + "/in.npz")
numpy.savez(sys.argv[1] + "/out.npz", **{name: encoder.call(inputs[name]) for name in inputs.files})
assert not {"mv2mae_jax", "flax", "data"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], check=True)
    found = np.load(tmp_path / "out.npz")
    for name, video in videos.items():
        np.testing.assert_allclose(found[name], encoder(video), atol=1e-5)


# --- The command -----------------------------------------------------------------------------------------------------


def run_command(workdir, source, output, *more):
    return command.main([f"--workdir={workdir}", f"--input={source}", f"--output={output}", "--batch_size=4", *more])


def central_clip(prepared, row):
    """The middle clip and the central crop, by hand: uint8[T, H, W, 3]."""
    length = int(prepared.views["num_frames"][row])
    start = (length - (3 * 4 + 1) + 1) // 2  # 4 frames at stride 4
    frames = prepared.read(row, np.minimum(start + 4 * np.arange(4), length - 1))
    side = min(frames.shape[1:3])
    top, left = (frames.shape[1] - side) // 2, round((frames.shape[2] - side) / 2)
    return samples.crop_clip(frames[:, top : top + side, left : left + side], clips.CropDraw(), (32, 32))


def test_features_of_a_prepared_set_are_those_of_its_central_clips(pretrained, encoder, synthetic_set, tmp_path):
    prepared = takes.open_prepared(synthetic_set)
    num_videos = len(prepared.views["take"])
    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz", "--pooling=tokens") == 0
    found = np.load(tmp_path / "f.npz")
    for name in ("take", "view", "label"):
        np.testing.assert_array_equal(found[name], prepared.views[name])
    assert found["features"].shape == (num_videos, 32, 24) and found["features"].dtype == np.float16
    for row in (0, 5, num_videos - 1):
        np.testing.assert_allclose(found["features"][row], encoder(central_clip(prepared, row)), atol=5e-3)
    about = json.loads(str(found["about"]))
    assert about["step"] == 3 and about["pooling"] == "tokens" and about["left_out"] == {}


def test_a_table_says_what_its_clips_are(pretrained, synthetic_set, tmp_path):
    prepared, num_clips = takes.open_prepared(synthetic_set), 2
    more = (f"--clips_per_video={num_clips}", "--protocol=xsub")
    for output in ("f.npz", "f.parquet"):
        assert run_command(pretrained[0], synthetic_set, tmp_path / output, *more) == 0
    found, table = np.load(tmp_path / "f.npz"), pq.read_table(tmp_path / "f.parquet")
    views = {name: np.repeat(column, num_clips) for name, column in prepared.views.items()}
    np.testing.assert_array_equal(found["subject"], views["subject"])
    np.testing.assert_array_equal(found["split"], np.repeat(prepared.splits("xsub"), num_clips))
    assert found["class_name"].tolist() == [prepared.class_names[label] for label in views["label"]]
    last = (views["num_frames"] - 1) / views["fps"]
    np.testing.assert_allclose(found["start_seconds"], np.where(found["clip"] == 0, 0, last - 12 / views["fps"]))
    np.testing.assert_allclose(found["end_seconds"] - found["start_seconds"], 12 / views["fps"], rtol=1e-5)
    assert set(found["frame_stride"]) == {4} and set(found["repeated_frames"]) == {0}
    for name in set(found.files) - {"features", "about"}:
        assert found[name].tolist() == table[name].to_pylist()
    about = json.loads(str(found["about"]))
    assert about["class_names"] == list(prepared.class_names) and about["protocol"] == "xsub"

    config = configs.load(pretrain_base.__file__, [*tiny.OVERRIDES, f"data.dir={synthetic_set}"])
    held_out = Dataset.from_config(config).held_out
    assert run_command(pretrained[0], synthetic_set, tmp_path / "own.npz") == 0
    own = np.load(tmp_path / "own.npz")
    assert set(own["take"][own["split"] == "held_out"]) == set(held_out.take_names)
    assert set(own["split"]) == {"train", "held_out"}, "the run trains on all other takes"
    assert run_command(pretrained[0], synthetic_set, tmp_path / "all.npz", "--protocol=all") == 0
    assert set(np.load(tmp_path / "all.npz")["split"]) == {"train"}, "pre-training's protocol without a test split"
    assert run_command(pretrained[0], synthetic_set, tmp_path / "x.npz", "--protocol=xsubject") == 2


@pytest.mark.parametrize("same", [True, False])
def test_the_split_of_another_set_than_the_runs_is_told(pretrained, synthetic_set, tmp_path, capsys, same):
    """A set that has grown since holds out other takes: some that the run was trained on."""
    digest = takes.open_prepared(synthetic_set).content_digest() if same else "of the set before it grew"
    run = save_run(tmp_path / "run", tiny.make_config(), pretrained[2], manifest_sha256=digest)
    assert run_command(run, synthetic_set, tmp_path / "f.npz") == 0
    assert ("what it calls held_out may have been trained on" in capsys.readouterr().err) == (not same)
    assert run_command(run, synthetic_set, tmp_path / "g.npz", "--protocol=xsub") == 0
    assert "held_out" not in capsys.readouterr().err


def test_features_that_are_not_finite_are_not_written(pretrained, synthetic_set, tmp_path, monkeypatch, capsys):
    encoder = inference.load_encoder(pretrained[0])
    broken = dataclasses.replace(encoder, params=jax.tree.map(lambda leaf: leaf * np.nan, encoder.params))
    monkeypatch.setattr(inference, "load_encoder", lambda *args, **kwargs: broken)
    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz") == 2
    assert f"are not finite: the encoder of {encoder.workdir} gives NaN" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


def test_short_videos_are_told(pretrained, tmp_path, capsys):
    for num_frames in (2, 4, 9, 13):
        write_video(tmp_path / f"videos/{num_frames:02}.mp4", moving_square(num_frames, 48, 64, seed=0), fps=10)
    assert run_command(pretrained[0], tmp_path / "videos", tmp_path / "f.npz") == 0
    said = capsys.readouterr().err
    assert "3 of 4 clips have a smaller stride" in said
    assert "1 of 4 clips repeat the last frame of a video with fewer than 4" in said
    found = np.load(tmp_path / "f.npz")
    assert found["frame_stride"].tolist() == [1, 1, 2, 4] and found["repeated_frames"].tolist() == [2, 0, 0, 0]
    np.testing.assert_allclose(found["end_seconds"], [0.1, 0.3, 0.7, 1.2])
    assert run_command(pretrained[0], tmp_path / "videos", tmp_path / "g.npz", "--frame_stride=1") == 0
    said = capsys.readouterr().err
    assert "smaller stride" not in said and "1 of 4 clips repeat" in said


def test_videos_of_another_frame_rate_are_told(pretrained, tmp_path, capsys):
    """The run's data has 10 to 12 frames per second, and a clip 4 frames at stride 4."""
    run = save_run(tmp_path / "run", tiny.make_config(), pretrained[2], frame_rates=(10.0, 12.0))
    assert torch_runs.run_command(run, "port", tmp_path / "port") == 0
    assert torch_runs.run_command(run, "hf", tmp_path / "hf") == 0
    for fps in (9, 14, 60):
        write_video(tmp_path / f"{fps}/a.mp4", moving_square(100, 48, 64, seed=0), fps=fps)
    far = "a.mp4 has 60 frames per second, the data of {} has 12. At stride 4 a clip spans 0.2 s, in training 1 s"
    nearest = ": --frame_stride=20 is nearest to that."
    for number, (workdir, fps, stride, said) in enumerate(
        (
            (run, 9, 4, ""),
            (run, 14, 4, ""),
            (run, 60, 20, ""),
            (run, 60, 4, far + nearest),
            (tmp_path / "port", 60, 4, far + nearest),
            (tmp_path / "hf", 60, 4, far + nearest),
            (pretrained[0], 60, 4, ""),  # of an older version, which kept no rates
        )
    ):
        capsys.readouterr()
        stride = f"--frame_stride={stride}"
        assert run_command(workdir, tmp_path / str(fps), tmp_path / f"{number}.npz", stride) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "per second" in line]
        assert told == [said.format(workdir)] * bool(said)


def test_times_are_those_of_the_frames(pretrained, tmp_path):
    """A frame is stamped by its number, in tenths of a second; between frames 6 and 7 the camera has stood still."""
    numbers = [*range(7), *range(17, 24)]
    (tmp_path / "videos").mkdir()
    write_timed(tmp_path / "videos/a.mp4", numbers, rate=10)
    write_timed(tmp_path / "videos/b.mp4", list(range(14)), rate=10)
    assert run_command(pretrained[0], tmp_path / "videos", tmp_path / "f.npz", "--frame_stride=2") == 0
    found = np.load(tmp_path / "f.npz")
    start = (14 - 7 + 1) // 2
    np.testing.assert_allclose(found["start_seconds"], [numbers[start] / 10, start / 10], rtol=1e-5)
    np.testing.assert_allclose(found["end_seconds"], [numbers[start + 6] / 10, (start + 6) / 10], rtol=1e-5)


def test_the_five_lines_to_scikit_learn(pretrained, synthetic_set, tmp_path, monkeypatch, capsys):
    (lines,) = [text for language, text, _ in fences("docs/after_pretraining.md") if "sklearn" in text]
    name = re.search(r'np\.load\("(.+)"\)', lines)[1]
    assert run_command(pretrained[0], synthetic_set, tmp_path / name, "--protocol=xsub") == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(lines, "docs/after_pretraining.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) <= 5


def test_video_files_give_the_features_of_the_prepared_set(pretrained, synthetic_set, tmp_path):
    """Two clips of each video file give the same numbers as data.prepare's set of the same size."""
    raw = synthetic_set.parent / "raw"
    more = ("--pooling=slices", "--clips_per_video=2")
    assert run_command(pretrained[0], synthetic_set, tmp_path / "prepared.npz", *more) == 0
    assert run_command(pretrained[0], raw, tmp_path / "files.npz", "--short_side=40", *more) == 0
    expected, found = np.load(tmp_path / "prepared.npz"), np.load(tmp_path / "files.npz")
    assert found["features"].shape == (2 * 72, 2 * 24)
    assert found["clip"].tolist() == [0, 1] * 72
    views = zip(expected["take"].tolist(), expected["view"].tolist(), expected["clip"].tolist(), strict=True)
    row_of = {(f"{take[:4]}{view}{take[4:]}_rgb", clip): row for row, (take, view, clip) in enumerate(views)}
    rows = [row_of[path.split(".")[0], clip] for path, clip in zip(found["path"].tolist(), found["clip"], strict=True)]
    np.testing.assert_allclose(found["features"], expected["features"][rows], atol=1e-6)
    assert np.abs(found["features"][0::2] - found["features"][1::2]).max() > 1e-3


def test_an_interrupted_extraction_goes_on(pretrained, synthetic_set, tmp_path, monkeypatch, capsys):
    assert run_command(pretrained[0], synthetic_set, tmp_path / "whole.npz") == 0
    add, added = store.Store.add, []

    def add_twice(self, part, *rest):
        if len(added) == 2:
            raise KeyboardInterrupt
        add(self, part, *rest)
        added.append(part)

    monkeypatch.setattr(store.Store, "add", add_twice)
    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz") == 130
    assert "The same command continues" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists() and added == [0, 1]
    damaged = tmp_path / "f.npz.parts" / "000001.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])

    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz", "--pooling=motion") == 2
    assert "differs in pooling" in capsys.readouterr().err
    monkeypatch.setattr(store.Store, "add", lambda self, part, *rest: (added.append(part), add(self, part, *rest)))
    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz") == 0
    assert added == [0, 1, 1, 2]  # 72 clips in parts of 8 batches of 4
    whole, continued = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "f.npz")
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], continued[name])
    assert not (tmp_path / "f.npz.parts").exists()
    assert run_command(pretrained[0], synthetic_set, tmp_path / "f.npz") == 2
    assert "exists already" in capsys.readouterr().err


def killed_at(call, number=0):
    """In place of `call`: it is interrupted the next time after `number` times."""
    counted = itertools.count()

    def killed(*args, **kwargs):
        if next(counted) == number:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    return killed


def test_parts_of_another_set_or_other_code_are_not_continued(pretrained, shifted_sets, tmp_path, monkeypatch, capsys):
    """The set is made anew at the same path, from the same videos, with another table of --sync."""
    path, output = tmp_path / "set", tmp_path / "f.npz"
    path.symlink_to(shifted_sets[0])
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "add", killed_at(store.Store.add, 1))
        assert run_command(pretrained[0], path, output) == 130
    with monkeypatch.context() as patch:
        patch.setattr(features, "code_digest", lambda: "")
        assert run_command(pretrained[0], path, output) == 2
    assert "differs in code." in capsys.readouterr().err
    path.unlink()
    path.symlink_to(shifted_sets[1])
    assert run_command(pretrained[0], path, output) == 2
    assert "differs in data." in capsys.readouterr().err
    path.unlink()
    path.symlink_to(shifted_sets[0])
    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", killed_at(store.shutil.rmtree))
        assert run_command(pretrained[0], path, output) == 130
    path.unlink()
    path.symlink_to(shifted_sets[1])
    assert run_command(pretrained[0], path, output) == 2  # the output is whole, but of the other set
    assert "exists already" in capsys.readouterr().err


def test_parts_of_other_videos_of_the_same_size_are_not_continued(pretrained, tmp_path, monkeypatch, capsys):
    video, output = tmp_path / "a.mp4", tmp_path / "f.npz"
    write_video(video, moving_square(20, 48, 64, seed=0), fps=10)
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "add", killed_at(store.Store.add))
        assert run_command(pretrained[0], video, output) == 130
    os.utime(video, ns=(0, 0))
    assert run_command(pretrained[0], video, output) == 2
    assert "differs in videos." in capsys.readouterr().err


def test_videos_that_change_while_they_are_read_are_told(pretrained, tmp_path, monkeypatch, capsys):
    video, output, compute = tmp_path / "a.mp4", tmp_path / "f.npz", command.compute
    write_video(video, moving_square(20, 48, 64, seed=0), fps=10)

    def compute_while(*arguments):
        os.utime(video, ns=(0, 0))
        return compute(*arguments)

    monkeypatch.setattr(command, "compute", compute_while)
    assert run_command(pretrained[0], video, output) == 2 and not output.exists()
    assert f"--input={video} has changed while features were extracted" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("left", ["all", "some"])
def test_an_extraction_killed_before_its_parts_were_removed_is_whole(
    pretrained, synthetic_set, tmp_path, monkeypatch, capsys, ending, left
):
    """The process is killed after the output was renamed and before all parts were removed."""
    output, parts = tmp_path / f"f.{ending}", tmp_path / f"f.{ending}.parts"

    def killed(folder, **options):
        if not output.exists():
            return  # the call at the beginning of an extraction
        if left == "some":
            (parts / "facts.json").unlink()
            (parts / "000000.npz").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", killed)
        assert run_command(pretrained[0], synthetic_set, output) == 130
    before = output.read_bytes()
    assert parts.exists()
    assert run_command(pretrained[0], synthetic_set, output, "--pooling=motion") == 2
    assert "exists already" in capsys.readouterr().err
    assert run_command(pretrained[0], synthetic_set, output) == 0
    assert "is whole" in capsys.readouterr().out
    assert output.read_bytes() == before and not parts.exists()


def test_damaged_videos_are_named_and_left_out(pretrained, synthetic_set, tmp_path, capsys):
    raw, folder = synthetic_set.parent / "raw", tmp_path / "videos"
    folder.mkdir()
    whole = sorted(raw.rglob("*_rgb.*"))[:2]
    for path in whole:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "a.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not looked at")
    for output in ("f.npz", "f.parquet"):
        assert run_command(pretrained[0], folder, tmp_path / output) == 3
        assert "left out: a.mp4: not a readable video" in capsys.readouterr().err
    arrays, table = np.load(tmp_path / "f.npz"), pq.read_table(tmp_path / "f.parquet")
    assert arrays["path"].tolist() == [path.name for path in whole] == table["path"].to_pylist()
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), arrays["features"])
    assert json.loads(table.schema.metadata[b"features_shape"]) == [24]
    assert "a.mp4" in json.loads(table.schema.metadata[b"about"])["left_out"]

    assert run_command(pretrained[0], folder / "a.mp4", tmp_path / "none.npz", "--pooling=slices") == 3
    assert np.load(tmp_path / "none.npz")["features"].shape == (0, 48)


def test_links_are_followed_and_other_files_told(pretrained, tmp_path, capsys):
    """The folder holds a video, a link to a folder with another, one to itself, and what is no video."""
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for path in (folder / "a.mp4", elsewhere / "b.mp4"):
        write_video(path, moving_square(20, 48, 64, seed=0), fps=10)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked" / "back").symlink_to(folder)
    assert run_command(pretrained[0], folder, tmp_path / "f.npz") == 0
    assert np.load(tmp_path / "f.npz")["path"].tolist() == ["a.mp4", "linked/b.mp4"]
    assert "passed over" not in capsys.readouterr().err
    for name in ("c.flv", "d.flv", "notes", ".hidden"):
        (folder / name).touch()
    (folder / "e.mp4").symlink_to(tmp_path / "gone")
    assert run_command(pretrained[0], folder, tmp_path / "g.npz") == 3
    said = capsys.readouterr().err
    assert "passed over, as no videos: 3 files (2 .flv, 1 without ending)" in said
    assert "left out: e.mp4: No such file or directory" in said
    (folder / "a.mp4").unlink()
    (folder / "e.mp4").unlink()
    (folder / "linked").unlink()
    assert run_command(pretrained[0], folder, tmp_path / "h.npz") == 2
    assert "no video is below it: nothing ends in .avi" in (said := capsys.readouterr().err) and "2 .flv" in said


def test_an_output_is_written_by_one_process_at_a_time(pretrained, synthetic_set, tmp_path, capsys):
    output = tmp_path / "f.npz"
    with store.Store(output=output, facts={}).locked():
        assert run_command(pretrained[0], synthetic_set, output) == 2
        said = capsys.readouterr().err
        assert f"--output={output} is in use by another extraction (process {os.getpid()} on" in said
        assert "Wait for it, stop it, or choose another --output." in said
    assert not list(tmp_path.iterdir())


def test_what_a_killed_extraction_left_of_its_output_is_removed(tmp_path):
    """Half an output may be gigabytes."""
    for name in (".f[1].npz.host-1.tmp", ".f1.npz.host-1.tmp"):
        (tmp_path / name).touch()
    store.Store(output=tmp_path / "f[1].npz", facts={}).begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f1.npz.host-1.tmp", "f[1].npz.parts"]


def test_what_does_not_fit_is_refused_before_any_work(pretrained, synthetic_set, tmp_path, capsys):
    for source, output, more, said in (
        (tmp_path, "f.npz", (), "no video is below it"),
        (tmp_path / "nowhere", "f.npz", (), "no such file or folder"),
        (synthetic_set, "f.csv", (), "must end in .npz or .parquet"),
        (synthetic_set, "f.npz", ("--clips_per_video=0",), "--clips_per_video=0: at least 1"),
    ):
        assert run_command(pretrained[0], source, tmp_path / output, *more) == 2
        assert said in capsys.readouterr().err
