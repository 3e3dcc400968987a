"""Masks have exact counts, split the tokens and are independent. Also: which tokens are decoded."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mv2mae_jax.objectives import mask_kinds
from mv2mae_jax.objectives.mask_kinds import MASK_KINDS, num_visible_tokens
from mv2mae_jax.objectives.masking import choose_decoded, draw_mask

GRID = (4, 6, 5)  # not square, so that exchanged rows and columns are noticed
NUM_TOKENS = 4 * 6 * 5


def as_boolean(indices: jax.Array, num_tokens: int = NUM_TOKENS) -> np.ndarray:
    """int32[..., K] -> bool[..., N], True at the indices."""
    return (np.asarray(indices)[..., None] == np.arange(num_tokens)).any(-2)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    kind=st.sampled_from(list(MASK_KINDS)),
    mask_ratio=st.sampled_from([0.1, 0.5, 0.7, 0.9]),
)
def test_a_mask_splits_the_tokens_of_each_clip(seed, kind, mask_ratio):
    num_groups = {"random": NUM_TOKENS, "tube": 30}.get(kind, MASK_KINDS[kind].num_groups(GRID))
    assume(0 < int(mask_ratio * num_groups) < num_groups)
    mask = draw_mask(jax.random.key(seed), batch_shape=(2, 3), grid=GRID, mask_ratio=mask_ratio, kind=kind)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.concatenate([mask.visible, mask.masked], axis=-1)
    np.testing.assert_array_equal(np.sort(both, axis=-1), np.broadcast_to(np.arange(NUM_TOKENS), both.shape))
    assert (np.diff(mask.visible, axis=-1) > 0).all() and (np.diff(mask.masked, axis=-1) > 0).all()
    assert mask.masked.shape == (2, 3, NUM_TOKENS // num_groups * int(mask_ratio * num_groups))
    assert mask.visible.shape[-1] == num_visible_tokens(GRID, mask_ratio, kind)


def test_tubes_hide_the_same_places_in_every_time_slice():
    mask = draw_mask(jax.random.key(0), batch_shape=(8,), grid=GRID, mask_ratio=0.7, kind="tube")
    slices = as_boolean(mask.masked).reshape(8, 4, 30)
    np.testing.assert_array_equal(slices, np.broadcast_to(slices[:, :1], slices.shape))


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_every_token_is_masked_equally_often_and_views_independently(kind):
    draws = 4000
    mask = draw_mask(jax.random.key(1), batch_shape=(draws, 2), grid=(2, 3, 4), mask_ratio=0.5, kind=kind)
    hidden = as_boolean(mask.masked, 24)  # (draws, views, N)
    sigma = np.sqrt(0.25 / draws)
    assert np.abs(hidden.mean(0) - 0.5).max() < 5 * sigma
    agreement = (hidden[:, 0] == hidden[:, 1]).mean(0)  # 1/2 for independent views
    assert np.abs(agreement - 0.5).max() < 5 * sigma


def test_masks_follow_from_the_key_alone():
    draw = jax.jit(lambda key: draw_mask(key, batch_shape=(4,), grid=GRID, mask_ratio=0.7))
    first, again, other = draw(jax.random.key(0)), draw(jax.random.key(0)), draw(jax.random.key(1))
    np.testing.assert_array_equal(first.masked, again.masked)
    assert (np.asarray(first.masked) != np.asarray(other.masked)).any()


SHARDED_DRAW = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mv2mae_jax.objectives.masking import draw_mask
assert jax.device_count() == 8
draw = lambda key: draw_mask(key, batch_shape=(16,), grid=(4, 6, 5), mask_ratio=0.7)
mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
sharded = jax.jit(draw, out_shardings=NamedSharding(mesh, PartitionSpec('data')))(jax.random.key(3))
assert len(sharded.masked.sharding.device_set) == 8
np.testing.assert_array_equal(sharded.masked, draw(jax.random.key(3)).masked)
"""


def test_masks_do_not_depend_on_the_sharding():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-c", SHARDED_DRAW], env=environment, check=True)


@pytest.mark.parametrize(
    ("mask_ratio", "kind", "message"),
    [
        (0.001, "random", "120 visible and 0 masked of 120 tokens"),
        (1.0, "random", "0 visible and 120 masked"),
        (0.03, "tube", "30 visible and 0 masked of 30 places per time slice"),
        (0.5, "no_such_kind", "random, tube"),
    ],
)
def test_impossible_masks_are_refused(mask_ratio, kind, message):
    with pytest.raises(ValueError, match=message):
        num_visible_tokens(GRID, mask_ratio, kind)


def test_a_kind_that_cannot_divide_the_grid_is_refused(monkeypatch):
    whole = mask_kinds.MaskKind("blocks of 8x8 places", lambda grid: grid[1] // 8 * (grid[2] // 8), lambda t, grid: t)
    monkeypatch.setitem(mask_kinds.MASK_KINDS, "block", whole)
    with pytest.raises(ValueError, match="of 0 blocks of 8x8 places none can be hidden"):
        num_visible_tokens(GRID, 0.5, "block")


def test_decoding_all_masked_tokens_is_the_default_order():
    masked = draw_mask(jax.random.key(0), batch_shape=(2,), grid=GRID, mask_ratio=0.7).masked
    np.testing.assert_array_equal(choose_decoded(jax.random.key(1), masked, decode_ratio=1.0, grid=GRID), masked)


@pytest.mark.parametrize("decode_ratio", [0.05, 0.5, 0.9])
def test_decoded_tokens_are_some_of_the_masked_ones(decode_ratio):
    masked = draw_mask(jax.random.key(0), batch_shape=(2, 3), grid=GRID, mask_ratio=0.7).masked
    decoded = choose_decoded(jax.random.key(1), masked, decode_ratio=decode_ratio, grid=GRID)
    assert decoded.shape == (2, 3, int(decode_ratio * masked.shape[-1]))
    assert (np.diff(decoded, axis=-1) > 0).all()
    assert not (as_boolean(decoded) & ~as_boolean(masked)).any()


def test_half_of_all_tokens_decodes_running_cells():
    grid = (8, 4, 6)
    everything = np.broadcast_to(np.arange(8 * 4 * 6, dtype=np.int32), (5, 8 * 4 * 6))
    decoded = choose_decoded(jax.random.key(0), everything, decode_ratio=0.5, grid=grid)
    cells = as_boolean(decoded, 8 * 4 * 6).reshape(5, 8, 2, 2, 3, 2).transpose(0, 1, 2, 4, 3, 5)
    assert (cells.sum((-2, -1)) == 2).all()  # two places of each cell in each time slice
    for start in range(5):  # any four slices hold every place twice
        assert (cells[:, start : start + 4].sum(1) == 2).all()
    assert (cells[:, 1:] != cells[:, :-1]).any((-2, -1)).all()  # each cell's choice changes from slice to slice


@pytest.mark.parametrize("decode_ratio", [0.0, 0.001, 1.1])
def test_impossible_decode_ratios_are_refused(decode_ratio):
    masked = np.arange(30, dtype=np.int32)
    with pytest.raises(ValueError, match=f"decode_ratio={decode_ratio} of 30"):
        choose_decoded(jax.random.key(0), masked, decode_ratio=decode_ratio, grid=GRID)
