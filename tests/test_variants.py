"""Models by name and by config: refused settings, and the meaning of `auto`."""

import pytest

from mv2mae_jax.models import compute, variants
from mv2mae_jax.models.compute import Compute
from tests import tiny


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("XL", {}, "'XL'.*Ti, S, B, L, H"),
        ("S", {"decoder_dept": 4}, "'decoder_dept'.*decoder_depth"),
        ("S", {"clip_size": (15, 128, 128)}, "frames 15 is not a multiple of 2"),
        ("S", {"clip_size": (16, 128, 120)}, "width 120 is not a multiple of 16"),
        ("S", {"num_heads": 5}, "width=384 and num_heads=5"),
        ("S", {"decoder_heads": 5}, "decoder_width=192 and decoder_heads=5"),
        ("S", {"compute": {"remat": "all"}}, "none, block, dots"),
        ("S", {"compute": {"attention": "flash"}}, "xla, chunked, cudnn"),
        ("S", {"compute": {"attention": "cudnn"}}, "16 bits.*float32"),
    ],
)
def test_models_that_cannot_be_built_are_refused(variant, overrides, message):
    with pytest.raises(ValueError, match=message):
        how = {"compute": Compute(**overrides["compute"])} if "compute" in overrides else {}
        variants.build(variant, **({"clip_size": (16, 128, 128), "tubelet_size": (2, 16, 16)} | overrides | how))


@pytest.mark.parametrize(
    ("backend", "devices", "settled"),
    [
        ("cpu", {}, ("float32", "none", "chunked", "rolled", "applied")),
        ("cpu", {"one_device": False}, ("float32", "none", "xla", "rolled", "applied")),
        ("gpu", {}, ("bfloat16", "none", "xla", "unrolled", "folded")),
        ("gpu", {"fused_attention": True}, ("bfloat16", "none", "cudnn", "unrolled", "folded")),
        ("tpu", {}, ("bfloat16", "none", "per_head", "unrolled", "applied")),
    ],
)
def test_auto_depends_on_the_backend_and_never_overrides_a_choice(backend, devices, settled):
    keys = ("compute_dtype", "model.remat", "model.attention", "model.layer_loop", "model.norm_affine")
    config = tiny.make_config()
    assert compute.settle(config, backend, **devices).settled() == dict(zip(keys, settled, strict=True))
    layer_loop, norm_affine = ("unrolled", "folded") if backend == "cpu" else ("rolled", "applied")
    chosen = dict(zip(keys, ("float32", "block", "xla", layer_loop, norm_affine), strict=True))
    config.update_from_flattened_dict(chosen)
    assert compute.settle(config, backend, **devices).settled() == chosen


def test_auto_recomputes_on_a_tpu_and_folds_nothing_on_a_gpu_where_weights_are_cut():
    config = tiny.make_config()
    config.mesh.fsdp = -1
    settled = {backend: compute.settle(config, backend).settled() for backend in ("cpu", "gpu", "tpu")}
    assert {backend: found["model.remat"] for backend, found in settled.items()} == {
        "cpu": "none",
        "gpu": "none",
        "tpu": "dots",
    }
    assert {found["model.norm_affine"] for found in settled.values()} == {"applied"}


def test_auto_recomputes_where_a_tpu_encodes_all_tokens():
    assert compute.settle(tiny.make_finetune_config(), "tpu").remat == "dots"


def test_the_config_chooses_the_form_of_the_norms():
    config = tiny.make_config()
    config.model.norm_affine = "folded"
    assert variants.from_config(config).compute.norm_affine == "folded"
    config.model.norm_affine = "applied"
    assert variants.from_config(config).compute.norm_affine == "applied"


def test_the_config_of_an_older_run_still_makes_its_model():
    config = tiny.make_config()
    expected = variants.from_config(config)
    with config.unlocked():
        del config.model.layer_loop, config.model.norm_affine
    assert variants.from_config(config) == expected


def test_auto_takes_fused_attention_only_in_16_bits_and_for_heads_that_fit(monkeypatch):
    monkeypatch.setattr("mv2mae_jax.distributed.chips.has_fused_attention", lambda device: True)
    config = tiny.make_config()
    assert variants.from_config(config).compute.attention == "chunked", "float32"
    config.compute_dtype = "bfloat16"
    config.model.width, config.model.decoder_width = 8 * config.model.num_heads, 16 * config.model.decoder_heads
    assert variants.from_config(config).compute.attention == "cudnn"
    config.model.decoder_width = 12 * config.model.decoder_heads
    assert variants.from_config(config).compute.attention == "xla"
    config.model.attention = "cudnn"
    with pytest.raises(ValueError, match="the encoder's have 8 and the decoders' 12"):
        variants.from_config(config)
