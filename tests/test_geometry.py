"""Read-outs of 3D pose: the true poses of clips, and predictions from planted and from random features."""

import dataclasses

import jax
import numpy as np
import pytest

from data import clips
from data.prepare.__main__ import main as prepare
from data.store import takes
from data.synthetic.__main__ import main as synthesise
from mv2mae_jax import features
from mv2mae_jax.evaluation import geometry, probes, regression
from mv2mae_jax.features import Features
from mv2mae_jax.models import frozen_encoder, variants
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.report import poses

SPEC = clips.ClipSpec(num_frames=8, frame_stride=2, crop_size=(32, 32), tubelet_size=(2, 8, 8))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> takes.Prepared:
    folder = tmp_path_factory.mktemp("truth")
    style = ["--rooms=plain", "--actor_share=0.8", "--facing_spread=45", "--fps=10", "--resolution=40x40"]
    size = ["--takes=24", "--setups=1", "--subjects=4", "--workers=1", "--progress=none"]
    assert synthesise([f"--output={folder}/raw", *size, *style]) == 0
    options = ["--short_side=32", "--workers=1", "--progress=none"]
    assert prepare(["--dataset=synthetic", f"--input={folder}/raw", f"--output={folder}/prepared", *options]) == 0
    return takes.open_prepared(folder / "prepared")


@pytest.fixture(scope="module")
def model():
    return variants.build(
        "Ti",
        clip_size=(8, 32, 32),
        tubelet_size=(2, 8, 8),
        width=24,
        depth=1,
        num_heads=2,
        compute=Compute(scan_layers=False),
    )


def test_targets_are_those_of_the_frames_that_a_clip_shows(prepared):
    rows = np.array([0, 5])
    targets = geometry.targets(prepared, SPEC, rows, clips_per_view=2)
    assert targets.camera.shape == (4, 4, 3 * (len(prepared.truth.joint_names) - 1))
    length = int(prepared.views["num_frames"][5])
    frames = clips.frame_indices(length, 8, 2, clips.spread_positions(2)[1])  # the last clip of row 5
    joints = prepared.truth.in_camera(np.array([5]), frames[None])[0]  # (T, J, 3)
    root = prepared.truth.root
    slice_of = np.delete(joints[2:4] - joints[2:4, [root]], root, axis=1).mean(axis=0)  # its second slice
    np.testing.assert_allclose(targets.camera[3, 1], slice_of.reshape(-1), atol=1e-6)
    # The second slice's velocity: central differences at the clip's frames 2 and 3, whose neighbours are 0.4 s apart.
    relative = np.delete(joints - joints[:, [root]], root, axis=1)
    speed = ((relative[3] - relative[1]) + (relative[4] - relative[2])) / 2 / 0.4
    np.testing.assert_allclose(targets.velocity[3, 1], speed.reshape(-1), atol=1e-4)


def test_a_pose_in_the_persons_own_frame_does_not_depend_on_the_camera(prepared):
    rows = np.flatnonzero(prepared.views["take"] == prepared.views["take"][0])
    targets = geometry.targets(prepared, SPEC, rows)
    np.testing.assert_allclose(targets.actor[0], targets.actor[1], atol=1e-6)
    assert np.abs(targets.camera[0] - targets.camera[1]).max() > 0.1
    lengths = [np.linalg.norm(part.reshape(len(rows), 4, -1, 3), axis=-1) for part in (targets.actor, targets.camera)]
    # Each frame is rotated, which keeps lengths; the mean over a slice's two frames comes after it.
    np.testing.assert_allclose(*lengths, atol=2e-3)


def planted(prepared, model, rows, content):
    """Features whose tokens hold `content` float[M, nt, K] in the channels of the first token of each slice."""
    nt, height, width = model.grid
    tokens = np.zeros((len(rows), nt, height * width, content.shape[-1]), np.float16)
    tokens[:, :, 0] = content
    return Features(
        row=rows,
        label=prepared.views["label"][rows],
        slices=tokens.mean(axis=2),
        motion=tokens.mean(axis=2),
        tokens=tokens.reshape(len(rows), nt * height * width, -1),
    )


def test_planted_poses_are_read_and_noise_is_not(prepared, model):
    rows = np.arange(len(prepared.views["take"]))
    train, test = rows[: len(rows) * 2 // 3], rows[len(rows) * 2 // 3 :]
    true = [geometry.targets(prepared, SPEC, part) for part in (train, test)]
    group = prepared.views["take"][train]
    known = [planted(prepared, model, part, targets.camera) for part, targets in zip((train, test), true, strict=True)]
    found, told = geometry.ReadOuts(model, *known, *true, group=group).pose()
    assert found["r2"] > 0.99 and found["error_cm"] < 2
    np.testing.assert_allclose(told, true[1].camera, atol=0.15)
    assert found["mean_error_cm"] > 5
    rng = np.random.default_rng(0)
    noise = [planted(prepared, model, part, rng.normal(size=(len(part), 4, 24))) for part in (train, test)]
    found, _ = geometry.ReadOuts(model, *noise, *true, group=group).pose()
    assert found["r2"] < 0.1 and found["actor_r2"] < 0.1
    assert found["error_cm"] > 0.9 * found["mean_error_cm"]


def test_velocities_are_read_from_planted_poses(prepared, model):
    """A slice alone does not tell them. The difference of its neighbours does, except at a clip's ends."""
    rows = np.arange(len(prepared.views["take"]))
    train, test = rows[::2], rows[1::2]
    true = [geometry.targets(prepared, SPEC, part) for part in (train, test)]
    known = [planted(prepared, model, p, targets.camera) for p, targets in zip((train, test), true, strict=True)]
    found = geometry.ReadOuts(model, *known, *true, group=prepared.views["take"][train]).motion()
    assert found["r2"] > 0.5 and found.keys() == {"r2", "error_cm_per_second"}
    shuffled = [np.random.default_rng(0).permutation(part.tokens) for part in known]
    known = [dataclasses.replace(part, tokens=tokens) for part, tokens in zip(known, shuffled, strict=True)]
    assert geometry.ReadOuts(model, *known, *true, group=prepared.views["take"][train]).motion()["r2"] < 0.1


def test_the_share_for_validation_is_the_one_asked_for(prepared, model, monkeypatch):
    asked = []
    split = probes.split_groups
    monkeypatch.setattr(probes, "split_groups", lambda *args: asked.append(args[1]) or split(*args))
    rows = np.arange(len(prepared.views["take"]))
    true = geometry.targets(prepared, SPEC, rows)
    known = planted(prepared, model, rows, true.camera)
    group = prepared.views["take"]
    read_outs = geometry.ReadOuts(model, known, known, true, true, group=group, validation_fraction=0.4)
    read_outs.pose(), read_outs.motion()
    assert asked == [0.4, 0.4]


def test_a_whole_clip_tells_where_a_token_is_and_its_mean_does_not(prepared, model):
    """In each clip one token is set, and its place is the clip's class."""
    rows = np.arange(64)
    place = rows % 16
    nt, height, width = model.grid
    tokens = np.zeros((len(rows), nt, height * width, 1), np.float16)
    tokens[rows, place % nt, place // nt] = 1
    slices = tokens.mean(axis=2)
    given = Features(row=rows, label=place, slices=slices, motion=slices, tokens=tokens.reshape(len(rows), -1, 1))
    assert len(np.unique(given.pooled("mean"))) == 1
    x = geometry.whole_clips(given, model)
    assert x.shape == (64, nt * height * width)
    (found,) = regression.ridges(x[:48], [np.eye(16)[place[:48]]], x[48:], group=rows[:48], penalties=(0.1,))
    np.testing.assert_array_equal(found.prediction.argmax(axis=1), place[48:])


def test_attention_reads_planted_velocities(prepared, model):
    rows = np.arange(len(prepared.views["take"]))
    train, test = rows[::2], rows[1::2]
    true = [geometry.targets(prepared, SPEC, part) for part in (train, test)]
    known = [planted(prepared, model, p, targets.velocity) for p, targets in zip((train, test), true, strict=True)]
    attention = {"learning_rates": (1e-2,), "weight_decays": (0.0,), "epochs": 60, "batch_size": 32}
    found = geometry.ReadOuts(model, *known, *true, group=prepared.views["take"][train], attention=attention).motion()
    assert found["attentive_r2"] > 0.5


def test_cells_average_a_finer_grid():
    tokens = np.random.default_rng(0).normal(size=(3, 6 * 8, 5)).astype(np.float32)
    found = geometry.cells(tokens, (1, 6, 8)).reshape(3, 4, 4, 5)
    plane = tokens.reshape(3, 6, 8, 5)
    np.testing.assert_allclose(found[:, 1, 3], plane[:, 1:3, 6:8].mean(axis=(1, 2)), atol=1e-6)  # rows 1 to 2 of six
    assert geometry.cells(tokens, (1, 2, 24)).shape == (3, 2 * 4 * 5)


def test_a_long_clip_is_averaged_to_four_slices(prepared):
    model = frozen_encoder.RawPixels(clip_size=(12, 8, 8), tubelet_size=(2, 8, 8))
    given = planted(prepared, model, np.arange(2), np.arange(12.0).reshape(2, 6, 1))
    means = [[0, 1.5, 3, 4.5], [6, 7.5, 9, 10.5]]  # slices 0, 1 to 2, 3, 4 to 5 of six
    np.testing.assert_allclose(geometry.whole_clips(given, model), means)


def test_raw_pixels_stand_in_for_a_model(prepared):
    pixels = frozen_encoder.RawPixels(clip_size=(8, 32, 32), tubelet_size=(2, 8, 8))
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    tokens = np.asarray(frozen_encoder.encode(pixels, {}, pixels.patchify(video)))
    assert tokens.shape == (2, pixels.num_tokens, pixels.width)
    np.testing.assert_allclose(tokens[1, 5], video[1, :2, 8:16, 8:16].reshape(-1) / 255, atol=1e-6)
    assert pixels.grid == (4, 4, 4)


def test_people_who_stand_still_are_refused(prepared, model):
    rows = np.arange(len(prepared.views["take"]))
    true = geometry.targets(prepared, SPEC, rows)
    still = dataclasses.replace(true, velocity=np.zeros_like(true.velocity))
    known, group = planted(prepared, model, rows, true.camera), prepared.views["take"]
    with pytest.raises(ValueError, match=r"R\^2 of motion is not defined: .* in all \d+ tested slices.*'motion' out"):
        geometry.ReadOuts(model, known, known, still, still, group=group).motion()
    one_pose = dataclasses.replace(true, camera=np.ones_like(true.camera))
    with pytest.raises(ValueError, match=r"R\^2 of poses is not defined"):
        geometry.ReadOuts(model, known, known, true, one_pose, group=group).pose()
    assert "validation_r2" not in geometry.ReadOuts(model, known, known, one_pose, true, group=group).pose()[0]


def test_a_set_without_truth_is_refused(prepared):
    without = dataclasses.replace(prepared, truth=None)
    with pytest.raises(ValueError, match="does not know where the joints are"):
        geometry.targets(without, SPEC, np.array([0]))


def test_a_random_encoder_tells_some_of_the_pose(prepared, model):
    """The probe's read-out, on features that a random encoder extracts."""
    from data import pipeline
    from mv2mae_jax.distributed import sharding

    params = frozen_encoder.init_encoder(model, jax.random.key(0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows = np.arange(len(prepared.views["take"]))
    train, test = rows[:48], rows[48:]

    def extracted(part):
        tokens = np.empty((len(part), model.num_tokens, model.width), np.float16)
        batches = pipeline.clip_batches(prepared, SPEC, part, global_batch_size=24)
        return features.extract(model, params, batches, mesh, tokens=tokens)

    true = [geometry.targets(prepared, SPEC, part) for part in (train, test)]
    group = prepared.views["take"][train]
    found, _ = geometry.ReadOuts(model, extracted(train), extracted(test), *true, group=group).pose()
    assert 0 < found["r2"] < 1 and found["error_cm"] < found["mean_error_cm"]


def test_a_skeleton_is_drawn_where_the_camera_sees_the_joints(prepared):
    row, spec = 4, dataclasses.replace(SPEC, tubelet_size=(1, 8, 8))  # a slice per frame
    told = geometry.targets(prepared, spec, np.array([row])).camera[0]
    video = np.zeros((8, 32, 32, 3), np.uint8)
    drawn = poses.draw(prepared, spec, row, video, told, 8)
    factor = drawn.shape[1] // 32
    frames = clips.frame_indices(int(prepared.views["num_frames"][row]), 8, 2, 0.5)
    pixels = prepared.truth.in_pixels(np.array([row]), frames[None])[0]  # (T, J, 2), the crop is the whole frame
    orange = (drawn == poses.TOLD).all(axis=-1)
    for picture, joints in zip(orange, pixels, strict=True):
        for x, y in np.round((joints + 0.5) * factor - 0.5).astype(int):
            if 3 <= x < 32 * factor - 3 and 3 <= y < 32 * factor - 3:
                assert picture[y - 2 : y + 3, x - 2 : x + 3].any()
    # Right predictions are drawn over the true joints, wrong ones beside them.
    wrong = poses.draw(prepared, spec, row, video, told + 0.5, 8)
    assert (wrong == poses.TRUE).all(axis=-1).sum() > 5 * (drawn == poses.TRUE).all(axis=-1).sum()
