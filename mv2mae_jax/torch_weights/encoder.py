"""Loads the encoder of an exported folder or of a Hugging Face VideoMAE. Its config.json gives the sizes."""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from console.errors import UserError
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import frozen_encoder, mv2mae, variants
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.torch_weights import files, importer


def load(folder: str, mesh: jax.sharding.Mesh) -> tuple[mv2mae.MV2MAE, Any, dict[str, Any]]:
    """(the model, its encoder's parameters, what is told of its training's data) of a folder.

    The last are `frame_stride` and `frame_rates`, as of `inference.Encoder`; None where the folder does not say.

    Raises:
      ValueError: it has no config.json, this is no VideoMAE's, or the weights do not fit it.
    """
    if not os.path.isdir(folder):
        raise UserError(
            f"{folder} is a file, which does not say the sizes of the model: name a folder with config.json."
        )
    path = os.path.join(folder, "config.json")
    config = files.read_json(pathlib.Path(path), path)
    try:
        sizes = _of_port(config) if "architecture" in config else _of_hugging_face(config)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: its config.json is not that of a VideoMAE or of --format=port: {type(error).__name__}: {error}."
        ) from error
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    final_norm = sizes.pop("final_norm")
    model = variants.build("S", compute=Compute(dtype=dtype), **sizes).clone(final_norm=final_norm)
    create = functools.partial(frozen_encoder.init_encoder, model)
    params = sharding.create(mesh, create, jax.random.key(0))
    params = importer.load_videomae(folder, {"encoder": params}, model)["encoder"]
    return model, params, {name: config.get(name) for name in ("frame_stride", "frame_rates")}


def _of_port(config: dict[str, Any]) -> dict[str, Any]:
    model = config["model"]
    names = ("clip_size", "tubelet_size", "width", "depth", "num_heads", "mlp_ratio")
    return {name: model[name] for name in names} | {"final_norm": config["architecture"] != "Classifier"}


def _of_hugging_face(config: dict[str, Any]) -> dict[str, Any]:
    size, patch = config["image_size"], config["patch_size"]
    return {
        "clip_size": (config["num_frames"], *([size, size] if isinstance(size, int) else size)),
        "tubelet_size": (config["tubelet_size"], *([patch, patch] if isinstance(patch, int) else patch)),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "final_norm": not config.get("use_mean_pooling", True),  # transformers' default
    }
