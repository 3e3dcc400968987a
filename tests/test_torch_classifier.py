"""Fine-tuned classifiers, exported and imported, compared with transformers' VideoMAEForVideoClassification."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from mv2mae_jax.models import classifier, layers
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.state import TrainState
from mv2mae_jax.torch_export import check, exporter, mv2mae_torch, trained_run
from mv2mae_jax.torch_weights import importer, names
from tests import tiny, torch_runs
from tests.torch_runs import CLASS_NAMES, run_command

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make_model(num_classes=5):
    return classifier.from_config(tiny.make_finetune_config(), num_classes)


@functools.cache
def shapes_of(model):
    video = jnp.zeros((1, *model.clip_size, 3), jnp.uint8)
    return jax.eval_shape(functools.partial(model.init, video=video), jax.random.key(0))["params"]


def make_params(model, seed):
    return tiny.random_like(shapes_of(model), seed)


def random_video(model, batch=2):
    return np.random.default_rng(3).integers(0, 256, (batch, *model.clip_size, 3), dtype=np.uint8)


def make_logits(model, params, video):
    return np.asarray(torch_runs.jit(model.apply)({"params": params}, video))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A fine-tuned run: a checkpoint of random weights, and a history."""
    folder = tmp_path_factory.mktemp("run")
    record = {
        "config": tiny.make_finetune_config("init_from=runs/pretrained").to_json(),
        "git_revision": "0123abc",
        "class_names": list(CLASS_NAMES),
    }
    checkpointer = checkpoint.Checkpointer(folder)
    state = TrainState.create(make_params(make_model(), 4), optax.sgd(0.1), with_ema=False)
    checkpointer.save(6, state, record)
    checkpointer.close()
    (folder / "history.jsonl").write_text('{"step": 6, "test/top_1": 0.625, "perf/steps_per_second": 7.5}\n')
    return folder


@pytest.mark.parametrize("layout", exporter.FORMATS)
def test_export_and_import_are_inverse_to_the_last_bit(workdir, tmp_path, layout, capsys):
    assert run_command(workdir, layout, tmp_path / "out") == 0
    assert "Compared with JAX on a fixed input, encoder and head" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    for fact in ("runs/pretrained", "`test/top_1` | 0.625", "for 5 classes", "Step: 6", "0123abc", "Licence"):
        assert fact in card
    assert "perf/" not in card
    path = tmp_path / "out" / ("videomae.pth" if layout == "videomae" else "")
    model = make_model()
    fresh = jax.tree.map(jnp.asarray, make_params(model, 99))
    jax.tree.map(np.testing.assert_array_equal, importer.load_videomae(path, fresh, model), make_params(model, 4))


def test_the_port_classifies_as_jax_does(workdir, tmp_path):
    run_command(workdir, "port", tmp_path / "out")
    model = make_model()
    port, video = mv2mae_torch.load(tmp_path / "out"), random_video(model)
    with torch.no_grad():
        found, tokens = port(torch.from_numpy(video)), port.features(torch.from_numpy(video))
    np.testing.assert_allclose(found, make_logits(model, make_params(model, 4), video), atol=1e-4)
    assert tokens.shape == (2, 32, 24)  # 2 x 4 x 4 tokens
    assert json.loads((tmp_path / "out/config.json").read_text())["class_names"] == list(CLASS_NAMES)
    with pytest.raises(ValueError, match="uint8 clips"):
        port(torch.from_numpy(video[:, :2]))


def test_hugging_faces_folder_names_the_classes(workdir, tmp_path):
    run_command(workdir, "hf", tmp_path / "out")
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.id2label == dict(enumerate(CLASS_NAMES))
    assert theirs.config.label2id["wave"] == 2


def test_a_head_for_other_classes_is_left_out(workdir, tmp_path, caplog):
    run_command(workdir, "videomae", tmp_path / "out")
    model = make_model(7)
    fresh = jax.tree.map(jnp.asarray, make_params(model, 99))
    loaded = importer.load_videomae(tmp_path / "out/videomae.pth", fresh, model)
    np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["head"]["kernel"])
    np.testing.assert_array_equal(loaded["fc_norm"]["bias"], make_params(make_model(), 4)["fc_norm"]["bias"])
    assert "head/kernel: here (24, 7), in the file (24, 5)" in caplog.text
    assert "head.weight (5, 24)" in caplog.text


# --- The exporter's own check ----------------------------------------------------------------------------------------


def exchange_attention_heads(state):
    weight = state["encoder.blocks.1.attn.proj.weight"]
    state["encoder.blocks.1.attn.proj.weight"] = np.roll(weight, weight.shape[1] // 3, axis=1)
    return state


def exchange_classes(state):
    state["head.weight"] = state["head.weight"][[1, 0, 2, 3, 4]]
    return state


def zero_norm_bias(state):
    state["fc_norm.bias"] = np.zeros_like(state["fc_norm.bias"])
    return state


def drop_head_bias(state):
    del state["head.bias"]
    return state


@pytest.mark.parametrize("layout", exporter.FORMATS)
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (exchange_attention_heads, r"encoder\.blocks\.1\.attn\.proj is the first layer"),
        (exchange_classes, r"\bhead is the first layer"),
        (zero_norm_bias, r"fc_norm is the first layer"),
        (drop_head_bias, r"(head|classifier)\.bias"),
    ],
)
def test_a_wrong_export_is_caught_and_its_first_layer_named(
    workdir, tmp_path, capsys, monkeypatch, layout, damage, named
):
    torch_runs.assert_caught(workdir, layout, tmp_path / "out", damage, named, monkeypatch, capsys)


def test_a_wrong_eps_is_caught(workdir, tmp_path, capsys, monkeypatch):
    right = exporter.hugging_face_config
    monkeypatch.setattr(exporter, "hugging_face_config", lambda run: right(run) | {"layer_norm_eps": 1e-12})
    assert run_command(workdir, "hf", tmp_path / "hf") == 1
    assert "encoder.blocks.0.norm1 is a LayerNorm with eps 1e-12" in capsys.readouterr().err

    load = mv2mae_torch.load

    def with_torchs_default(folder):
        port = load(folder)
        port.fc_norm.eps = 1e-5
        return port

    monkeypatch.setattr(check.mv2mae_torch, "load", with_torchs_default)
    assert run_command(workdir, "port", tmp_path / "port") == 1
    assert "fc_norm is a LayerNorm with eps 1e-05" in capsys.readouterr().err


# --- Against transformers --------------------------------------------------------------------------------------------

CLIP, TUBELET, NUM_CLASSES = (4, 32, 48), (2, 16, 16), 400


@functools.cache
def make_run(variant: str, depth: int | None = None) -> trained_run.TrainedRun:
    """A run as `read_run` returns it, of random weights: full widths, a short clip."""
    config = tiny.make_finetune_config("model.drop_path=0.0")
    config.model.update(variant=variant, tubelet_size=TUBELET, width=None, num_heads=None, depth=depth)
    config.model.norm_affine = "folded"  # as on a GPU; the comparison layer by layer uses the other form
    config.data.crop_size = CLIP[1:]
    model = classifier.from_config(config, NUM_CLASSES)
    return trained_run.TrainedRun(
        workdir="run",
        step=7,
        config=config,
        git_revision="none",
        metrics={},
        model=trained_run.for_comparison(model),
        params=layers.unstack_blocks(make_params(model, 0)),
        class_names=tuple(f"class {label}" for label in range(NUM_CLASSES)),
    )


def scanned(run):
    return run.model.with_compute(scan_layers=True)  # compiles faster


def hugging_face(folder):
    """The model with VideoMAE's own eps in its last norm."""
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder, attn_implementation="eager")
    theirs.fc_norm.eps = 1e-6
    return theirs.eval()


def export(run, folder):
    """Writes the files without the exporter's check, which has tests of its own."""
    folder.mkdir()
    exporter.write_hugging_face(run, names.to_videomae(run.params, TUBELET), folder)


@pytest.mark.parametrize("variant", ["S", *(pytest.param(name, marks=pytest.mark.long) for name in ("Ti", "B"))])
def test_logits_agree_with_transformers_both_ways(variant, tmp_path):
    """Weights exported to transformers, and weights imported from it, give the same logits."""
    run = make_run(variant)
    model, video = scanned(run), random_video(run.model)
    export(run, tmp_path / "ours")
    theirs = hugging_face(tmp_path / "ours")
    with torch.no_grad():
        found = theirs(torch_runs.pixel_values(video)).logits
    np.testing.assert_allclose(found, make_logits(model, layers.stack_blocks(run.params), video), atol=1e-4)

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
        expected = theirs(torch_runs.pixel_values(video)).logits
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = jax.tree.map(jnp.zeros_like, layers.stack_blocks(run.params))
    params = importer.load_videomae(tmp_path / "theirs", fresh, model)
    assert np.abs(np.asarray(expected - found)).max() > 1e-2  # the weights are different ones
    np.testing.assert_allclose(make_logits(model, params, video), expected, atol=1e-4)


def test_cross_entropy_and_its_gradients_agree_with_transformers(tmp_path):
    run = make_run("Ti", depth=2)
    video, label = random_video(run.model), np.array([7, 123])
    export(run, tmp_path / "hf")
    theirs = hugging_face(tmp_path / "hf")
    output = theirs(torch_runs.pixel_values(video), labels=torch.from_numpy(label))
    output.loss.backward()

    def loss(params):
        logits = run.model.apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    value, gradient = torch_runs.jit(jax.value_and_grad(loss))(run.params)
    assert float(value) == pytest.approx(output.loss.item(), rel=1e-4)
    gradient = names.to_hugging_face(names.to_videomae(jax.device_get(gradient), TUBELET))
    for name, parameter in theirs.named_parameters():
        ours = gradient[name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")]
        difference = np.linalg.norm(ours - parameter.grad.numpy()) / np.linalg.norm(parameter.grad.numpy())
        assert difference < 1e-4, name


def test_the_state_dict_of_a_fine_tuned_vit_s_is_videomaes():
    """162 tensors, 22,033,936 parameters: counted in VideoMAE's vit_small_patch16_224 with 400 classes."""
    state = names.without_encoder_prefix(names.to_videomae(make_run("S").params, TUBELET))
    assert len(state) == 162
    assert sum(array.size for array in state.values()) == 22_033_936
    others = {name for name in state if not name.startswith("blocks.")}
    assert others == {
        *("patch_embed.proj.weight", "patch_embed.proj.bias", "fc_norm.weight", "fc_norm.bias"),
        *("head.weight", "head.bias"),
    }
