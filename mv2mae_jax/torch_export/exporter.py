"""Writes a run's weights in a PyTorch layout, with a model card, and checks what it wrote."""

import importlib.util
import json
import pathlib
import shutil
import tempfile
from typing import Any

from safetensors.numpy import save_file

from console import progress
from console.errors import UserError
from data.store.whole_files import refuse_existing, reserve
from mv2mae_jax.models import tubelets
from mv2mae_jax.torch_export import model_card
from mv2mae_jax.torch_export.trained_run import Mismatch, TrainedRun
from mv2mae_jax.torch_weights import heads, names

FORMATS = ("videomae", "hf", "port")
PORT_FILE, PROCESSOR_FILE, CROSS_VIEW_FILE = (
    pathlib.Path(__file__).with_name(f"mv2mae_{name}.py") for name in ("torch", "processor", "cross_view")
)
_BESIDE_WEIGHTS = 2**18  # [ours] bytes that the other files of a folder, and the names of the weights, take at most


def export(run: TrainedRun, layout: str, output: str, bar: progress.Bar) -> str:
    """Writes the folder `output` in one of FORMATS, checks it, and returns a line about what was compared.

    The folder gets its name only after it has passed. A folder that did not pass becomes `output`.rejected. What an
    export that was killed had written (.NAME.tmp beside `output`) is removed by the next one. `bar` advances by 2.

    Raises:
      ValueError: the run cannot be written in this layout, or `output` exists.
      OSError: it cannot be written, for instance because the disk is full.
      Mismatch: what PyTorch computes from the files differs from JAX.
    """
    output = pathlib.Path(output)
    refuse_existing(output)
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
    error = run.config.loss.get("error", "squared") if run.has_decoders else "squared"
    if layout == "port" and error != "squared":
        raise UserError(
            f"The run was trained with loss.error={error!r}, and the PyTorch port has the squared error alone. Use "
            "--format=hf or --format=videomae, or add the error to `reconstruction_loss` in "
            "mv2mae_jax/torch_export/mv2mae_torch.py."
        )
    unfinished, rejected = output.with_name(f".{output.name}.tmp"), output.with_name(f"{output.name}.rejected")
    for former in (unfinished, rejected):
        shutil.rmtree(former, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        state = names.to_videomae(run.params, run.model.tubelet_size)
        with tempfile.TemporaryFile(dir=unfinished) as file:  # a full disk: torch and safetensors raise no OSError
            reserve(file, sum(array.nbytes for array in state.values()) + _BESIDE_WEIGHTS)
        bar.describe("writing")
        {"videomae": write_videomae, "hf": write_hugging_face, "port": write_port}[layout](run, state, unfinished)
        bar.advance()
        bar.describe("comparing with JAX")
        verdict = verify(run, layout, unfinished)
        bar.advance()
        (unfinished / "README.md").write_text(model_card.text(run, layout, verdict), encoding="utf-8")
        (unfinished / "LICENSE").write_text(model_card.LICENCE)
    except Mismatch:
        unfinished.rename(rejected)
        raise
    except BaseException:  # Ctrl-C, or a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(output)
    return verdict


def write_videomae(run: TrainedRun, state: names.Arrays, folder: pathlib.Path) -> None:
    """{'model': state dict} as MCG-NJU/VideoMAE's scripts read it.

    After pre-training also 'args', with the option of VideoMAE's pre-training script that says what the heads predict.
    """
    import torch

    state = names.without_encoder_prefix(state) if run.fine_tuned else with_their_target(run, state)
    more = {"args": {"normlize_target": run.normalizes_patches}} if run.has_decoders else {}
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({"model": tensors, **more}, folder / "videomae.pth")


def with_their_target(run: TrainedRun, state: names.Arrays) -> names.Arrays:
    """The state dict, with heads that predict the pixels of VideoMAE's and transformers' losses."""
    return heads.to_unit_pixels(state) if run.has_decoders and not run.normalizes_patches else state


def write_hugging_face(run: TrainedRun, state: names.Arrays, folder: pathlib.Path) -> None:
    """A folder for transformers' `from_pretrained`."""
    state = names.to_hugging_face(with_their_target(run, state))
    _write_weights(folder / "model.safetensors", state)
    _write_json(folder / "config.json", hugging_face_config(run))
    for name, content in processor_configs(run).items():
        _write_json(folder / name, content)
    shutil.copy(PROCESSOR_FILE, folder / PROCESSOR_FILE.name)
    if run.has_cross_view:
        for file in (PORT_FILE, CROSS_VIEW_FILE):
            shutil.copy(file, folder / file.name)


def processor_configs(run: TrainedRun) -> dict[str, dict[str, Any]]:
    """The file names and contents of transformers' image processor and video processor.

    `auto_map` names the class that frames are chosen and cropped by as in training. transformers' own classes, for
    those who do not run a folder's code, know one length for the shorter side of every video. It is the crop's longer
    side, so that the crop lies within the frame, upright or not: a square crop is that of training, another one shows
    less.
    """
    frames, height, width = run.model.clip_size
    class_of_folder = f"{PROCESSOR_FILE.stem}.MV2MAEProcessor"
    common = {
        "auto_map": {"AutoImageProcessor": class_of_folder, "AutoVideoProcessor": class_of_folder},
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(value), 3) for value in tubelets.IMAGENET_MEAN],
        "image_std": [round(float(value), 3) for value in tubelets.IMAGENET_STD],
        "num_frames": frames,
        "frame_stride": run.config.data.frame_stride,
    }
    return {
        "preprocessor_config.json": {"image_processor_type": "VideoMAEImageProcessor", **common},
        "video_preprocessor_config.json": {"video_processor_type": "VideoMAEVideoProcessor", **common},
    }


def hugging_face_config(run: TrainedRun) -> dict[str, Any]:
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
        **clip_times(run),
    }
    if run.fine_tuned:
        return config | {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": True,
            "problem_type": "single_label_classification",  # else transformers takes one class for a regression
            "id2label": {str(label): name for label, name in enumerate(run.class_names)},
            "label2id": {name: label for label, name in enumerate(run.class_names)},
        }
    if run.left_out:
        return config | {"architectures": ["VideoMAEModel"], "use_mean_pooling": False}
    if run.has_cross_view:
        config["auto_map"] = {"AutoModelForPreTraining": f"{CROSS_VIEW_FILE.stem}.MV2MAEForPreTraining"}
    return config | {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": False,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": int(model.decoder_width * model.mlp_ratio),
        "norm_pix_loss": run.normalizes_patches,
    }


def clip_times(run: TrainedRun) -> dict[str, Any]:
    """Settings that no model reads, but those who choose frames: their distance, and the data's frames per second."""
    rates = {} if run.frame_rates is None else {"frame_rates": run.frame_rates}
    return {"frame_stride": run.config.data.frame_stride, **rates}


def write_port(run: TrainedRun, state: names.Arrays, folder: pathlib.Path) -> None:
    """The weights, the PyTorch module that runs them, and its configuration."""
    state = names.without_encoder_prefix(state) if run.fine_tuned else state
    _write_weights(folder / "model.safetensors", state)
    shutil.copy(PORT_FILE, folder / PORT_FILE.name)
    config = {"architecture": run.architecture, "model": run.model_config, **clip_times(run)}
    if run.fine_tuned:
        config["class_names"] = run.class_names
    elif not run.left_out:
        config["loss"] = loss_settings(run)
    _write_json(folder / "config.json", config)


def loss_settings(run: TrainedRun) -> dict[str, Any]:
    """The arguments of the port's `loss` that are those of the run's."""
    settings = run.config.loss
    return {
        "target": settings.target,
        "cross_weight": settings.cross_weight,
        "temperature": settings.temperature,
        "ess_fraction": None if settings.temperature is not None else settings.ess_fraction,
        "pixel_range": settings.motion_pixel_range,
        "weighted_views": settings.get("weighted_views", "all"),
    }


def verify(run: TrainedRun, layout: str, folder: pathlib.Path) -> str:
    """Reads the folder back with PyTorch and compares it with JAX. The line says so, or why this was not possible.

    Raises:
      Mismatch: the outputs differ.
    """
    needed = ("torch", "transformers") if layout == "hf" else ("torch",)
    absent = [package for package in needed if not _installed(package)]
    if absent:
        return (
            f"NOT compared with JAX: {' and '.join(absent)} is not installed here. Run the export again after "
            "`pip install -r requirements-torch.txt`."
        )
    import torch

    from mv2mae_jax.torch_export import check

    inputs = check.FixedInput.of(run.model)
    expected = check.jax_outputs(run.model, run.params, inputs)
    worst = {
        "videomae": check.check_written_videomae,
        "hf": check.check_written_hugging_face,
        "port": check.check_written_port,
    }[layout](folder, run, expected, inputs)
    if run.fine_tuned:
        parts = "encoder and head"
    elif run.left_out:
        parts = f"encoder ({run.left_out})"
    else:
        parts = "encoder and every decoder"
    loss = ", and the loss" if run.has_decoders and layout != "videomae" else ""
    return (
        f"Compared with JAX on a fixed input, {parts}, layer by layer{loss}: differences up to {worst:.1g} of a "
        f"layer's largest output{' or of the loss' if loss else ''} (torch {torch.__version__})."
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _write_weights(path: pathlib.Path, state: names.Arrays) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets nobody but the user read it


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
