"""The exported processor chooses the frames and crops of training, for videos of any shape."""

import functools
import json
import shutil
from fractions import Fraction

import cv2
import jax
import numpy as np
import pytest
import torch
import transformers

from data import clips, samples
from data.recordings import raw_video
from mv2mae_jax import inference
from mv2mae_jax.models import classifier, frozen_encoder, layers
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.torch_export import exporter, mv2mae_processor, trained_run
from mv2mae_jax.torch_weights import names
from tests import tiny, torch_runs, video_files
from tests.torch_runs import CLASS_NAMES

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

STRIDE = 3


pytestmark = pytest.mark.usefixtures("hub_modules")


@pytest.fixture(scope="module", params=[(32, 32), (64, 96), (96, 64)], ids=str)
def exported(request, tmp_path_factory):
    """(run, Hugging Face folder) of a pre-trained run with random weights and this crop size."""
    config = tiny.make_config()
    config.data.crop_size, config.data.frame_stride = request.param, STRIDE
    task = Pretrain.from_config(config)
    params = layers.unstack_blocks(tiny.random_like(jax.eval_shape(task.init, jax.random.key(0))))
    return export(config, trained_run.for_comparison(task.model), params, (), tmp_path_factory.mktemp("hf"))


def export(config, model, params, class_names, folder):
    run = trained_run.TrainedRun(
        workdir="run",
        step=7,
        config=config,
        git_revision="none",
        metrics={},
        model=model,
        params=params,
        class_names=class_names,
    )
    folder.mkdir(exist_ok=True)
    exporter.write_hugging_face(run, names.to_videomae(run.params, model.tubelet_size), folder)
    return run, folder


def blobs(height, width, num_frames=24):
    """uint8[N, h, w, 3]: coarse colours that move, so that frames and places differ."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([np.roll(picture, (3 * i, 5 * i), axis=(0, 1)) for i in range(num_frames)])


def own_clip(video, run):
    """The middle clip's central crop as the evaluations cut it: uint8[T, H, W, 3]."""
    frames, *crop_size = run.model.clip_size
    chosen = clips.frame_indices(len(video), frames, STRIDE, 0.5)
    return samples.crop_clip(video[chosen], clips.CropDraw(), tuple(crop_size))


def centred_cosine(first, second):
    first, second = (x - x.mean(0) for x in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    return (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (170, 302), (97, 97)], ids=str)
def test_raw_frames_give_the_features_of_this_project(exported, size):
    run, folder = exported
    video = blobs(*size)
    encode = torch_runs.jit(lambda params, video: frozen_encoder.encode(run.model, params, run.model.patchify(video)))
    expected = encode(run.params["encoder"], own_clip(video, run)[None])[0]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    theirs = transformers.VideoMAEModel.from_pretrained(folder)

    def theirs_of(processed):
        with torch.no_grad():
            return theirs(processed["pixel_values"]).last_hidden_state[0].numpy()

    chosen = [video[i] for i in clips.frame_indices(24, 4, STRIDE, 0.5)]
    for inputs in (
        processor(chosen, return_tensors="pt"),
        processor(video, do_sample_frames=True, return_tensors="pt"),
    ):
        assert centred_cosine(theirs_of(inputs), expected) >= 0.99
    wrong = processor(list(video[:4]), return_tensors="pt")  # other frames
    assert centred_cosine(theirs_of(wrong), expected) < 0.9

    # transformers' own class shows a part of training's crop, without black bars or distortion.
    plain = transformers.VideoMAEImageProcessorPil.from_pretrained(folder)
    white = plain([np.full((*size, 3), 255, np.uint8)] * 4, return_tensors="np")["pixel_values"]
    assert white.shape == (1, 4, 3, *run.model.clip_size[1:]) and white.min() > 2
    if run.model.clip_size[1] == run.model.clip_size[2]:
        assert centred_cosine(theirs_of(plain(chosen, return_tensors="pt")), expected) >= 0.99


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 13, 14, 47])
def test_frames_and_boxes_are_those_of_training(length):
    for num_frames, stride in ((1, 5), (4, 1), (4, 4)):
        found = mv2mae_processor.frame_indices(length, num_frames, stride)
        assert found == clips.frame_indices(length, num_frames, stride, 0.5).tolist()
    for crop_size in ((32, 32), (64, 96), (96, 64)):
        frame_size = (length + 10, 3 * length + 5)
        box = clips.crop_box(clips.CropDraw(), frame_size, crop_size)
        assert mv2mae_processor.central_box(frame_size, crop_size) == box


@pytest.mark.parametrize("upright", [False, True])
def test_pipeline_samples_and_crops_as_training_did(tmp_path, upright):
    config = tiny.make_finetune_config(f"data.frame_stride={STRIDE}", "data.crop_size=(32,48)")
    model = classifier.from_config(config, len(CLASS_NAMES))
    video = np.zeros((1, *model.clip_size, 3), np.uint8)
    shapes = jax.eval_shape(functools.partial(model.init, video=video), jax.random.key(0))["params"]
    params = layers.unstack_blocks(tiny.random_like(shapes))
    run, folder = export(config, trained_run.for_comparison(model), params, CLASS_NAMES, tmp_path / "hf")
    path = video_files.write_video(tmp_path / "video.mp4", blobs(96, 128), pixel_aspect=Fraction(4, 3))
    if upright:
        video_files.rotate_by_metadata(path)
    with open(path, "rb") as file:
        frames = np.stack(list(raw_video.frames(raw_video.open_source(file), 170)))
    assert frames.shape[1:3] == ((171, 96) if upright else (96, 171))
    logits = run.model.apply({"params": run.params}, own_clip(frames, run)[None])[0]

    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    classify = transformers.pipeline("video-classification", model=str(folder), video_processor=processor)
    found = {entry["label"]: entry["score"] for entry in classify(str(path))}
    expected = dict(zip(CLASS_NAMES, np.asarray(jax.nn.softmax(logits)).tolist(), strict=True))
    assert found == pytest.approx(expected, abs=0.02)


def test_the_configs_say_how_to_sample(exported):
    folder = exported[1]
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        assert (content["num_frames"], content["frame_stride"]) == (4, STRIDE)
        assert content["image_mean"] == [0.485, 0.456, 0.406] and content["image_std"] == [0.229, 0.224, 0.225]
        assert content["auto_map"]["AutoVideoProcessor"] == "mv2mae_processor.MV2MAEProcessor"
    assert json.loads((folder / "config.json").read_text())["frame_stride"] == STRIDE
    assert inference.load_encoder(str(folder)).frame_stride == STRIDE


def test_a_saved_processor_is_the_same(exported, tmp_path):
    processor = transformers.AutoImageProcessor.from_pretrained(exported[1], trust_remote_code=True)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "mv2mae_processor.py").exists()
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    video = blobs(48, 64)
    first, second = (p(video, do_sample_frames=True, return_tensors="np")["pixel_values"] for p in (processor, again))
    np.testing.assert_array_equal(first, second)


def test_the_folder_stands_alone(exported, tmp_path):
    """A copy of the folder works alone, as it must on the Hub."""
    shutil.copytree(exported[1], tmp_path / "copy")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "copy", trust_remote_code=True)
    assert processor.frame_stride == STRIDE
