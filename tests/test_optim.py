"""Schedule, weight-decay mask and optimisers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_base
from mv2mae_jax import optim
from mv2mae_jax.models import mv2mae


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
    model = mv2mae.build(
        "Ti", clip_size=(4, 16, 16), tubelet_size=(2, 8, 8), width=24, depth=2, decoder_width=12, decoder_depth=2
    )
    from mv2mae_jax import masking

    draw = lambda seed, shape: masking.draw_mask(  # noqa: E731
        jax.random.key(seed), batch_shape=shape, grid=model.grid, mask_ratio=0.5
    )
    video = jnp.zeros((1, 2, 4, 16, 16, 3), jnp.uint8)
    return model.init(jax.random.key(0), video, draw(1, (1,)), draw(2, (1, 1)))["params"]


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
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        leaf = params
        for key in path:
            leaf = leaf[key.key]
        expected = -0.1 * base.weight_decay * leaf if path[-1].key == "kernel" else jnp.zeros_like(leaf)
        np.testing.assert_allclose(update, expected, atol=1e-7, err_msg=str(path))


def test_muon_orthogonalises_every_layer_of_a_stack(params):
    """The update of each layer's matrix has singular values near each other, whatever the gradient's."""
    base = pretrain_base.get_config().optimizer
    base.name, base.weight_decay = "muon", 0.0
    schedule = optim.Schedule(peak_learning_rate=1.0, final_learning_rate=0.0, warmup_steps=0, total_steps=10)
    optimizer = optim.make_optimizer(base, schedule)
    keys = iter(jax.random.split(jax.random.key(0), 200))
    grads = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    kernels = np.asarray(updates["encoder"]["blocks"]["attn"]["proj"]["kernel"])
    assert kernels.shape == (2, 24, 24)
    for kernel in kernels:
        singular = np.linalg.svd(kernel, compute_uv=False)
        # Newton-Schulz with 5 steps brings singular values into about [0.7, 1.2] of each other; a random matrix of
        # this size spans more than two orders of magnitude.
        assert singular[0] / singular[-1] < 5
