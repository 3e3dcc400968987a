"""Exported and imported models compared with an independent implementation, transformers' VideoMAE, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from mv2mae_jax import optim
from mv2mae_jax.models import layers, tubelets
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.torch_export import exporter, trained_run
from mv2mae_jax.torch_weights import importer, names
from tests import tiny, torch_runs

CLIP, TUBELET = (4, 32, 48), (2, 16, 16)  # grid (2, 2, 3)
NUM_TOKENS = 12
VISIBLE = np.array([[0, 3, 4, 8, 11], [1, 2, 5, 7, 9]], np.int32)
HIDDEN = np.array([[i for i in range(NUM_TOKENS) if i not in row] for row in VISIBLE], np.int32)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@functools.cache
def make_run(variant: str, *, cross_view: bool = True, depth: int | None = None) -> trained_run.TrainedRun:
    """A run as `read_run` returns it, of random weights: full widths, a short clip."""
    config = tiny.make_config()
    config.model.update(variant=variant, cross_view=cross_view, tubelet_size=TUBELET)
    for name in ("width", "num_heads", "decoder_width", "decoder_depth", "decoder_heads"):
        config.model[name] = None
    config.model.depth = depth
    config.data.crop_size = CLIP[1:]
    task = Pretrain.from_config(config)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    return trained_run.TrainedRun(
        workdir="run",
        step=7,
        config=config,
        git_revision="none",
        metrics={"eval/loss_self": 0.5},
        model=task.model.with_compute(scan_layers=False),
        params=layers.unstack_blocks(params),
        class_names=(),
    )


def export(run: trained_run.TrainedRun, folder) -> None:
    """Writes the files without the exporter's check, which has tests of its own."""
    folder.mkdir()
    exporter.write_hugging_face(run, names.to_videomae(run.params, TUBELET), folder)


def random_video(*batch: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (*batch, *CLIP, 3), dtype=np.uint8)


def masked_positions() -> torch.Tensor:
    masked = torch.ones(len(VISIBLE), NUM_TOKENS, dtype=torch.bool)
    return masked.scatter_(1, torch.from_numpy(VISIBLE).long(), False)


def jax_reconstruction(model, params, video):
    """Encoder features of every token, and the self-view prediction of the hidden ones."""
    everything = np.broadcast_to(np.arange(NUM_TOKENS, dtype=np.int32), (len(video), NUM_TOKENS))

    def run(module, video):
        return module.encode(video, everything), module.decode_self(module.encode(video, VISIBLE), VISIBLE, HIDDEN)

    scanned = model.with_compute(scan_layers=True)  # compiles faster
    return scanned.apply({"params": params}, video, method=run)


def transformers_reconstruction(model, video):
    """The features and predictions of transformers' model."""
    pixels = torch_runs.pixel_values(video)
    with torch.no_grad():
        features = model.videomae(pixels).last_hidden_state
        return features.numpy(), model(pixels, bool_masked_pos=masked_positions()).logits.numpy()


def hugging_face(folder, **config):
    """VideoMAEForPreTraining from a folder: (model, loading report). The decoder's last norm has VideoMAE's own eps."""
    model, report = transformers.VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True, **config)
    model.decoder.norm.eps = 1e-6
    return model.eval(), report


@pytest.mark.parametrize("variant", ["S", *(pytest.param(name, marks=pytest.mark.long) for name in ("Ti", "B"))])
def test_features_and_predictions_agree_with_transformers_both_ways(variant, tmp_path):
    """Weights exported to transformers, and weights imported from it, give the same features and predictions."""
    run, video = make_run(variant), random_video(2)
    export(run, tmp_path / "ours")
    theirs, report = hugging_face(tmp_path / "ours")
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert report["unexpected_keys"] and all(name.startswith("cross_decoder.") for name in report["unexpected_keys"])
    params = layers.stack_blocks(run.params)

    @torch_runs.jit
    def compute(params, video):
        features, prediction = jax_reconstruction(run.model, params, video)
        return features, tubelets.denormalize_pixels(prediction)  # transformers' pixels lie in [0, 1]

    before = transformers_reconstruction(theirs, video)
    for found, ours in zip(before, compute(params, video), strict=True):
        np.testing.assert_allclose(found, ours, atol=1e-4)

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = jax.tree.map(jnp.zeros_like, params)
    imported = importer.load_videomae(str(tmp_path / "theirs"), fresh, run.model.with_compute(scan_layers=True))
    for found, earlier, ours in zip(
        transformers_reconstruction(theirs, video), before, compute(imported, video), strict=True
    ):
        assert np.abs(found - earlier).max() > 1e-2  # the weights are different ones
        np.testing.assert_allclose(ours, found, atol=1e-4)


def test_a_training_step_agrees_with_transformers(tmp_path):
    """The loss with normalised targets, its gradients, and AdamW's step, from the same weights on the same batch."""
    run, video = make_run("Ti", cross_view=False, depth=2), random_video(2)
    export(dataclasses.replace(run, config=with_target(run.config, "normalized_pixels")), tmp_path / "hf")
    theirs, _ = hugging_face(tmp_path / "hf", attn_implementation="eager")
    before = {name: parameter.detach().clone() for name, parameter in theirs.named_parameters()}
    output = theirs(torch_runs.pixel_values(video), bool_masked_pos=masked_positions())
    output.loss.backward()
    decayed = [parameter for parameter in theirs.parameters() if parameter.ndim > 1 and parameter.shape[0] > 1]
    others = [parameter for parameter in theirs.parameters() if not (parameter.ndim > 1 and parameter.shape[0] > 1)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8).step()

    def loss(params):
        _, prediction = jax_reconstruction(run.model, params, video)
        patches = tubelets.gather_tokens(tubelets.patchify(video, TUBELET), HIDDEN)
        target = losses.targets(patches, "normalized_pixels")
        total, count = losses.reconstruction_loss(prediction, target, jnp.ones(HIDDEN.shape))
        return total / count

    params = layers.stack_blocks(run.params)
    value, gradient = torch_runs.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(output.loss.item(), rel=1e-4)
    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, mask=optim.decayed)

    def step(gradient, params):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    after = to_hugging_face(torch_runs.jit(step)(gradient, params))
    gradient = to_hugging_face(gradient)
    for name, parameter in theirs.named_parameters():
        name = name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")
        assert relative_difference(gradient[name], parameter.grad) < 1e-4, name
        assert relative_difference(after[name], parameter.detach()) < 1e-4, name
    assert any(not torch.equal(parameter, before[name]) for name, parameter in theirs.named_parameters())


def with_target(config, target):
    config = config.copy_and_resolve_references()
    config.loss.target = target
    return config


def to_hugging_face(params):
    return names.to_hugging_face(names.to_videomae(jax.device_get(layers.unstack_blocks(params)), TUBELET))


def relative_difference(first, second) -> float:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def test_the_state_dict_of_vit_s_is_videomaes():
    """VideoMAE's pretrain_videomae_small_patch16_224 with decoder_depth=4 has 218 tensors of 24,029,376 parameters."""
    state = names.to_videomae(make_run("S", cross_view=False).params, TUBELET)
    assert len(state) == 218
    assert sum(array.size for array in state.values()) == 24_029_376
    assert state["encoder.patch_embed.proj.weight"].shape == (384, 3, 2, 16, 16)
    assert state["decoder.head.weight"].shape == (1536, 192)
    assert state["mask_token"].shape == (1, 1, 192) and state["encoder_to_decoder.weight"].shape == (192, 384)
    block = {name.removeprefix("encoder.blocks.3.") for name in state if name.startswith("encoder.blocks.3.")}
    assert block == {
        *("norm1.weight", "norm1.bias", "attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.weight"),
        *("attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"),
        "mlp.fc2.bias",
    }
