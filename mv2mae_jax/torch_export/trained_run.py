"""The run that is exported: its model in float32, its parameters, and the facts for the model card."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from console.errors import UserError
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import classifier, layers, mv2mae
from mv2mae_jax.models.classifier import Classifier
from mv2mae_jax.models.compute import Compute
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint, run_record, side_files

EXPORTED_TARGETS = ("pixels", "normalized_pixels")  # values of loss.target that the layouts' decoders predict


class Mismatch(Exception):
    """What PyTorch computes from the exported files is not what JAX computes; the message names the first layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A checkpoint of a run as the exporter needs it."""

    workdir: str
    step: int
    config: config_dict.ConfigDict
    git_revision: str
    metrics: dict[str, float]  # reported at this step
    model: mv2mae.MV2MAE | Classifier  # float32, blocks unrolled
    params: Any  # NumPy, blocks unrolled; the average where the run kept one
    class_names: tuple[str, ...]  # of a fine-tuned run, in the order of the logits; else of the data
    frame_rates: tuple[float, float] | None = None  # (lowest, highest) frames per second of the data, if the run says

    @property
    def fine_tuned(self) -> bool:
        return isinstance(self.model, Classifier)

    @property
    def left_out(self) -> str:
        """Why only the encoder of a pre-trained run is exported; empty if its decoders are."""
        if self.fine_tuned:
            return ""
        if type(self.model) is not mv2mae.MV2MAE:
            return f"no layout has a place for the decoders of {type(self.model).__name__}"
        if self.config.loss.target not in EXPORTED_TARGETS:
            return f"decoders of the layouts cannot predict loss.target={self.config.loss.target!r}"
        return ""

    @property
    def architecture(self) -> str:
        """The class of the port."""
        return "Classifier" if self.fine_tuned else "PretrainedEncoder" if self.left_out else "MV2MAE"

    @property
    def has_decoders(self) -> bool:
        """The self-view decoder at least."""
        return not self.fine_tuned and not self.left_out

    @property
    def has_cross_view(self) -> bool:
        return self.has_decoders and self.model.cross_view

    @property
    def normalizes_patches(self) -> bool:
        """Whether a pre-trained run's targets are normalised patches; else they are pixels."""
        return self.config.loss.target == "normalized_pixels"

    @property
    def encoder(self) -> mv2mae.MV2MAE | mv2mae.Encoder:
        """The object with the encoder's width, depth, num_heads and mlp_ratio."""
        return self.model.encoder if self.fine_tuned else self.model

    @property
    def model_config(self) -> dict[str, Any]:
        """The arguments of the port's module, and what any reader must know of the architecture."""
        sizes = {name: getattr(self.model, name) for name in ("clip_size", "tubelet_size")}
        sizes |= {name: getattr(self.encoder, name) for name in ("width", "depth", "num_heads", "mlp_ratio")}
        decoders = ("decoder_width", "decoder_depth", "decoder_heads", "cross_view")
        own = {"Classifier": ("num_classes",), "PretrainedEncoder": (), "MV2MAE": decoders}[self.architecture]
        return sizes | {name: getattr(self.model, name) for name in own}


def read_run(workdir: str, step: int | None = None) -> TrainedRun:
    """Reads a checkpoint of a run, the newest by default.

    Raises:
      ValueError: there is no such run or step, or its encoder has a class that cannot be exported.
    """
    step, record, config = run_record.read_record(workdir, step)
    class_names = tuple(record.get("class_names", ()))
    if config.task == "finetune":
        model = classifier.from_config(config, len(class_names))
        init = functools.partial(model.init, video=np.zeros((1, *model.clip_size, 3), np.uint8))
        shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    else:
        objective = Pretrain.from_config(config)
        model, shapes = objective.model, jax.eval_shape(objective.init, jax.random.key(0))
    backbone = type(model.encoder) if isinstance(model, Classifier) else model.backbone
    if backbone is not mv2mae.Encoder:
        raise UserError(
            f"{workdir}: its backbone is a {backbone.__name__}, and the layouts of PyTorch have names for the parts of "
            f"{mv2mae.Encoder.__name__} alone. `python -m mv2mae_jax.inference` exports any encoder, to a file for JAX."
        )
    shapes = sharding.abstract(sharding.one_device(), shapes)
    params = jax.device_get(checkpoint.load_params(workdir, shapes, step))
    if model.compute.scan_layers:
        params = layers.unstack_blocks(params)
    rows = side_files.read_rows(pathlib.Path(workdir) / side_files.HISTORY_FILE, side_files.is_numbers)
    reported = {name: value for row in rows if row["step"] == step for name, value in row.items()}
    quality = ("train/", "eval", "test/", "held_out/")
    run = TrainedRun(
        workdir=workdir,
        step=step,
        config=config,
        git_revision=record["git_revision"],
        metrics={name: value for name, value in reported.items() if name.startswith(quality)},
        model=for_comparison(model),
        params=params,
        class_names=class_names,
        frame_rates=record.get("frame_rates"),
    )
    return dataclasses.replace(run, params={"encoder": params["encoder"]}) if run.left_out else run


def for_comparison(model: mv2mae.MV2MAE | Classifier) -> mv2mae.MV2MAE | Classifier:
    """The same model in float32, with unrolled blocks, so that each has a name."""
    return model.with_compute(**dataclasses.asdict(Compute(scan_layers=False)))
