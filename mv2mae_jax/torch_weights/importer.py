"""`init_from` a PyTorch checkpoint: VideoMAE's .pth, a Hugging Face folder, or one of this project's own exports."""

import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.models import layers, variants
from mv2mae_jax.monitoring import metrics
from mv2mae_jax.torch_weights import files, names

# Part of the model -> its number of heads in Hugging Face's config.json, and in that of the port and here.
_HEADS = {"encoder": ("num_attention_heads", "num_heads"), "decoder": ("decoder_num_attention_heads", "decoder_heads")}


def is_torch_checkpoint(path: str) -> bool:
    """Whether `path` is a PyTorch file or folder and not the workdir of a run."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "config.json"))


def refuse_step(config: config_dict.ConfigDict) -> None:
    """Raises ValueError if a step is asked of an `init_from` that is no run."""
    if config.get("init_from_step") is not None:
        raise UserError(
            f"init_from_step = {config.init_from_step}, but init_from = {config.init_from!r} is no run and has no "
            "steps. Leave init_from_step out, or name a run."
        )


def check_run(
    path: str, trained: config_dict.ConfigDict, model: Any, keys: tuple[str, ...] = ("num_heads", "tubelet_size")
) -> None:
    """Raises ValueError where a run's model differs in a setting that the shapes of its parameters do not show.

    Args:
      path: the run.
      trained: the config that it recorded.
      model: takes the run's parameters, which fit.
      keys: of the part that is taken.
    """
    variant = variants.VARIANTS.get(trained.model.variant)
    for key in keys:
        there, here = trained.model.get(key), getattr(model, key)
        there = getattr(variant, key, here) if there is None else there
        there = tuple(there) if isinstance(there, list) else there  # as JSON records it
        if there != here:
            raise UserError(
                f"init_from = {path} was trained with model.{key} = {there}, this model has {here}. The parameters "
                f"have the same shapes, but would compute something else. Set model.{key}={there}."
            )


def load_videomae(path: str, params: Any, model: Any, *, target: str | None = None) -> Any:
    """Parameters from a PyTorch checkpoint; what it does not hold keeps its initialisation.

    The encoder must be there and fit; a fine-tuned file lacks its final norm. Every other part (`decoder`,
    `cross_decoder`, a classifier's `fc_norm` and `head`) is loaded whole or not at all. Position tables are no
    parameters: they are computed for this model's own number of frames and resolution. What was not loaded, and what
    was left over, is logged with shapes.

    Args:
      path: see `files.read`.
      params: the model's initialised parameters, jax.Array; the result has their shapes and placement.
      model: says what weights do not: `tubelet_size`, `num_heads`, whether layers are stacked.
      target: what the decoders are to predict. A checkpoint with another target leads to a warning.

    Raises:
      ValueError: no such checkpoint, one that holds more than tensors, or an encoder that does not fit (lists all).
    """
    checkpoint = files.read(pathlib.Path(path))
    state, config = checkpoint.state, checkpoint.config
    tell_other_target(path, checkpoint.target, target)
    template = jax.eval_shape(layers.unstack_blocks, params) if model.compute.scan_layers else params
    wanted = {name: tuple(leaf.shape) for name, leaf in names.flatten(template).items()}
    parts = {name.partition("/")[0] for name in wanted}
    _check_architecture(path, state, config, model, parts)

    found, problems = {}, {}
    for name, shape in wanted.items():
        array = state.get(names.videomae_name(name))
        array = None if array is None else names.from_torch_layout(name, array)
        if array is not None and array.shape == shape:
            found[name] = array
        else:
            problems[name] = f"{name}: here {shape}, in the file {'nothing' if array is None else array.shape}"
    # Blocks beyond this model's: the others alone would be an encoder, or a decoder, that was cut short.
    blocks = {part: {name.split("/")[2] for name in wanted if name.startswith(f"{part}/blocks/")} for part in parts}
    for name in state:
        block = re.match(r"(\w+)\.blocks\.(\d+)\.", name)
        if block and block[1] in parts and block[2] not in blocks[block[1]]:
            deeper = f"{block[1]}/blocks/{block[2]}"
            problems[deeper] = f"{deeper}: in the file, beyond the {len(blocks[block[1]])} here (model.depth)"
    unfit = [text for name, text in problems.items() if name.startswith("encoder/") and "encoder/norm/" not in name]
    if unfit:
        raise UserError(f"init_from = {path}: the encoder does not fit this model:\n  " + "\n  ".join(unfit))
    partial = {name.partition("/")[0] for name in problems} - {"encoder"}
    loaded = {name: array for name, array in found.items() if name.partition("/")[0] not in partial}
    _report(wanted, loaded, problems, state)
    return _place(params, loaded, model.compute.scan_layers)


def tell_other_target(path: str, theirs: str | None, ours: str | None) -> None:
    """Warns if the checkpoint's decoders predict another target than this run's. Silent if either is unknown."""
    if None not in (theirs, ours) and theirs != ours:
        metrics.say(
            f"The decoders of {path} predict {theirs}, here they are to predict {ours}: their heads start far off. "
            f"Set loss.target={theirs} to continue as they were trained."
        )


def _check_architecture(path: str, state: names.Arrays, config: dict[str, Any], model: Any, parts: set[str]) -> None:
    """Checks what the shapes of parameters do not show: the order of a tubelet's pixels, the number of heads."""
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
        of_port = config.get("model")
        heads = config.get(hugging_face, of_port.get(ours) if isinstance(of_port, dict) else None)
        if part in parts and heads not in (None, getattr(model, ours)):
            raise UserError(
                f"init_from = {path}: its {part} has {heads} attention heads, this model's {getattr(model, ours)}. "
                f"Set model.{ours}."
            )


def _report(wanted: dict[str, tuple], loaded: names.Arrays, problems: dict[str, str], state: names.Arrays) -> None:
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
