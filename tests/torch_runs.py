"""Helpers that the tests of export to PyTorch and of import from it share."""

import functools
import re

import jax
import numpy as np
import torch

from mv2mae_jax.torch_export import __main__ as command
from mv2mae_jax.torch_weights import names
from tests import tiny

CLASS_NAMES = ("sit down", "stand up", "wave", "jump", "clap")

# These tests compile long and run briefly.
jit = functools.partial(jax.jit, compiler_options=tiny.QUICK)


def run_command(workdir, layout, output, *more: str) -> int:
    """Runs the exporter's command and returns its exit code."""
    return command.main([f"--workdir={workdir}", f"--format={layout}", f"--output={output}", *more])


def assert_caught(workdir, layout, output, damage, named: str, monkeypatch, capsys) -> None:
    """Checks that an export with damaged weights is rejected, with a message that matches `named`."""
    right = names.to_videomae
    monkeypatch.setattr(names, "to_videomae", lambda *args: damage(right(*args)))
    assert run_command(workdir, layout, output) == 1
    assert re.search(named, capsys.readouterr().err)
    assert not output.exists() and output.with_name(f"{output.name}.rejected").exists()


def pixel_values(video: np.ndarray) -> torch.Tensor:
    """uint8[B, T, H, W, 3] -> float32[B, T, 3, H, W], normalised as transformers' models take them."""
    normalized = (video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalized.astype(np.float32)).permute(0, 1, 4, 2, 3)
