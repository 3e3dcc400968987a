"""Reads PyTorch checkpoints, whatever wrote them, as VideoMAE's state dict."""

import argparse
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from console.errors import UserError
from mv2mae_jax.torch_weights import heads, names

# Where a .pth keeps its state dict: VideoMAE, DeepSpeed, Lightning.
CONTAINERS = ("model", "module", "state_dict")
_PTH = (b"PK", b"\x80")  # how the archives and pickles of PyTorch begin
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What wrappers put into names: DistributedDataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OWNERS = ("model.", "backbone.")  # attributes under which training programs hold the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file or a folder holds.

    Attributes:
      state: VideoMAE's names -> float32 arrays in PyTorch's layout; heads predict this project's targets.
      config: config.json, {} where there is none.
      target: what the decoders predict, one of losses.TARGET_KINDS; None where nothing says it.
    """

    state: names.Arrays
    config: dict[str, Any]
    target: str | None


def read(path: pathlib.Path) -> Checkpoint:
    """Reads a .pth or .safetensors file, the index of several, or a folder with config.json and one of WEIGHTS.

    Raises:
      ValueError: there is no such checkpoint, it is damaged, or it holds more than tensors.
    """
    config, options = {}, {}
    if path.is_dir():
        config = read_json(path / "config.json", f"init_from = {path}: its config.json")
        found = [path / name for name in WEIGHTS if (path / name).exists()]
        if not found:
            raise UserError(f"init_from = {path}: there is none of {', '.join(WEIGHTS)} in it.")
        path = found[0]
    state = {}
    for file in _shards(path) if path.name.endswith(".index.json") else [path]:
        tensors, more = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)
        state, options = state | tensors, options | more
    state = _without_wrappers({name: np.asarray(array, np.float32) for name, array in state.items()})
    is_hugging_face = any(name.startswith(("videomae.", "embeddings.")) for name in state)
    if is_hugging_face:
        if not any(name.startswith("videomae.") for name in state):  # saved by VideoMAEModel, which has no head
            state = {f"videomae.{name}": array for name, array in state.items()}
        state = names.from_hugging_face(state)
    elif not any(name.startswith("encoder.patch_embed.") for name in state):
        state = {names.with_encoder_prefix(name): array for name, array in state.items()}
    if "architecture" in config:  # the port, which predicts the same targets as this project
        loss = config.get("loss")
        return Checkpoint(state=state, config=config, target=loss.get("target") if isinstance(loss, dict) else None)
    normalizes = config.get("norm_pix_loss", True) if is_hugging_face and config else options.get("normlize_target")
    if normalizes is None:
        target = None
    elif normalizes:
        target = "normalized_pixels"
    else:
        target, state = "pixels", heads.from_unit_pixels(state)
    return Checkpoint(state=state, config=config, target=target)


def read_json(path: pathlib.Path, called: str) -> dict[str, Any]:
    """Reads a table of settings. Raises ValueError if the file, which is `called` so, holds none."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{called} is damaged or no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{called} holds no table of settings.")
    return content


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names. transformers writes an index for large models."""
    weight_map = read_json(index, f"init_from = {index.parent}: its {index.name}").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"init_from = {index} names no files: it has no `weight_map`.")
    files = [index.parent / name for name in sorted(set(map(str, weight_map.values())))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise UserError(f"init_from = {index.parent}: {index.name} names {', '.join(missing)}, missing there.")
    return files


def _read_safetensors(path: pathlib.Path) -> tuple[names.Arrays, dict[str, Any]]:
    import ml_dtypes  # noqa: F401, tells NumPy what bfloat16 is
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path), {}
    except SafetensorError as error:
        raise UserError(f"init_from = {path} is damaged or no safetensors file: {error}.") from error


def _read_pth(path: pathlib.Path) -> tuple[names.Arrays, dict[str, Any]]:
    """(the state dict, the options of the script that wrote the file)."""
    with open(path, "rb") as file:
        if not file.read(2).startswith(_PTH):
            raise UserError(
                f"init_from = {path} is a file, and no PyTorch checkpoint. Name a run's folder (the --workdir of "
                "run.py), or a file or folder with a VideoMAE."
            )
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"init_from = {path}: reading a .pth file takes PyTorch: pip install -r requirements-torch.txt."
        ) from error
    try:
        # VideoMAE's scripts save their options beside the tensors, as a Namespace. Loading one runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage makes PyTorch's readers of archives and pickles raise errors of many types
        raise UserError(
            f"init_from = {path} is damaged or holds more than tensors; reading such a file can run any code, so it "
            "was refused. If you trust where it comes from, save its tensors alone in PyTorch: `torch.save({'model': "
            f"torch.load(PATH, weights_only=False)['model']}}, NEW_PATH)`. PyTorch says: {error}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"init_from = {path} holds a {type(content).__name__}, not a state dict (names -> tensors). Save one: "
            "`torch.save({'model': model.state_dict()}, NEW_PATH)`."
        )
    options = content.get("args", {})
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    for container in CONTAINERS:
        if isinstance(content.get(container), dict):
            content = content[container]
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    return (
        {str(name): tensor.float().numpy() for name, tensor in tensors.items()},
        options if isinstance(options, dict) else {},
    )


def _without_wrappers(state: names.Arrays) -> names.Arrays:
    """Takes wrappers and owners out of the names, so that the model's own names are left."""
    state = {_WRAPPERS.sub("", name): array for name, array in state.items()}
    for owner in _OWNERS:
        state = {name.removeprefix(owner): array for name, array in state.items()}
    return state
