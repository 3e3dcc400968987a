"""Schedule, weight-decay mask, optimisers, and the learning rates of fine-tuned layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_base
from mv2mae_jax import optim
from mv2mae_jax.models import classifier, layers, variants
from tests import tiny


def config(**changes):
    base = pretrain_base.get_config()
    base.update(changes)
    return base


def test_schedule_is_a_linear_warmup_and_a_cosine():
    schedule = optim.Schedule.from_config(config(num_epochs=100, warmup_epochs=10.0), steps_per_epoch=2.5)
    assert (schedule.warmup_steps, schedule.total_steps) == (25, 250)
    peak, final = 1.5e-4 * 1024 / 256, 1e-5 * 1024 / 256
    for step in (0, 1, 10, 25, 26, 100, 249, 250):
        if step < 25:
            expected = peak * step / 25
        else:
            expected = final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - 25) / (250 - 25)))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_total_steps_wins_over_epochs_and_shortens_the_warmup():
    schedule = optim.Schedule.from_config(config(total_steps=50), steps_per_epoch=100)
    assert (schedule.warmup_steps, schedule.total_steps) == (5, 50)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs"):
        optim.Schedule.from_config(config(num_epochs=20), steps_per_epoch=3)


@pytest.fixture(scope="module")
def params():
    model = variants.build(
        "Ti", clip_size=(4, 16, 16), tubelet_size=(2, 8, 8), width=24, depth=2, decoder_width=12, decoder_depth=2
    )
    from mv2mae_jax.objectives import masking

    draw = lambda seed, shape: masking.draw_mask(  # noqa: E731
        jax.random.key(seed), batch_shape=shape, grid=model.grid, mask_ratio=0.5
    )
    video = jnp.zeros((1, 2, 4, 16, 16, 3), jnp.uint8)
    init = jax.jit(lambda key: model.init(key, video, draw(1, (1,)), draw(2, (1, 1))))
    return init(jax.random.key(0))["params"]


def test_weight_decay_acts_on_kernels_alone(params):
    chosen = optim.decayed(params)
    flat = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(chosen)[0]}
    assert sum(flat.values()) and not all(flat.values())
    for name, is_decayed in flat.items():
        exempt = any(word in name for word in ("bias", "norm", "mask_token"))
        assert is_decayed == (not exempt), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parameters_without_gradient_only_decay(params, name):
    base = pretrain_base.get_config().optimizer
    base.name = name
    schedule = optim.Schedule(peak_learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(base, schedule)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        leaf = params
        for key in path:
            leaf = leaf[key.key]
        expected = -0.1 * base.weight_decay * leaf if path[-1].key == "kernel" else jnp.zeros_like(leaf)
        np.testing.assert_allclose(update, expected, atol=1e-7, err_msg=str(path))


def test_muon_orthogonalises_every_layer_of_a_stack(params):
    """The singular values of each layer's update are near each other, which those of the gradient are not."""
    base = pretrain_base.get_config().optimizer
    base.name, base.weight_decay = "muon", 0.0
    schedule = optim.Schedule(peak_learning_rate=1.0, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(base, schedule)
    keys = iter(jax.random.split(jax.random.key(0), 200))
    grads = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    kernels = np.asarray(updates["encoder"]["blocks"]["attn"]["proj"]["kernel"])
    assert kernels.shape == (2, 24, 24)
    for kernel in kernels:
        singular = np.linalg.svd(kernel, compute_uv=False)
        # Newton-Schulz with 5 steps brings singular values into about [0.7, 1.2] of each other; a random matrix of
        # this size spans more than two orders of magnitude.
        assert singular[0] / singular[-1] < 5


# Layer-wise decay of the learning rate for depth 3 and decay 0.5, as in VideoMAE's fine-tuning.
LAYER_TABLE = {
    "encoder/patch_embed": 0.0625,
    "encoder/blocks/0": 0.125,
    "encoder/blocks/1": 0.25,
    "encoder/blocks/2": 0.5,
    "fc_norm": 1.0,
    "head": 1.0,
}


def classifier_params(scan_layers: bool):
    config = tiny.make_finetune_config("model.depth=3", f"model.scan_layers={scan_layers}")
    model = classifier.from_config(config, num_classes=5)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.clip_size, 3), jnp.uint8))["params"]
    # Biases are set to other values than zero, so that a decay of them would show.
    return jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.3, leaf), params)


def unrolled_leaves(tree, scan_layers: bool) -> dict[str, np.ndarray]:
    tree = layers.unstack_blocks(tree) if scan_layers else tree
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def table_value(name: str) -> float:
    (value,) = [scale for part, scale in LAYER_TABLE.items() if name.startswith(part + "/")]
    return value


@pytest.mark.parametrize("scan_layers", [True, False])
def test_layer_decay_follows_the_table(scan_layers):
    params = classifier_params(scan_layers)
    scales = optim.layer_scales(params, 0.5)
    spread = jax.tree.map(lambda scale, leaf: jnp.broadcast_to(scale, leaf.shape), scales, params)
    found = unrolled_leaves(spread, scan_layers)
    assert {part for part in LAYER_TABLE for name in found if name.startswith(part + "/")} == LAYER_TABLE.keys()
    for name, scale in found.items():
        np.testing.assert_array_equal(scale, table_value(name), err_msg=name)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_step_moves_every_parameter_by_its_layers_share(scan_layers, weight_decay):
    """Adam's first step is the learning rate times the gradient's sign, plus the decay, in each layer's proportion."""
    params = classifier_params(scan_layers)
    optimizer_config = tiny.make_finetune_config("optimizer.layer_decay=0.5").optimizer
    optimizer_config.weight_decay = weight_decay
    schedule = optim.Schedule(peak_learning_rate=0.01, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(optimizer_config, schedule)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.choice([-2.0, 3.0], leaf.shape).astype(np.float32), params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    before, gradient, moved = (unrolled_leaves(tree, scan_layers) for tree in (params, grads, updates))
    for name, update in moved.items():
        decay = weight_decay * before[name] if name.endswith("kernel") else 0.0
        expected = -0.01 * table_value(name) * (np.sign(gradient[name]) + decay)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-9, err_msg=name)


def test_updates_of_muon_are_scaled_by_the_same_table():
    params = classifier_params(True)
    schedule = optim.Schedule(peak_learning_rate=0.01, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    updates = []
    for layer_decay in (0.5, 1.0):
        config = tiny.make_finetune_config("optimizer.name=muon", f"optimizer.layer_decay={layer_decay}").optimizer
        optimizer = optim.make_optimizer(config, schedule)
        updates.append(unrolled_leaves(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0], True))
    for name, update in updates[0].items():
        np.testing.assert_allclose(update, table_value(name) * updates[1][name], rtol=1e-5, atol=1e-9, err_msg=name)


def test_no_layer_decay_asks_for_no_blocks():
    mixer = {"encoder": {"mixing": {"kernel": jnp.ones((2, 2))}}, "head": {"kernel": jnp.ones((2, 2))}}
    assert jax.tree.leaves(optim.layer_scales(mixer, 1.0)) == [1, 1]
    with pytest.raises(ValueError, match=r"this one has mixing\. Set --config\.optimizer\.layer_decay=1\."):
        optim.layer_scales(mixer, 0.75)
