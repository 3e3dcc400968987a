"""What the tests of both ways to PyTorch share."""

import functools
import re

import jax
import numpy as np
import torch

from mv2mae_jax.torch_export import __main__ as command
from mv2mae_jax.torch_weights import names
from tests import tiny

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options=tiny.QUICK)


def run_command(workdir, layout, output, *more: str) -> int:
    """The exporter's command: its exit code."""
    return command.main([f"--workdir={workdir}", f"--format={layout}", f"--output={output}", *more])


def assert_caught(workdir, layout, output, damage, named: str, monkeypatch, capsys) -> None:
    """An export whose weights are damaged on the way is rejected, and the message matches `named`."""
    right = names.to_videomae
    monkeypatch.setattr(names, "to_videomae", lambda *args: damage(right(*args)))
    assert run_command(workdir, layout, output) == 1
    assert re.search(named, capsys.readouterr().err)
    assert not output.exists() and output.with_name(f"{output.name}.rejected").exists()


def pixel_values(video: np.ndarray) -> torch.Tensor:
    """uint8[B, T, H, W, 3] -> what transformers' models take, (B, T, 3, H, W)."""
    normalized = (video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalized.astype(np.float32)).permute(0, 1, 4, 2, 3)
