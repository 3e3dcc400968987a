"""Exports and imports of a small run: no value is lost, and wrong exports are refused."""

import argparse
import dataclasses
import errno
import functools
import html
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import save_file

from console.errors import UserError
from mv2mae_jax.models import layers, mv2mae, tubelets, variants
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint, resume, starts_file
from mv2mae_jax.state import TrainState
from mv2mae_jax.torch_export import exporter, model_card, mv2mae_torch, trained_run
from mv2mae_jax.torch_weights import importer, names
from tests import tiny, torch_runs
from tests.torch_runs import run_command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), "pixels")


def make_run(folder, target, error="squared"):
    """A finished run: a checkpoint of random weights at step 4 and another at step 6, and a history."""
    config = tiny.make_config()
    config.model.tubelet_size, config.loss.target, config.loss.error = (2, 8, 8), target, error
    checkpointer = checkpoint.Checkpointer(folder)
    record = {"config": config.to_json(), "git_revision": "0123abc"}
    for step in (4, 6):
        checkpointer.save(step, TrainState.create(tiny_params(step), optax.sgd(0.1), with_ema=False), record)
    checkpointer.close()
    (folder / "history.jsonl").write_text('{"step": 4, "eval/loss_self": 1.5}\n{"step": 6, "eval/loss_self": 1.25}\n')
    return folder


@functools.cache
def tiny_task():
    return Pretrain.from_config(tiny.make_config())


@functools.cache
def tiny_shapes():
    return jax.eval_shape(tiny_task().init, jax.random.key(0))


def tiny_params(seed):
    return tiny.random_like(tiny_shapes(), seed)


@pytest.mark.parametrize("layout", exporter.FORMATS)
def test_export_and_import_are_inverse_to_the_last_bit(workdir, tmp_path, layout, capsys):
    assert run_command(workdir, layout, tmp_path / "out", "--step=4") == 0
    said = capsys.readouterr().out
    assert "Compared with JAX" in said
    card = (tmp_path / "out/README.md").read_text()
    for fact in ("Step: 4", "1.5", "0123abc", "total_steps = 6", "Licence", "Compared with JAX"):
        assert fact in card
    path = tmp_path / "out" / ("videomae.pth" if layout == "videomae" else "")
    task = tiny_task()
    params = jax.tree.map(jnp.asarray, tiny_params(99))
    assert importer.is_torch_checkpoint(path) and not importer.is_torch_checkpoint(workdir)
    loaded, expected = importer.load_videomae(path, params, task.model), tiny_params(4)
    if layout != "port":  # the heads were rescaled to VideoMAE's pixels and back, which rounds
        for part in ("decoder", "cross_decoder"):
            head, wanted = loaded[part].pop("head"), expected[part].pop("head")
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), head, wanted)
    assert_equal(loaded, expected)


@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
@pytest.mark.parametrize("layout", ["hf", "videomae"])
def test_heads_predict_what_the_other_side_compares_with(tmp_path, layout, target):
    """VideoMAE's loss, in pixels from 0 to 1, is the same for the predictions of the file and of JAX."""
    workdir = make_run(tmp_path / "run", target)
    assert run_command(workdir, layout, tmp_path / "out") == 0
    task, params = tiny_task(), tiny_params(6)
    video = np.random.default_rng(3).integers(0, 256, (1, *task.model.clip_size, 3), dtype=np.uint8)
    visible, hidden = np.arange(0, 32, 2)[None], np.arange(1, 32, 2)[None]

    def run(module, video):
        return module.decode_self(module.encode(video, visible), visible, hidden)

    prediction = np.asarray(torch_runs.jit(functools.partial(task.model.apply, method=run))({"params": params}, video))
    patches = np.asarray(tubelets.patchify(video, (2, 8, 8)))[0, 1::2].reshape(16, -1, 3) / 255
    if target == "pixels":
        prediction = prediction * np.tile([0.229, 0.224, 0.225], 128) + np.tile([0.485, 0.456, 0.406], 128)
    else:
        patches = (patches - patches.mean(1, keepdims=True)) / (patches.std(1, ddof=1, keepdims=True) + 1e-6)
    expected = np.square(prediction - patches.reshape(1, 16, -1)).mean()

    if layout == "hf":
        theirs = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "out")
        theirs.decoder.norm.eps = 1e-6
        masked = torch.arange(32)[None] % 2 == 1
        loss = theirs(torch_runs.pixel_values(video), bool_masked_pos=masked).loss.item()
    else:
        content = torch.load(tmp_path / "out/videomae.pth", weights_only=True)
        assert content["args"] == {"normlize_target": target == "normalized_pixels"}
        port = mv2mae_torch.MV2MAE(**trained_run.read_run(workdir).model_config)
        port.load_state_dict(content["model"])
        seen = torch.from_numpy(visible)
        found = port.decode_self(port.encode(torch.from_numpy(video), seen), seen).detach().numpy()
        loss = np.square(found - patches.reshape(1, 16, -1)).mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    card = (tmp_path / "out/README.md").read_text()
    assert ("in [0, 1]" if target == "pixels" else "mean 0 and unit variance") in card


def test_a_wrong_target_is_caught(workdir, tmp_path, capsys, monkeypatch):
    """All layers agree, but the loss differs."""
    right = exporter.hugging_face_config
    monkeypatch.setattr(exporter, "hugging_face_config", lambda run: right(run) | {"norm_pix_loss": True})
    assert run_command(workdir, "hf", tmp_path / "hf") == 1
    assert "The loss by transformers is" in capsys.readouterr().err
    wrong = exporter.loss_settings
    monkeypatch.setattr(exporter, "loss_settings", lambda run: wrong(run) | {"cross_weight": 0.25})
    assert run_command(workdir, "port", tmp_path / "port") == 1
    assert "The loss by the port is" in capsys.readouterr().err


def test_a_loss_that_the_other_side_does_not_have_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(losses.ERRORS, "absolute", jnp.abs)
    absolute = make_run(tmp_path / "absolute", "pixels", "absolute")
    assert run_command(absolute, "port", tmp_path / "port") == 2
    assert "loss.error='absolute'" in capsys.readouterr().err
    assert run_command(absolute, "hf", tmp_path / "hf") == 0


def test_of_a_target_that_no_layout_predicts_the_encoder_is_exported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(losses.TARGET_KINDS, "unit_pixels", losses.TARGET_KINDS["pixels"])
    another_target = make_run(tmp_path / "target", "unit_pixels")
    for layout in exporter.FORMATS:
        assert run_command(another_target, layout, tmp_path / layout) == 0
        card = " ".join((tmp_path / layout / "README.md").read_text().split())
        assert "decoders of the layouts cannot predict loss.target='unit_pixels'" in card
        assert "Compared with JAX" in card


@pytest.mark.parametrize("layout", exporter.FORMATS)
def test_decoders_of_another_target_are_told(workdir, tmp_path, layout, capsys):
    run_command(workdir, layout, tmp_path / "out")
    path = tmp_path / "out" / ("videomae.pth" if layout == "videomae" else "")
    params = jax.tree.map(jnp.asarray, tiny_params(99))
    capsys.readouterr()
    importer.load_videomae(path, params, tiny_task().model, target="pixels")
    assert "predict" not in capsys.readouterr().out
    importer.load_videomae(path, params, tiny_task().model, target="normalized_pixels")
    assert "predict pixels, here they are to predict normalized_pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["C001", "a`b", "``", "`", "a|b", "*x* _y_ __z__", "<b>&amp;", "[a](b) ![c](d)", "# h", "$x$", "a\\|b", "~~x~~"],
)
def test_names_are_no_markup_in_the_card(name):
    """A Markdown parser reads the names as code, in a table and within text."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    table = f"| metric | |\n|---|---|\n| {model_card.cell(f'top_1/{name}')} | 0.5 |\n"
    assert f"<td><code>top_1/{html.escape(name)}</code></td>\n<td>0.5</td>" in parser.render(table)
    text = parser.render(f"Data: {model_card.code(name)}, and")
    assert text == f"<p>Data: <code>{html.escape(name)}</code>, and</p>\n"


def test_without_a_step_the_newest_is_exported(workdir, tmp_path):
    assert run_command(workdir, "port", tmp_path / "out") == 0
    head = mv2mae_torch.load(tmp_path / "out").decoder.head.weight.detach()
    np.testing.assert_array_equal(head, tiny_params(6)["decoder"]["head"]["kernel"].T)


@pytest.mark.parametrize("others", [True, False], ids=["another step", "starts.jsonl"])
def test_a_damaged_record_does_not_stop_the_export_of_intact_weights(workdir, tmp_path, capsys, others):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "checkpoints" / "6" / "run" / "metadata").write_text('{"config": "{')
    with open(run / "history.jsonl", "a") as file:
        file.write('{"step": 6, "eval/loss_self": nothing}\n')
    if not others:
        shutil.rmtree(run / "checkpoints" / "4")
        with pytest.raises(ValueError, match=r"6/run is damaged: no other step and no line of starts.jsonl"):
            trained_run.read_run(run)
        starts_file.record_start(run, trained_run.read_run(workdir).config, {})
    assert run_command(run, "port", tmp_path / "port") == 0
    told = capsys.readouterr().out
    assert f"6/run is damaged: {'the record of step 4' if others else 'starts.jsonl'} stands in." in told
    assert "history.jsonl is damaged in line 3. Its other 2 line(s) are used." in told
    assert trained_run.read_run(run).metrics == {"eval/loss_self": 1.25}
    assert (tmp_path / "port" / "model.safetensors").exists()


def test_the_average_is_exported_where_there_is_one(tmp_path):
    state = TrainState.create(tiny_params(0), optax.sgd(0.1), with_ema=True).replace(ema_params=tiny_params(1))
    checkpointer = checkpoint.Checkpointer(tmp_path / "run")
    checkpointer.save(1, state, {"config": tiny.make_config().to_json(), "git_revision": ""})
    checkpointer.close()
    head = trained_run.read_run(tmp_path / "run").params["decoder"]["head"]["kernel"]
    np.testing.assert_array_equal(head, tiny_params(1)["decoder"]["head"]["kernel"])


def test_what_does_not_fit_is_refused(workdir, tmp_path, capsys):
    assert run_command(workdir, "port", tmp_path / "out", "--step=5") == 2
    assert "no checkpoint of step 5: it has steps 4, 6" in capsys.readouterr().err
    assert run_command(tmp_path, "port", tmp_path / "out") == 2
    assert "missing or empty" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    assert run_command(workdir, "port", tmp_path / "taken") == 2
    assert "exists already" in capsys.readouterr().err
    with resume.locked_output(tmp_path / "out", "export"):
        assert run_command(workdir, "port", tmp_path / "out") == 2
    assert f"--output={tmp_path / 'out'} is in use by another export (process" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_is_told_before_the_weights_are_written(workdir, tmp_path, capsys, monkeypatch):
    def full(file, start, num_bytes):
        assert num_bytes > sum(array.nbytes for array in jax.tree.leaves(trained_run.read_run(workdir).params))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for layout in exporter.FORMATS:
        assert run_command(workdir, layout, tmp_path / "out") == 2
        assert "no space is left on the disk. With room, the same command can be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing_behind(workdir, tmp_path, capsys, monkeypatch):
    of_a_killed_one = tmp_path / ".out.tmp" / "half.safetensors"

    def interrupted(*_):
        assert not of_a_killed_one.exists() and (tmp_path / ".out.tmp" / "model.safetensors").exists()
        assert not list(tmp_path.glob("out*"))  # a process that is killed here leaves nothing under a name of its own
        raise KeyboardInterrupt

    of_a_killed_one.parent.mkdir()
    of_a_killed_one.touch()
    monkeypatch.setattr(exporter, "verify", interrupted)
    assert run_command(workdir, "port", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", exporter.FORMATS)
def test_others_may_read_all_files_of_an_export(workdir, tmp_path, layout, monkeypatch):
    monkeypatch.setattr(exporter, "verify", lambda *_: "")
    assert run_command(workdir, layout, tmp_path / "out") == 0
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {
        (tmp_path / "out" / "README.md").stat().st_mode
    }


def test_another_backbone_is_refused(workdir, tmp_path, capsys, monkeypatch):
    class Windowed(mv2mae.Encoder):
        pass

    name = tiny.make_config().model.variant
    monkeypatch.setitem(variants.VARIANTS, name, dataclasses.replace(variants.VARIANTS[name], backbone=Windowed))
    assert run_command(workdir, "port", tmp_path / "out") == 2
    assert "its backbone is a Windowed" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_of_other_decoders_the_encoder_is_exported(workdir, tmp_path, capsys, monkeypatch):
    class OtherDecoders(mv2mae.MV2MAE):
        pass

    monkeypatch.setitem(variants.DECODERS, "mv2mae", OtherDecoders)
    assert run_command(workdir, "hf", tmp_path / "out") == 0
    assert "no layout has a place for the decoders of OtherDecoders" in capsys.readouterr().out


def test_the_port_needs_nothing_but_torch_and_computes_both_decoders(workdir, tmp_path):
    """The interpreter sees neither this package nor JAX. There are two source views, with a mask ratio of their own."""
    run_command(workdir, "port", tmp_path / "out")
    task = dataclasses.replace(tiny_task(), num_source_views=2, source_mask_ratio=0.5)
    rng = np.random.default_rng(5)
    video = rng.integers(0, 256, (2, 3, *task.model.clip_size, 3), dtype=np.uint8)
    motion = np.sqrt(np.square(tubelets.patchify(first_differences(video), (2, 8, 8))).sum(-1))
    inputs = task.make_inputs({"video": video, "motion": motion}, jax.random.key(1))
    np.savez(
        tmp_path / "in.npz", video=video, target=inputs["target_mask"].visible, source=inputs["source_mask"].visible
    )
    code = """
import json, sys, numpy, torch
sys.path.insert(0, sys.argv[1] + "/out")
import mv2mae_torch
assert not {"jax", "flax", "mv2mae_jax", "transformers", "safetensors"} & set(sys.modules)
model = mv2mae_torch.load(sys.argv[1] + "/out")
inputs = numpy.load(sys.argv[1] + "/in.npz")
views = [torch.from_numpy(inputs["video"]), *(torch.from_numpy(inputs[k]).long() for k in ("target", "source"))]
settings = json.load(open(sys.argv[1] + "/out/config.json"))["loss"]
with torch.no_grad():
    outputs = {name: x.numpy() for name, x in model(*views).items()}
    outputs["loss_ess"] = model.loss(*views, **settings)
    of_60 = {"ess_fraction": None, "temperature": 60.0, "weighted_views": "target"}
    outputs["loss_60"] = model.loss(*views, **settings | of_60)
    settings |= {"target": "normalized_pixels", "temperature": float("inf"), "ess_fraction": None, "cross_weight": 0.5}
    outputs["loss_plain"] = model.loss(*views, **settings)
numpy.savez(sys.argv[1] + "/result.npz", **outputs)
"""
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], check=True)
    found = np.load(tmp_path / "result.npz")
    params = tiny_params(6)
    plain = {"temperature": math.inf, "ess_fraction": None, "target": "normalized_pixels", "cross_weight": 0.5}
    of_60 = {"ess_fraction": None, "temperature": 60.0, "weighted_views": "target"}
    tasks = {
        "ess": task,
        "60": dataclasses.replace(task, **of_60),
        "plain": dataclasses.replace(task, **plain),
    }

    def compute(params, inputs):  # compiled as one, the model runs once
        by_task = {name: inputs | {"weights": task.weights(inputs["motion"])} for name, task in tasks.items()}
        return task.predict(params, inputs), {name: tasks[name].loss(params, by_task[name])[0] for name in tasks}

    expected, expected_losses = torch_runs.jit(compute)(params, inputs)
    for name in ("self_target", "self_source", "cross"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-4, err_msg=name)
    for name, loss in expected_losses.items():
        assert float(found[f"loss_{name}"]) == pytest.approx(float(loss), rel=1e-4), name


def test_the_port_refuses_an_export_in_another_format(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(ValueError, match="another format; this function reads that of --format=port"):
        mv2mae_torch.load(str(tmp_path))


def test_of_a_run_with_a_joint_decoder_the_encoder_is_exported(tmp_path, capsys):
    config = tiny.make_config()
    config.model.update(decoder="joint", cross_view=False)
    task = Pretrain.from_config(config)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    checkpointer = checkpoint.Checkpointer(tmp_path / "run")
    state = TrainState.create(params, optax.sgd(0.1), with_ema=False)
    checkpointer.save(1, state, {"config": config.to_json(), "git_revision": ""})
    checkpointer.close()
    for layout in exporter.FORMATS:
        assert run_command(tmp_path / "run", layout, tmp_path / layout) == 0
        told = "no layout has a place for the decoders of JointMAE"
        assert told in capsys.readouterr().out
        card = (tmp_path / layout / "README.md").read_text()
        assert told in card and "its decoders are not exported" in card

    video = np.random.default_rng(5).integers(0, 256, (2, *task.model.clip_size, 3), dtype=np.uint8)
    everything = np.broadcast_to(np.arange(task.model.num_tokens), (2, task.model.num_tokens))
    expected = task.model.apply({"params": params}, video, everything, method="encode")
    with torch.no_grad():
        found = mv2mae_torch.load(tmp_path / "port").features(torch.from_numpy(video))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    fresh = jax.tree.map(jnp.asarray, tiny_params(99))  # parameters of a model with MV2MAE's decoders
    imported = importer.load_videomae(tmp_path / "videomae" / "videomae.pth", fresh, tiny_task().model)
    jax.tree.map(np.testing.assert_array_equal, imported["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, imported["decoder"], fresh["decoder"])


def test_a_run_without_source_views_is_exported(tmp_path, capsys):
    config = tiny.make_config()
    config.model.cross_view, config.data.num_source_views = False, 0
    config.model.norm_affine = "folded"  # as on a GPU
    task = Pretrain.from_config(config)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    checkpointer = checkpoint.Checkpointer(tmp_path / "run")
    state = TrainState.create(params, optax.sgd(0.1), with_ema=False)
    checkpointer.save(1, state, {"config": config.to_json(), "git_revision": ""})
    checkpointer.close()
    for layout in exporter.FORMATS:
        assert run_command(tmp_path / "run", layout, tmp_path / layout) == 0
        assert "Compared with JAX" in capsys.readouterr().out

    video = np.random.default_rng(5).integers(0, 256, (2, 1, *task.model.clip_size, 3), dtype=np.uint8)
    motion = np.sqrt(np.square(tubelets.patchify(first_differences(video), (2, 8, 8))).sum(-1))
    inputs = task.make_inputs({"video": video, "motion": motion}, jax.random.key(1))
    loss, _ = torch_runs.jit(task.loss)(params, inputs)
    port = mv2mae_torch.load(tmp_path / "port")
    visible = torch.from_numpy(np.array(inputs["target_mask"].visible)).long()
    settings = json.loads((tmp_path / "port/config.json").read_text())["loss"]
    found = port.loss(torch.from_numpy(video), visible, torch.zeros(2, 0, visible.shape[1]).long(), **settings)
    assert found.item() == pytest.approx(float(loss), rel=1e-4)


def first_differences(video: np.ndarray) -> np.ndarray:
    difference = np.abs(np.diff(video.astype(np.float32), axis=2))
    return np.concatenate([difference[:, :, :1], difference], axis=2)


# --- The exporter's own check ----------------------------------------------------------------------------------------


def exchange_heads(state):
    """Exchanges the first two heads in the input of one projection."""
    weight = state["decoder.blocks.1.attn.proj.weight"]
    head = weight.shape[1] // 3
    weight[:, : 2 * head] = np.roll(weight[:, : 2 * head], head, axis=1)
    return state


def zero_bias(state):
    state["encoder.blocks.1.attn.v_bias"] = np.zeros_like(state["encoder.blocks.1.attn.v_bias"])
    return state


def drop_bias(state):
    del state["encoder.blocks.1.attn.v_bias"]
    return state


def exchange_axes(state):
    state["encoder.patch_embed.proj.weight"] = state["encoder.patch_embed.proj.weight"].swapaxes(-1, -2).copy()
    return state


@pytest.mark.parametrize("layout", exporter.FORMATS)
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (exchange_heads, r"decoder\.blocks\.1\.attn\.proj is the first layer"),
        (zero_bias, r"encoder\.blocks\.1\.attn\.proj is the first layer"),
        (drop_bias, r"blocks\.1\.attn\.v_bias|layer\.1\.attention\.attention\.(v_bias|value\.bias)"),
        (exchange_axes, r"encoder\.(patch_embed\.proj|blocks\.0\.norm1) is the first layer"),
    ],
)
def test_a_wrong_export_is_caught_and_its_first_layer_named(
    workdir, tmp_path, capsys, monkeypatch, layout, damage, named
):
    torch_runs.assert_caught(workdir, layout, tmp_path / "out", damage, named, monkeypatch, capsys)


def test_a_wrong_eps_is_caught(workdir, tmp_path, capsys, monkeypatch):
    right = exporter.hugging_face_config
    monkeypatch.setattr(exporter, "hugging_face_config", lambda run: right(run) | {"layer_norm_eps": 1e-12})
    assert run_command(workdir, "hf", tmp_path / "out") == 1
    assert "encoder.blocks.0.norm1 is a LayerNorm with eps 1e-12" in capsys.readouterr().err


def test_without_torch_the_card_says_that_nothing_was_compared(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporter, "_installed", lambda package: False)
    assert run_command(workdir, "hf", tmp_path / "hf") == 0
    assert "NOT compared with JAX: torch and transformers" in capsys.readouterr().out
    assert "NOT compared with JAX" in (tmp_path / "hf/README.md").read_text()
    assert run_command(workdir, "videomae", tmp_path / "videomae") == 2
    assert "requirements-torch.txt" in capsys.readouterr().err


def test_the_processor_normalises_as_the_model_was_trained(workdir, tmp_path):
    run_command(workdir, "hf", tmp_path / "out")
    content = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    processor = transformers.VideoMAEImageProcessorPil.from_pretrained(tmp_path / "out")
    assert content["image_processor_type"] == "VideoMAEImageProcessor"
    video = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    found = processor(list(video), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, torch_runs.pixel_values(video[None]), atol=1e-5)


# --- Import ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_state():
    """VideoMAE's state dict of the tiny model without its cross-view decoder."""
    state = names.to_videomae(layers.unstack_blocks(tiny_params(4)), (2, 8, 8))
    return {name: torch.from_numpy(array) for name, array in state.items() if not name.startswith("cross_decoder.")}


def load_tiny(path):
    params = jax.tree.map(jnp.asarray, tiny_params(99))
    return importer.load_videomae(str(path), params, tiny_task().model)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def as_videomae_saves(state):
    """The content of a file by VideoMAE's `utils.save_model`."""
    options = argparse.Namespace(normlize_target=True, mask_ratio=0.9, output_dir="x", opt_betas=[0.9, 0.95])
    return {"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": {"scale": 1.0}, "args": options}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"model": state},
        lambda state: {"module": state, "epoch": 3},
        lambda state: {"state_dict": state, "pytorch-lightning_version": "2.4"},
        as_videomae_saves,
        lambda state: prefixed("module.", state),
        lambda state: {"model": prefixed("_orig_mod.", state)},
        lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
        lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
        lambda state: {name.replace("encoder.", "encoder._orig_mod.", 1): x for name, x in state.items()},
        lambda state: prefixed("_fsdp_wrapped_module.", state),
        lambda state: {name: x.double() for name, x in state.items()},
    ],
)
def test_every_container_is_read_and_other_parts_stay(tiny_state, tmp_path, caplog, wrap):
    torch.save(wrap(tiny_state | {"head.weight": torch.ones(5, 24)}), tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        loaded = load_tiny(tmp_path / "x.pth")
    for part, seed in (("encoder", 4), ("decoder", 4), ("cross_decoder", 99)):
        assert_equal(loaded[part], tiny_params(seed)[part])
    fresh = jax.tree.map(jnp.asarray, tiny_params(99))
    line = checkpoint.taken("F", fresh, importer.load_videomae(str(tmp_path / "x.pth"), fresh, tiny_task().model))
    unrolled = layers.unstack_blocks(fresh)
    num_all, num_fresh = (len(jax.tree.leaves(tree)) for tree in (unrolled, unrolled["cross_decoder"]))
    assert line == f"{num_all - num_fresh} of {num_all} parameters taken from F. Initialised afresh: cross_decoder."
    assert "Left over in the file:\n  head.weight (5, 24)" in caplog.text
    assert "cross_decoder/blocks/0/cross_attn/projq/kernel: here (12, 12), in the file nothing" in caplog.text


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_with_more_blocks_is_not_cut_short(tiny_state, tmp_path, part):
    """An encoder is refused; a decoder begins afresh."""
    deeper = {name.replace(f"{part}.blocks.1.", f"{part}.blocks.10."): x for name, x in tiny_state.items()}
    torch.save(deeper | tiny_state, tmp_path / "x.pth")
    if part == "encoder":
        with pytest.raises(
            ValueError, match=r"does not fit this model:\n  encoder/blocks/10: in the file, beyond the 2 here"
        ):
            load_tiny(tmp_path / "x.pth")
        return
    loaded = load_tiny(tmp_path / "x.pth")
    for name, seed in (("encoder", 4), ("decoder", 99)):
        assert_equal(loaded[name], tiny_params(seed)[name])


def as_numpy(state):
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()}


def write_shards(folder, state, extension):
    """Writes two files and an index, as save_pretrained does for a model larger than `max_shard_size`."""
    stem, index = {
        "safetensors": ("model-0000{}-of-00002.safetensors", "model.safetensors.index.json"),
        "bin": ("pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json"),
    }[extension]
    weight_map = {}
    for shard in (1, 2):
        part = dict(list(state.items())[shard - 1 :: 2])
        path = folder / stem.format(shard)
        save_file(as_numpy(part), path) if extension == "safetensors" else torch.save(part, path)
        weight_map |= dict.fromkeys(part, path.name)
    (folder / "config.json").write_text("{}")
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / index


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_several_files_with_an_index_are_one_checkpoint(tiny_state, tmp_path, extension):
    index = write_shards(tmp_path, tiny_state, extension)
    for path in (tmp_path, index):
        assert_equal(load_tiny(path)["encoder"], tiny_params(4)["encoder"])
    missing = sorted(tmp_path.glob("*00002-of*"))[0]
    missing.unlink()
    with pytest.raises(ValueError, match=f"names {missing.name}, missing there"):
        load_tiny(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="names no files"):
        load_tiny(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(tiny_state, tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: x.to(dtype).contiguous() for name, x in tiny_state.items()}, path)
    expected = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).to(dtype).float().numpy(), tiny_params(4))
    assert_equal(load_tiny(path)["encoder"], expected["encoder"])


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), (1, 2), 7, None, "text"])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"holds a {type(content).__name__}, not a state dict"):
        load_tiny(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{}, {"model": {}}, {1: torch.ones(2)}, {"model": [torch.ones(2)]}])
def test_a_state_dict_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is no VideoMAE checkpoint"):
        load_tiny(tmp_path / "x.pth")


def test_other_objects_than_options_are_refused_still(tiny_state, tmp_path):
    torch.save({"model": tiny_state, "args": argparse.Namespace(path=pathlib.PurePath("x"))}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        load_tiny(tmp_path / "x.pth")


def test_the_options_of_a_script_say_what_its_heads_predict(tiny_state, tmp_path):
    for normalizes, bias in ((True, 0.5), (False, (0.5 - 0.485) / 0.229)):
        tiny_state["decoder.head.bias"] = torch.full_like(tiny_state["decoder.head.bias"], 0.5)
        torch.save({"model": tiny_state, "args": argparse.Namespace(normlize_target=normalizes)}, tmp_path / "x.pth")
        assert load_tiny(tmp_path / "x.pth")["decoder"]["head"]["bias"][0] == pytest.approx(bias, abs=1e-6)


def test_a_fine_tuned_file_gives_the_encoder(tiny_state, tmp_path, caplog):
    encoder = {k.removeprefix("encoder."): v for k, v in tiny_state.items() if k.startswith(("encoder.b", "encoder.p"))}
    torch.save({"module": encoder | {"fc_norm.weight": torch.ones(24)}}, tmp_path / "x.pth")
    loaded = load_tiny(tmp_path / "x.pth")
    assert_equal(loaded["encoder"]["blocks"], tiny_params(4)["encoder"]["blocks"])
    assert_equal(loaded["encoder"]["norm"], tiny_params(99)["encoder"]["norm"])
    assert_equal(loaded["decoder"], tiny_params(99)["decoder"])
    assert "encoder/norm/scale: here (24,), in the file nothing" in caplog.text
    assert "fc_norm.weight (24,)" in caplog.text


def test_a_decoder_is_loaded_whole_or_not_at_all(tiny_state, tmp_path, caplog):
    tiny_state["decoder.head.weight"] = torch.ones(7, 12)
    torch.save(tiny_state, tmp_path / "x.pth")
    assert_equal(load_tiny(tmp_path / "x.pth")["decoder"], tiny_params(99)["decoder"])
    assert "decoder/head/kernel: here (12, 384), in the file (12, 7)" in caplog.text
    assert "decoder/norm/bias: fits, but the rest of its part does not" in caplog.text


def test_positions_follow_the_model_that_imports(workdir, tmp_path):
    """The importing model has more frames and another resolution. Weights fit, and positions are those of its clip."""
    run_command(workdir, "videomae", tmp_path / "out")
    config = tiny.make_config()
    config.data.num_frames, config.data.crop_size = 8, (48, 32)
    task = Pretrain.from_config(config)
    params = importer.load_videomae(
        tmp_path / "out/videomae.pth", jax.tree.map(jnp.asarray, tiny_params(99)), task.model
    )
    assert_equal(params["encoder"], tiny_params(6)["encoder"])
    video = np.random.default_rng(0).integers(0, 256, (1, 8, 48, 32, 3), dtype=np.uint8)
    everything = np.arange(task.model.num_tokens, dtype=np.int32)[None]
    features = task.model.apply({"params": params}, video, everything, method="encode")
    folder = tmp_path / "port"
    run_command(workdir, "port", folder)
    settings = json.loads((folder / "config.json").read_text())["model"] | {"clip_size": (8, 48, 32)}
    port = mv2mae_torch.MV2MAE(**settings)
    port.load_state_dict(mv2mae_torch.read_safetensors(folder / "model.safetensors"))
    np.testing.assert_allclose(port.features(torch.from_numpy(video)).detach(), features, atol=1e-4)


def test_an_encoder_that_does_not_fit_is_refused_with_every_name(tiny_state, tmp_path):
    del tiny_state["encoder.blocks.1.mlp.fc1.bias"]
    tiny_state["encoder.blocks.0.norm1.weight"] = torch.ones(3)
    torch.save(tiny_state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_tiny(tmp_path / "x.pth")
    assert "encoder/blocks/1/mlp/fc1/bias: here (96,), in the file nothing" in str(error.value)
    assert "encoder/blocks/0/norm1/scale: here (24,), in the file (3,)" in str(error.value)


def test_tubelets_of_the_same_volume_are_not_confused(tiny_state, tmp_path):
    kernel = tiny_state["encoder.patch_embed.proj.weight"]
    tiny_state["encoder.patch_embed.proj.weight"] = kernel.reshape(*kernel.shape[:2], 8, 4, 4)
    torch.save(tiny_state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"tubelets of \(8, 4, 4\).*this model of \(2, 8, 8\)"):
        load_tiny(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("layout", "key", "part"),
    [
        ("hf", "num_attention_heads", "encoder"),
        ("hf", "decoder_num_attention_heads", "decoder"),
        ("port", "decoder_heads", "decoder"),
    ],
)
def test_another_number_of_heads_is_refused(workdir, tmp_path, layout, key, part):
    run_command(workdir, layout, tmp_path / "out")
    path = tmp_path / "out/config.json"
    path.write_text(path.read_text().replace(f'"{key}": 3', f'"{key}": 6'))
    with pytest.raises(ValueError, match=f"its {part} has 6 attention heads, this model's 3"):
        load_tiny(tmp_path / "out")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def test_an_unsafe_pickle_is_refused(tiny_state, tmp_path):
    torch.save({"model": tiny_state, "args": Payload(tmp_path / "was_run")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="refused"):
        load_tiny(tmp_path / "x.pth")
    assert not (tmp_path / "was_run").exists()
