"""The port in torch.export and ONNX with any batch size, in torch.compile, and in other dtypes."""

import numpy as np
import pytest
import torch
from torch import nn

from mv2mae_jax.torch_export import mv2mae_torch

SIZES = {"clip_size": (4, 32, 48), "tubelet_size": (2, 8, 8), "width": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 4}
DECODERS = {"decoder_width": 12, "decoder_depth": 2, "decoder_heads": 3, "cross_view": True}
NUM_TOKENS = 48


class Features(nn.Module):
    """A module whose `forward` is the model's `features`, as torch.export and ONNX take only `forward`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video):
        return self.model.features(video)


class Reconstruction(Features):
    def forward(self, video, target_visible, source_visible):
        return tuple(self.model(video, target_visible, source_visible).values())


def random_video(*batch):
    video = np.random.default_rng(batch[0]).integers(0, 256, (*batch, *SIZES["clip_size"], 3), dtype=np.uint8)
    return torch.from_numpy(video)


def random_masks(batch):
    order = torch.rand(batch, 2, NUM_TOKENS, generator=torch.Generator().manual_seed(batch)).argsort(-1)
    visible = order[..., :20].sort(-1).values
    return visible[:, 0], visible[:, 1:]


def make(kind):
    """(module, a function batch size -> its inputs)."""
    torch.manual_seed(0)
    if kind == "classifier":
        return mv2mae_torch.Classifier(**SIZES, num_classes=5).eval(), lambda batch: (random_video(batch),)
    if kind == "encoder":
        model = mv2mae_torch.PretrainedEncoder(**SIZES)
        return Features(model).eval(), lambda batch: (random_video(batch),)
    model = mv2mae_torch.MV2MAE(**SIZES, **DECODERS)
    if kind == "features":
        return Features(model).eval(), lambda batch: (random_video(batch),)
    return Reconstruction(model).eval(), lambda batch: (random_video(batch, 2), *random_masks(batch))


def assert_close(found, expected, **tolerance):
    for one, other in zip(as_tuple(found), as_tuple(expected), strict=True):
        one = one.float() if isinstance(one, torch.Tensor) else torch.from_numpy(one)
        torch.testing.assert_close(one, other, **tolerance)


def as_tuple(outputs):
    return outputs if isinstance(outputs, (tuple, list)) else (outputs,)


KINDS = ("classifier", "features", "encoder", "reconstruction")
# Compilers are slow, so that only one kind is tested by default.
MOSTLY_SLOW = ("classifier", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_torch_export_leaves_the_batch_size_open(kind):
    module, inputs = make(kind)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, inputs(2), dynamic_shapes=tuple({0: batch} for _ in inputs(2)))
    with torch.no_grad():
        for size in (1, 3, 8):
            assert_close(program.module()(*inputs(size)), module(*inputs(size)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MOSTLY_SLOW)
def test_onnx_leaves_the_batch_size_open(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, inputs = make(kind)
    path = tmp_path / "model.onnx"
    axes = tuple({0: torch.export.Dim("batch")} for _ in inputs(2))
    torch.onnx.export(module, inputs(2), path, dynamo=True, dynamic_shapes=axes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    with torch.no_grad():
        for size in (1, 3, 8):
            arguments = inputs(size)
            found = session.run(None, {name: x.numpy() for name, x in zip(names, arguments, strict=True)})
            assert_close(found, module(*arguments), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_makes_one_graph(kind):
    """The backend "eager" does without the C++ compiler."""
    module, inputs = make(kind)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in (2, 3):
            assert_close(compiled(*inputs(size)), module(*inputs(size)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_is_that_of_the_weights(kind, dtype):
    module, inputs = make(kind)
    with torch.no_grad():
        expected = as_tuple(module(*inputs(2)))
        found = as_tuple(module.to(dtype)(*inputs(2)))
    assert all(one.dtype == dtype for one in found)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() / other.norm() < {torch.bfloat16: 0.05}.get(dtype, 0.01)


def test_the_loss_in_bfloat16():
    model = mv2mae_torch.MV2MAE(**SIZES, **DECODERS)
    settings = {"target": "pixels", "cross_weight": 1.0, "ess_fraction": 0.6}
    arguments = (random_video(2, 2), *random_masks(2))
    with torch.no_grad():
        expected = model.loss(*arguments, **settings)
        found = model.to(torch.bfloat16).loss(*arguments, **settings)
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
