"""`init_from` a PyTorch checkpoint: VideoMAE's .pth, a Hugging Face folder, or one of this project's own exports."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from console.errors import UserError
from mv2mae_jax.models import layers
from mv2mae_jax.torch_export import names

# Part of the model -> its number of heads in Hugging Face's config.json, and in that of the port and here.
_HEADS = {"encoder": ("num_attention_heads", "num_heads"), "decoder": ("decoder_num_attention_heads", "decoder_heads")}


def is_torch_checkpoint(path: str) -> bool:
    """Whether `path` is a PyTorch file or folder and not the workdir of a run."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "config.json"))


def load_videomae(path: str, params: Any, model: Any) -> Any:
    """Parameters from a PyTorch checkpoint; what it does not hold keeps its initialisation.

    The encoder must be there and fit; a fine-tuned file lacks its final norm. Every other part (`decoder`,
    `cross_decoder`, a classifier's `fc_norm` and `head`) is loaded whole or not at all. Position tables are no
    parameters: they are computed for this model's own number of frames and resolution. What was not loaded, and what
    was left over, is logged with shapes.

    Args:
      path: a .pth file (a state dict, bare or under 'model' or 'module'), or a folder with config.json and
        model.safetensors or pytorch_model.bin.
      params: the model's initialised parameters, jax.Array; the result has their shapes and placement.
      model: says what weights do not: `tubelet_size`, `num_heads`, `scan_layers`.

    Raises:
      ValueError: no such checkpoint, one that holds more than tensors, or an encoder that does not fit (lists all).
    """
    state, config = _read(pathlib.Path(path))
    template = jax.eval_shape(layers.unstack_blocks, params) if model.scan_layers else params
    wanted = {name: tuple(leaf.shape) for name, leaf in names.flatten(template).items()}
    _check_architecture(path, state, config, model, {name.partition("/")[0] for name in wanted})

    found, problems = {}, {}
    for name, shape in wanted.items():
        array = state.get(names.videomae_name(name))
        array = None if array is None else names.from_torch_layout(name, array)
        if array is not None and array.shape == shape:
            found[name] = array
        else:
            problems[name] = f"{name}: here {shape}, in the file {'nothing' if array is None else array.shape}"
    unfit = [text for name, text in problems.items() if name.startswith("encoder/") and "encoder/norm/" not in name]
    if unfit:
        raise UserError(f"init_from = {path}: the encoder does not fit this model:\n  " + "\n  ".join(unfit))
    partial = {name.partition("/")[0] for name in problems} - {"encoder"}
    loaded = {name: array for name, array in found.items() if name.partition("/")[0] not in partial}
    _report(path, wanted, loaded, problems, state)
    return _place(params, loaded, model.scan_layers)


def _read(path: pathlib.Path) -> tuple[names.Arrays, dict[str, Any]]:
    """VideoMAE's state dict, whatever the file's layout, and config.json ({} where there is none)."""
    config = {}
    if path.is_dir():
        try:
            config = json.loads((path / "config.json").read_bytes())
        except ValueError as error:
            raise UserError(f"init_from = {path}: its config.json is damaged or no JSON: {error}.") from error
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not files:
            raise UserError(f"init_from = {path}: there is neither model.safetensors nor pytorch_model.bin in it.")
        path = files[0]
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            state = load_file(path)
        except SafetensorError as error:
            raise UserError(f"init_from = {path} is damaged or no safetensors file: {error}.") from error
    else:
        state = _read_pth(path)
    state = {name: np.asarray(array, np.float32) for name, array in state.items()}
    if any(name.startswith(("videomae.", "embeddings.")) for name in state):
        if not any(name.startswith("videomae.") for name in state):  # saved by VideoMAEModel, which has no head
            state = {f"videomae.{name}": array for name, array in state.items()}
        return names.from_hugging_face(state), config
    state = {name.removeprefix("backbone."): array for name, array in state.items()}
    if any(name.startswith("encoder.patch_embed.") for name in state):
        return state, config
    return {names.with_encoder_prefix(name): array for name, array in state.items()}, config


def _read_pth(path: pathlib.Path) -> names.Arrays:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"init_from = {path}: reading a .pth file takes PyTorch: pip install -r requirements-torch.txt."
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage makes PyTorch's readers of archives and pickles raise errors of many types
        raise UserError(
            f"init_from = {path} is damaged or holds more than tensors; reading such a file can run any code, so it "
            "was refused. If you trust where it comes from, save its tensors alone in PyTorch: `torch.save({'model': "
            f"torch.load(PATH, weights_only=False)['model']}}, NEW_PATH)`. PyTorch says: {error}"
        ) from error
    for container in ("model", "module"):
        if isinstance(content.get(container), dict):
            content = content[container]
    return {name: tensor.float().numpy() for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _check_architecture(path: str, state: names.Arrays, config: dict[str, Any], model: Any, parts: set[str]) -> None:
    """What parameters of equal shape do not show: the order of a tubelet's pixels, the number of heads."""
    kernel = state.get("encoder.patch_embed.proj.weight")
    if kernel is None:
        raise UserError(
            f"init_from = {path} is no VideoMAE checkpoint: patch_embed.proj.weight is missing. It begins with "
            f"{', '.join(list(state)[:5]) or 'nothing'}."
        )
    if tuple(kernel.shape[2:]) != tuple(model.tubelet_size):
        raise UserError(
            f"init_from = {path} embeds tubelets of {tuple(kernel.shape[2:])} (frames, height, width), this model of "
            f"{tuple(model.tubelet_size)}. Set model.tubelet_size."
        )
    for part, (hugging_face, ours) in _HEADS.items():
        heads = config.get(hugging_face, config.get("model", {}).get(ours))
        if part in parts and heads not in (None, getattr(model, ours)):
            raise UserError(
                f"init_from = {path}: its {part} has {heads} attention heads, this model's {getattr(model, ours)}. "
                f"Set model.{ours}."
            )


def _report(
    path: str, wanted: dict[str, tuple], loaded: names.Arrays, problems: dict[str, str], state: names.Arrays
) -> None:
    logging.info("%d of %d parameters taken from %s.", len(loaded), len(wanted), path)
    missing = [
        problems.get(name, f"{name}: fits, but the rest of its part does not") for name in wanted if name not in loaded
    ]
    used = {names.videomae_name(name) for name in loaded}
    left = [f"{name} {array.shape}" for name, array in state.items() if name not in used]
    for title, lines in (("Not loaded, initialised afresh", missing), ("Left over in the file", left)):
        if lines:
            logging.warning("%s:\n  %s", title, "\n  ".join(lines))


def _place(params: Any, loaded: names.Arrays, scan_layers: bool) -> Any:
    """Puts the loaded arrays where the initialised ones are, stacking the blocks' if they are scanned."""

    def place(path: tuple, leaf: jax.Array) -> jax.Array:
        name = "/".join(key.key for key in path)
        if scan_layers and "/blocks/" in name:
            layer_names = [name.replace("/blocks/", f"/blocks/{layer}/") for layer in range(leaf.shape[0])]
            array = np.stack([loaded[n] for n in layer_names]) if layer_names[0] in loaded else None
        else:
            array = loaded.get(name)
        if array is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(place, params)
