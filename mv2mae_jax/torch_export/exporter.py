"""Writes a run's weights in a PyTorch layout, with a model card, and checks what it wrote."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict
from safetensors.numpy import save_file

from console import progress
from console.errors import UserError
from mv2mae_jax import checkpoint, runs, sharding, side_files
from mv2mae_jax.models import classifier, layers, mv2mae, tubelets
from mv2mae_jax.models.classifier import Classifier
from mv2mae_jax.models.joint import JointMAE
from mv2mae_jax.tasks.pretrain import Pretrain
from mv2mae_jax.torch_export import model_card, names

FORMATS = ("videomae", "hf", "port")
PORT_FILE = pathlib.Path(__file__).with_name("mv2mae_torch.py")
_NEEDED_FOR_CHECK = {"videomae": ("torch",), "hf": ("torch", "transformers"), "port": ("torch",)}


class Mismatch(Exception):
    """What PyTorch computes from the exported files is not what JAX computes; the message names the first layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A checkpoint of a run as the exporter needs it."""

    workdir: str
    step: int
    config: config_dict.ConfigDict
    git_revision: str
    metrics: dict[str, float]  # reported at this step
    model: mv2mae.MV2MAE | Classifier  # float32, blocks unrolled
    params: Any  # NumPy, blocks unrolled; the average where the run kept one; without a joint decoder
    class_names: tuple[str, ...]  # of a fine-tuned run, in the order of the logits; else of the data

    @property
    def fine_tuned(self) -> bool:
        return isinstance(self.model, Classifier)

    @property
    def encoder_alone(self) -> bool:
        """Whether the decoder stays behind: a joint one has no place in any of the layouts."""
        return isinstance(self.model, JointMAE)

    @property
    def architecture(self) -> str:
        """The class of the port."""
        return "Classifier" if self.fine_tuned else "PretrainedEncoder" if self.encoder_alone else "MV2MAE"

    @property
    def encoder(self) -> mv2mae.MV2MAE | mv2mae.Encoder:
        """What has the encoder's width, depth, num_heads and mlp_ratio."""
        return self.model.encoder if self.fine_tuned else self.model

    @property
    def model_config(self) -> dict[str, Any]:
        """The arguments of the port's module, and what any reader must know of the architecture."""
        sizes = {name: getattr(self.model, name) for name in ("clip_size", "tubelet_size")}
        sizes |= {name: getattr(self.encoder, name) for name in ("width", "depth", "num_heads", "mlp_ratio")}
        decoders = ("decoder_width", "decoder_depth", "decoder_heads", "cross_view")
        own = {"Classifier": ("num_classes",), "PretrainedEncoder": (), "MV2MAE": decoders}[self.architecture]
        return sizes | {name: getattr(self.model, name) for name in own}


def read_run(workdir: str, step: int | None = None) -> Run:
    """Reads a checkpoint of a run, the newest by default.

    Raises:
      ValueError: there is no such run or step.
    """
    step, record, config = runs.read_record(workdir, step)
    class_names = tuple(record.get("class_names", ()))
    if config.task == "finetune":
        model = classifier.from_config(config, len(class_names))
        init = functools.partial(model.init, video=np.zeros((1, *model.clip_size, 3), np.uint8))
        shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    else:
        task = Pretrain.from_config(config)
        model, shapes = task.model, jax.eval_shape(task.init, jax.random.key(0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = sharding.abstract(shapes, sharding.state_sharding(mesh, shapes))
    params = jax.device_get(checkpoint.load_params(workdir, abstract, step))
    if model.scan_layers:
        params = layers.unstack_blocks(params)
    if isinstance(model, JointMAE):
        params = {"encoder": params["encoder"]}
    return Run(
        workdir=workdir,
        step=step,
        config=config,
        git_revision=record["git_revision"],
        metrics=_metrics_at(workdir, step),
        model=for_comparison(model),
        params=params,
        class_names=class_names,
    )


def for_comparison(model: mv2mae.MV2MAE | Classifier) -> mv2mae.MV2MAE | Classifier:
    """The same model in float32, with blocks that can be told apart."""
    plain = {"dtype": jnp.float32, "scan_layers": False, "remat": "none", "attention": "xla", "folded_norms": False}
    if isinstance(model, Classifier):
        return model.clone(dtype=jnp.float32, encoder=model.encoder.clone(**plain))
    return model.clone(**plain)


def _metrics_at(workdir: str, step: int) -> dict[str, float]:
    rows = side_files.read_rows(pathlib.Path(workdir) / "history.jsonl", side_files.is_numbers)
    reported = {name: value for row in rows if row["step"] == step for name, value in row.items()}
    return {
        name: value for name, value in reported.items() if name.startswith(("train/", "eval", "test/", "held_out/"))
    }


def export(run: Run, layout: str, output: str, bar: progress.Bar) -> str:
    """Writes the folder `output` in one of FORMATS, checks it, and says in one line how far it was compared.

    The folder takes its name only once it has passed; what did not pass stays in `output`.rejected to be looked at.
    `bar` advances by 2.

    Raises:
      ValueError: the run cannot be written in this layout, or `output` exists.
      Mismatch: what PyTorch computes from the files differs from JAX.
    """
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output} exists already. Remove it or choose another --output.")
    if layout == "hf" and run.model.tubelet_size[1] != run.model.tubelet_size[2]:
        raise UserError(
            f"transformers knows square patches only, this model's tubelet is {run.model.tubelet_size} (frames, "
            "height, width). Use --format=videomae or --format=port."
        )
    if layout == "videomae" and not _installed("torch"):
        raise UserError(
            "--format=videomae writes a .pth file, which takes PyTorch: pip install -r requirements-torch.txt. "
            "--format=hf and --format=port can be written without."
        )
    rejected = output.with_name(f"{output.name}.rejected")
    shutil.rmtree(rejected, ignore_errors=True)
    rejected.mkdir(parents=True)
    state = names.to_videomae(run.params, run.model.tubelet_size)
    bar.describe("writing")
    {"videomae": write_videomae, "hf": write_hugging_face, "port": write_port}[layout](run, state, rejected)
    bar.advance()
    bar.describe("comparing with JAX")
    verdict = verify(run, layout, rejected)
    bar.advance()
    (rejected / "README.md").write_text(model_card.text(run, layout, verdict))
    rejected.rename(output)
    return verdict


def write_videomae(run: Run, state: names.Arrays, folder: pathlib.Path) -> None:
    """{'model': state dict}, tensors only, as MCG-NJU/VideoMAE's scripts read it."""
    import torch

    state = names.without_encoder_prefix(state) if run.fine_tuned else state
    torch.save({"model": {name: torch.from_numpy(array) for name, array in state.items()}}, folder / "videomae.pth")


def write_hugging_face(run: Run, state: names.Arrays, folder: pathlib.Path) -> None:
    """A folder for transformers' `from_pretrained`."""
    save_file(names.to_hugging_face(state), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", hugging_face_config(run))
    _, height, width = run.model.clip_size
    preprocessor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(value), 3) for value in tubelets.IMAGENET_MEAN],
        "image_std": [round(float(value), 3) for value in tubelets.IMAGENET_STD],
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)


def hugging_face_config(run: Run) -> dict[str, Any]:
    """config.json; nothing is left to transformers' defaults, which are ViT-B's."""
    model, encoder = run.model, run.encoder
    frames, height, width = model.clip_size
    config = {
        "model_type": "videomae",
        "image_size": height if height == width else [height, width],
        "patch_size": model.tubelet_size[1],
        "num_channels": 3,
        "num_frames": frames,
        "tubelet_size": model.tubelet_size[0],
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    if run.fine_tuned:
        return config | {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": True,
            "id2label": {str(label): name for label, name in enumerate(run.class_names)},
            "label2id": {name: label for label, name in enumerate(run.class_names)},
        }
    if run.encoder_alone:
        return config | {"architectures": ["VideoMAEModel"], "use_mean_pooling": False}
    return config | {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": False,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
        "norm_pix_loss": run.config.loss.target == "normalized_pixels",
    }


def write_port(run: Run, state: names.Arrays, folder: pathlib.Path) -> None:
    """The weights, the PyTorch module that runs them, and its configuration."""
    state = names.without_encoder_prefix(state) if run.fine_tuned else state
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(PORT_FILE, folder / PORT_FILE.name)
    config = {"architecture": run.architecture, "model": run.model_config}
    if run.fine_tuned:
        config |= {"class_names": run.class_names}
    if run.fine_tuned or run.encoder_alone:
        _write_json(folder / "config.json", config)
        return
    settings = run.config.loss
    loss = {
        "target": settings.target,
        "cross_weight": settings.cross_weight,
        "temperature": settings.temperature,
        "ess_fraction": None if settings.temperature is not None else settings.ess_fraction,
        "pixel_range": settings.motion_pixel_range,
        "weighted_views": settings.get("weighted_views", "all"),
    }
    _write_json(folder / "config.json", config | {"loss": loss})


def verify(run: Run, layout: str, folder: pathlib.Path) -> str:
    """Reads the folder back with PyTorch and compares it with JAX; says so, or why it could not.

    Raises:
      Mismatch: the outputs differ.
    """
    absent = [package for package in _NEEDED_FOR_CHECK[layout] if not _installed(package)]
    if absent:
        return (
            f"NOT compared with JAX: {' and '.join(absent)} is not installed here. Run the export again after "
            "`pip install -r requirements-torch.txt`."
        )
    import torch

    from mv2mae_jax.torch_export import check

    inputs = check.FixedInput.of(run.model)
    expected = check.jax_outputs(run.model, run.params, inputs)
    if layout == "videomae":
        worst = check.check_written_videomae(folder / "videomae.pth", run, expected, inputs)
    elif layout == "hf":
        worst = check.check_written_hugging_face(folder, run, expected, inputs)
    else:
        worst = check.check_written_port(folder, expected, inputs)
    if run.fine_tuned:
        parts = "encoder and head"
    elif run.encoder_alone:
        parts = "encoder (the joint decoder is not exported: no layout has a place for it)"
    else:
        parts = "encoder and self-view decoder" if layout == "hf" else "encoder and every decoder"
    return (
        f"Compared with JAX on a fixed input, {parts}, layer by layer: differences up to {worst:.1g} of a layer's "
        f"largest output (torch {torch.__version__})."
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
