"""Decoding on the device agrees with libjpeg, and its crops and motion energies agree with those of the JPEG path."""

import itertools
import json
import re
import types

import cv2
import jax
import numpy as np
import pytest

import run
from data import clips, pipeline, samples
from data.motion import motion_energy
from data.store import dct, jpeg
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import stored_frames, tubelets
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.topology import __main__ as topology
from tests import jpeg_file
from tests.test_pipeline import make_dataset
from tests.tiny import OVERRIDES, make_config, options


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(first.astype(float) - second).mean(), 1e-9))


def make_clip(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured background with noise and a textured square that moves; uint8[T, h, w, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (6, 8, 3)).astype(np.float32)
    room = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 4, (height, width, 3))
    square = rng.integers(20, 235, (height // 3, height // 3, 3))
    square = cv2.blur(square.astype(np.float32), (3, 3))
    frames = np.repeat(room[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left = 4 + 3 * index
        frame[height // 3 : height // 3 + len(square), left : left + len(square)] = square
    return np.clip(frames, 0, 255).astype(np.uint8)


def stored_form(frames: np.ndarray, boxes, quality: int = 90) -> dict[str, np.ndarray]:
    """A batch of one clip, in the form that data/pipeline.py gives it."""
    coefficients = np.stack([dct.unpack(dct.encode(frame, quality))[0] for frame in frames])
    return {
        "coefficients": coefficients[None],
        "steps": dct.steps(quality)[None],
        "box": np.array(boxes, np.int32)[None],
    }


decode_clips = jax.jit(stored_frames.clips, static_argnums=1)


def as_the_model_sees(batch):
    """The model's tokens and motion energies of a batch; the weights are left out, as they follow from the energies."""
    tokens = jax.jit(Pretrain.from_config(make_config()).tokenize)(batch)
    del tokens["weights"]
    return tokens


@pytest.mark.parametrize(("size", "quality"), [((48, 64), 75), ((40, 53), 50)])
def test_pixels_are_those_that_libjpeg_decodes_from_the_same_coefficients(size, quality):
    data = jpeg.encode(make_clip(1, *size)[0], quality)
    blocks, steps = jpeg_file.coefficients(data)
    planes = [block.transpose(2, 0, 3, 1).reshape(block.shape[0] * 8, -1) for block in blocks]  # (u i, v j)
    height, width = planes[0].shape
    image = np.zeros((3 * height // 2, width), np.int8)
    for plane, into in zip(planes, dct.planes(image), strict=True):
        assert np.abs(plane).max() <= 127
        into[:] = plane
    box = np.array([[0, 0, *size]], np.int32)
    stored = {"coefficients": image[None, None], "steps": steps[None], "box": box[None]}
    decoded = np.asarray(decode_clips(stored, size))[0, 0]
    wanted = jpeg.decode(data)
    assert psnr(decoded, wanted) > 50
    assert np.abs(decoded.astype(int) - wanted).max() <= 4  # as luma and chroma are rounded before the conversion


def test_coefficients_are_those_that_libjpeg_writes():
    """The quantisation steps are equal, and so are the coefficients, except for roundings near a half."""
    frame = make_clip(1, 48, 64)[0]
    blocks, steps = jpeg_file.coefficients(jpeg.encode(frame, 50))
    np.testing.assert_array_equal(np.maximum(steps, dct.MIN_STEP), dct.steps(50))
    assert steps.min() >= dct.MIN_STEP
    coefficients, size, quality = dct.unpack(dct.encode(frame, 50))
    assert (size, quality) == ((48, 64), 50)
    for block, plane in zip(blocks, dct.planes(coefficients), strict=True):
        difference = np.abs(block.transpose(2, 0, 3, 1).reshape(plane.shape) - plane)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_extreme_frames_fit_into_bytes():
    tiles = np.indices((32, 32)).sum(0) % 2 * 255
    stripes = np.indices((32, 32))[1] // 4 % 2 * 255
    for picture in (np.zeros((32, 32)), np.full((32, 32), 255), tiles, stripes, stripes.T):
        frame = np.repeat(picture[..., None], 3, axis=-1).astype(np.uint8)
        assert psnr(dct.decode(dct.encode(frame, 100)), frame) > 45


@pytest.mark.parametrize("size", [(40, 53), (64, 48), (30, 17)])
def test_host_and_device_decode_alike(size):
    frame = make_clip(1, *size)[0]
    on_device = np.asarray(decode_clips(stored_form(frame[None], [[0, 0, *size]]), size))[0, 0]
    assert psnr(on_device, dct.decode(dct.encode(frame, 90))) > 50


@pytest.mark.parametrize(
    ("scale", "least"), [((1.0, 1.0), 50), ((0.875, 0.75), 45), ((0.5, 0.5), 50), ((0.3, 0.3), 50), ((0.5, 0.42), 45)]
)
def test_crops_are_those_of_the_host(scale, least):
    """The host crops the same decoded frames. OpenCV approximates areas if one side shrinks and the other grows."""
    frames, crop_size = make_clip(3, 72, 100), (32, 32)
    draw = clips.CropDraw(scale=scale, offset=(0.7, 0.2))
    box = clips.crop_box(draw, (72, 100), crop_size)
    on_device = np.asarray(decode_clips(stored_form(frames, [box]), crop_size))[0]
    on_host = samples.crop_clip(np.stack([dct.decode(dct.encode(f, 90)) for f in frames]), draw, crop_size)
    assert on_device.shape == on_host.shape
    assert psnr(on_device, on_host) > least


def test_frames_of_one_colour_keep_it():
    """The mean of a block needs more bits than its variation. Every grey level is resized across block borders."""
    levels = np.arange(256, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (256, 32, 48, 3))
    decoded = np.asarray(decode_clips(stored_form(frames, [[1, 2, 29, 43]]), (24, 24)))[0]  # (256, 24, 24, 3)
    difference = decoded.astype(int) - levels[:, None, None, None]
    assert np.abs(difference).max() <= 1
    assert np.abs(difference.mean(axis=(1, 2, 3))).max() < 0.25


def test_matrix_products_have_types_that_cublas_supports():
    """cuBLAS has no product from float32 to bfloat16. XLA for GPUs has only cuBLAS if Triton is switched off."""
    text = decode_clips.lower(stored_form(make_clip(2, 48, 64), [(0, 0, 48, 64)]), (32, 32)).as_text()
    products = re.findall(r"dot_general .* : \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\) -> tensor<.*x(\w+)>", text)
    assert set(products) == {("bf16", "bf16", "bf16"), ("bf16", "bf16", "f32")}


def test_the_crops_of_a_clip_are_neighbours_in_the_batch():
    frames, crop_size = [make_clip(2, 40, 56, seed) for seed in (0, 1)], (16, 24)
    boxes = [[[0, 0, 16, 24], [8, 16, 16, 24], [20, 30, 20, 26]], [[3, 5, 30, 40], [1, 2, 16, 24], [24, 32, 16, 24]]]
    whole = [stored_form(*pair) for pair in zip(frames, boxes, strict=True)]
    together = {key: np.concatenate([one[key] for one in whole]) for key in whole[0]}
    decoded = np.asarray(decode_clips(together, crop_size))
    assert decoded.shape == (6, 2, *crop_size, 3)
    for index in range(6):
        clip, crop = divmod(index, 3)
        alone = decode_clips(stored_form(frames[clip], [boxes[clip][crop]]), crop_size)
        np.testing.assert_array_equal(decoded[index], alone[0])


def test_several_views_keep_their_boxes():
    frames = [make_clip(2, 40, 56, seed) for seed in (0, 1)]
    boxes = np.array([[[0, 0, 32, 32], [4, 20, 32, 32]], [[8, 8, 32, 32], [1, 1, 36, 36]]])  # (R, V, 4)
    views = [stored_form(f, boxes[:, v]) for v, f in enumerate(frames)]
    sample = {key: np.stack([view[key][0] for view in views])[None] for key in ("coefficients", "steps")}
    decoded = np.asarray(decode_clips(sample | {"box": boxes[None].astype(np.int32)}, (32, 32)))
    assert decoded.shape == (2, 2, 2, 32, 32, 3)
    for repeat in range(2):
        for view in range(2):
            alone = decode_clips(stored_form(frames[view], [boxes[repeat, view]]), (32, 32))
            np.testing.assert_array_equal(decoded[repeat, view], alone[0])


def test_a_smaller_frame_keeps_its_place_in_a_larger_image():
    frame, crop_size = make_clip(1, 40, 24)[0], (24, 24)
    stored = stored_form(frame[None], [[10, 0, 24, 24]])
    larger = np.full((1, 1, 3 * 64 // 2, 80), 99, np.int8)
    dct.put(stored["coefficients"][0, 0], larger[0, 0])
    alone, within = decode_clips(stored, crop_size), decode_clips(stored | {"coefficients": larger}, crop_size)
    difference = np.abs(np.asarray(alone, int) - np.asarray(within, int))
    # The sums have more terms, added in another order, so that a value near a half may be rounded differently.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def energies(video, tubelet_size):
    grid = tubelets.token_grid(video.shape[-4:-1], tubelet_size)
    return stored_frames.motion_energy(tubelets.patchify(video, tubelet_size), grid, tubelet_size)


@pytest.mark.parametrize("tubelet_size", [(2, 8, 8), (1, 16, 8), (4, 4, 4)])
def test_motion_energies_are_those_of_the_host(tubelet_size):
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 32, 16, 3), np.uint8)
    found = np.asarray(energies(video, tubelet_size))
    wanted = [[motion_energy(clip, tubelet_size) for clip in views] for views in video]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    still = np.asarray(energies(video[..., :1, :, :, :], (1, *tubelet_size[1:])))
    assert still.shape == (2, 3, found.shape[-1] * tubelet_size[0] // 4) and (still == 0).all()


# --- both codecs, from the shards to the model


def both(synthetic_set, synthetic_set_dct, **data):
    return [make_dataset(folder, **data) for folder in (synthetic_set, synthetic_set_dct)]


def first_batches(datasets, batches_of, count):
    """`count` batches of each data set as the model sees them: decoded, and with motion energies."""
    return [
        [as_the_model_sees(batch) for batch in itertools.islice(batches_of(dataset), count)] for dataset in datasets
    ]


def assert_alike(jpeg_batch, dct_batch):
    """Random draws are equal. Pixels and energies agree as far as two lossy codecs allow."""
    assert jpeg_batch.keys() == dct_batch.keys()
    for key in jpeg_batch:
        if jpeg_batch[key].dtype == np.uint8:
            assert jpeg_batch[key].shape == dct_batch[key].shape
            assert psnr(np.asarray(jpeg_batch[key]), np.asarray(dct_batch[key])) > 35
        elif key == "motion":
            assert np.corrcoef(jpeg_batch[key].ravel(), np.ravel(dct_batch[key]))[0, 1] > 0.95
        else:
            np.testing.assert_array_equal(jpeg_batch[key], dct_batch[key], err_msg=key)


@pytest.mark.parametrize("options", [{}, {"repeats": 4}, {"num_source_views": 2}, {"num_source_views": 0}])
def test_training_batches_differ_in_nothing_but_the_codec(synthetic_set, synthetic_set_dct, options):
    def batches_of(dataset):
        return pipeline.train_batches(dataset, seed=0, start_step=3, global_batch_size=8)

    for pair in zip(*first_batches(both(synthetic_set, synthetic_set_dct, **options), batches_of, 2), strict=True):
        assert_alike(*pair)


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_device_adds_the_energies_that_the_host_left_out(synthetic_set, repeats):
    def batches_of(dataset):
        return pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=8)

    datasets = [make_dataset(synthetic_set, repeats=repeats, motion_on=where) for where in ("host", "device")]
    assert ["motion" in next(batches_of(dataset)) for dataset in datasets] == [True, False]
    [(by_host,), (by_device,)] = first_batches(datasets, batches_of, 1)
    np.testing.assert_allclose(by_device.pop("motion"), by_host.pop("motion"), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, by_device, by_host)


def test_evaluation_batches_differ_in_nothing_but_the_codec(synthetic_set, synthetic_set_dct):
    def batches_of(dataset):
        return pipeline.eval_batches(dataset, seed=0, global_batch_size=4)

    for pair in zip(*first_batches(both(synthetic_set, synthetic_set_dct), batches_of, 3), strict=True):
        assert_alike(*pair)


@pytest.mark.parametrize("crops", [1, 3])
def test_clips_differ_in_nothing_but_the_codec(synthetic_set, synthetic_set_dct, crops):
    def batches_of(dataset):
        options = dict(global_batch_size=4, clips_per_view=2, crops_per_clip=crops)
        return pipeline.clip_batches(dataset.prepared, dataset.spec, np.array([5, 0, 7]), **options)

    for pair in zip(*first_batches(both(synthetic_set, synthetic_set_dct), batches_of, 10), strict=True):
        for batch in pair:
            del batch["motion"]  # few of these clips move, so that their energies are mostly noise
        assert_alike(*pair)


def test_workers_deliver_the_same_coefficients(synthetic_set_dct):
    def batches_of(num_workers):
        dataset = make_dataset(synthetic_set_dct, repeats=2)
        options = dict(seed=0, start_step=0, global_batch_size=8, num_workers=num_workers)
        return list(itertools.islice(pipeline.train_batches(dataset, **options), 3))

    for alone, by_workers in zip(batches_of(0), batches_of(2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, alone, by_workers)


@pytest.mark.parametrize("options", [{}, {"repeats": 2}, {"motion_on": "device"}])
def test_a_batch_has_the_shapes_that_are_compiled_ahead_of_time(synthetic_set, synthetic_set_dct, options):
    config = make_config(data=dict(num_frames=4, crop_size=(32, 32), **options))
    for dataset, frame_size in zip(both(synthetic_set, synthetic_set_dct, **options), (None, (40, 53)), strict=True):
        batch = next(pipeline.train_batches(dataset, seed=0, start_step=0, global_batch_size=8))
        assert ("motion" in batch) == ("motion" in topology.batch_shapes(config, frame_size))
        for name, expected in topology.batch_shapes(config, frame_size).items():
            found = jax.tree.map(lambda array: (array.shape, array.dtype), batch[name])
            assert found == jax.tree.map(lambda shape: (shape.shape, shape.dtype), expected)


def test_devices_decode_equal_numbers_of_clips():
    mesh = types.SimpleNamespace(size=8)
    sharding.check_decoding(mesh, 64, 4)
    with pytest.raises(ValueError, match=r"is 6 clips for 8 devices.*multiple of 32"):
        sharding.check_decoding(mesh, 24, 4)


@pytest.mark.slow
def test_a_run_reads_coefficients(synthetic_set_dct, tmp_path):
    """Training, evaluation with stand-in sources, pictures and probes of features, on a set of coefficients."""
    overrides = [*OVERRIDES, "eval.max_feature_takes=8", "data.repeats=2", "total_steps=4"]
    arguments = [f"--workdir={tmp_path}", f"--config.data.dir={synthetic_set_dct}", "--config=configs/pretrain_base.py"]
    run.main(options(*arguments, *(f"--config.{override}" for override in overrides)))
    measured = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert measured["eval/loss_self"] > 0 and measured["eval/knn_top_1"] >= 0
    assert list((tmp_path / "pictures").iterdir())
