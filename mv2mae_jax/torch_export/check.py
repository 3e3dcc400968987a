"""The exporter's check: what was written is read back by PyTorch and compared with JAX, layer by layer.

Imports torch, and transformers for the Hugging Face layout.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from mv2mae_jax.models import mv2mae, tubelets
from mv2mae_jax.models.classifier import Classifier
from mv2mae_jax.models.joint import JointMAE
from mv2mae_jax.torch_export import mv2mae_torch, names
from mv2mae_jax.torch_export.exporter import Mismatch, Run

# Largest difference in a layer's outputs, relative to its largest output [ours]. Correct exports stay near 1e-6.
TOLERANCE = 1e-4
LAYER_NORM_EPS = 1e-6
TO_HEADS = (".qkv", ".projq", ".projk", ".projv")  # ends of the names of layers.ToHeads


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedInput:
    """The input of every check: noise, and an even split of the tokens. The source is the clip's second view.

    A classifier sees all tokens of the target view.
    """

    video: np.ndarray  # uint8[1, 2, T, H, W, 3]
    target_visible: np.ndarray  # int32[1, Nv]
    source_visible: np.ndarray  # int32[1, 1, Nv]
    hidden: np.ndarray  # int32[1, N - Nv], of the target

    @classmethod
    def of(cls, model: mv2mae.MV2MAE | Classifier) -> "FixedInput":
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, (1, 2, *model.clip_size, 3), dtype=np.uint8)
        target, source = (rng.permutation(model.num_tokens).astype(np.int32) for _ in range(2))
        num_visible = model.num_tokens if isinstance(model, Classifier) else model.num_tokens // 2
        return cls(
            video=video,
            target_visible=np.sort(target[:num_visible])[None],
            source_visible=np.sort(source[:num_visible])[None, None],
            hidden=np.sort(target[num_visible:])[None],
        )


Outputs = dict[str, np.ndarray]  # VideoMAE's name of a module -> its (first) output


def jax_outputs(model: mv2mae.MV2MAE | Classifier, params: Any, inputs: FixedInput) -> Outputs:
    """What every module of the model puts out for the target view; blocks unrolled, computed in full float32."""

    def run(module: mv2mae.MV2MAE | Classifier, video: jax.Array) -> None:
        if isinstance(module, Classifier):
            module(video[:, 0])
            return
        target = module.encode(video[:, 0], inputs.target_visible)
        if isinstance(module, JointMAE):
            return
        module.decode_self(target, inputs.target_visible, inputs.hidden)
        if module.cross_view:
            source = module.encode(video[:, 1], inputs.source_visible[:, 0])[:, None]
            module.decode_cross(target, inputs.target_visible, inputs.hidden, source, inputs.source_visible)

    def apply(params: Any, video: jax.Array) -> Any:
        _, state = model.apply(
            {"params": params}, video, method=run, capture_intermediates=True, mutable=["intermediates"]
        )
        # A module that runs for both views keeps a tuple of outputs, the target view's first.
        return jax.tree.map(lambda calls: calls[0], state["intermediates"], is_leaf=lambda x: isinstance(x, tuple))

    with jax.default_matmul_precision("highest"):
        outputs = jax.device_get(jax.jit(apply)(params, inputs.video))
    named = {names.videomae_name(name.removesuffix("/__call__")): out for name, out in names.flatten(outputs).items()}
    return {name: _heads_last(out) if name.endswith(TO_HEADS) else out for name, out in named.items()}


def _heads_last(output: np.ndarray) -> np.ndarray:
    """[B, heads, N, head_dim], as `layers.ToHeads` has it -> [B, N, heads * head_dim], as PyTorch has it."""
    return output.swapaxes(1, 2).reshape(output.shape[0], output.shape[2], -1)  # (B, N, D)


def record(module: nn.Module, rename: Callable[[str], str], run: Callable[[], Any]) -> Outputs:
    """Runs a PyTorch model without gradients; outputs of its modules in the order in which they were computed."""
    outputs: Outputs = {}

    def hook(name: str) -> Callable:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in outputs:
                outputs[name] = output.numpy()

        return keep

    handles = [child.register_forward_hook(hook(rename(name))) for name, child in module.named_modules() if name]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


def compare(expected: Outputs, found: Outputs, visible: np.ndarray) -> float:
    """Compares all modules that both sides name, in the order of `found`.

    Returns:
      The largest difference, relative to the largest output of its layer.

    Raises:
      Mismatch: naming the first layer that differs.
    """
    last_layers = {"head"} if "head" in expected else {"encoder.norm", "decoder.head"}
    if not any(name.startswith(("head", "decoder.")) for name in expected):  # an encoder alone
        last_layers = {"encoder.norm"}
    assert {"encoder.patch_embed.proj", *last_layers} <= expected.keys() & found.keys()
    worst = 0.0
    for name, output in found.items():
        if name not in expected:
            continue
        if name.startswith("encoder.patch_embed"):  # PyTorch embeds every token, JAX the visible ones
            output = output.reshape(*output.shape[:2], -1).swapaxes(1, 2) if output.ndim == 5 else output
            output = output[:, visible[0]]  # (1, Nv, D)
        reference = expected[name]
        difference = np.abs(output - reference).max() / np.abs(reference).max()
        if not difference <= TOLERANCE:  # also where it is not a number
            raise Mismatch(
                f"{name} is the first layer that differs: by {difference:.2g} of its largest output, where "
                f"{TOLERANCE:g} is allowed. Its own weights are wrong, or something between it and the layer before."
            )
        worst = max(worst, float(difference))
    return worst


def check_eps(module: nn.Module, rename: Callable[[str], str]) -> None:
    """Outputs hardly show a wrong eps as long as a layer's input varies much, so it is read.

    Raises:
      Mismatch: naming the first LayerNorm of another eps.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.LayerNorm) and child.eps != LAYER_NORM_EPS:
            raise Mismatch(f"{rename(name)} is a LayerNorm with eps {child.eps:g}; the model's is {LAYER_NORM_EPS:g}.")


def check_port(port: nn.Module, expected: Outputs, inputs: FixedInput) -> float:
    """The PyTorch port with its decoders, if any, or its classifier; returns and raises as `compare`."""
    rename = names.with_encoder_prefix if isinstance(port, mv2mae_torch.Classifier) else str
    check_eps(port, rename)
    video = torch.from_numpy(inputs.video)
    target, source = (torch.from_numpy(x).long() for x in (inputs.target_visible, inputs.source_visible))
    if isinstance(port, mv2mae_torch.Classifier):
        found = record(port, rename, lambda: port(video[:, 0]))
    elif isinstance(port, mv2mae_torch.MV2MAE):
        found = record(port, rename, lambda: port(video, target, source))
    else:
        found = record(port, rename, lambda: port.encode(video[:, 0], target))
    return compare(expected, found, inputs.target_visible)


def check_written_port(folder: pathlib.Path, expected: Outputs, inputs: FixedInput) -> float:
    """Loads the exported folder strictly with the port; returns and raises as `compare`."""
    return check_port(_strictly(lambda: mv2mae_torch.load(folder)), expected, inputs)


def check_written_videomae(path: pathlib.Path, run: Run, expected: Outputs, inputs: FixedInput) -> float:
    """Loads the .pth as data (`weights_only`) into the port, whose names are VideoMAE's; returns as `compare`."""
    port = getattr(mv2mae_torch, run.architecture)(**run.model_config).eval()
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    _strictly(lambda: port.load_state_dict(state, strict=True))
    return check_port(port, expected, inputs)


def _strictly(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except RuntimeError as error:  # PyTorch's list of missing, unexpected and misshapen parameters
        raise Mismatch(f"The exported weights do not fill the PyTorch model: {error}") from error


def check_written_hugging_face(folder: pathlib.Path, run: Run, expected: Outputs, inputs: FixedInput) -> float:
    """Loads the folder with transformers; encoder and self-view decoder if exported, or classifier; as `compare`."""
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its table of unexpected keys: they are checked here
    (architecture,) = json.loads((folder / "config.json").read_bytes())["architectures"]
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    model.eval()
    unexpected = [name for name in report["unexpected_keys"] if not name.startswith(names.CROSS_DECODER)]
    if report["missing_keys"] or unexpected or report["mismatched_keys"]:
        raise Mismatch(
            f"transformers {transformers.__version__} did not find {sorted(report['missing_keys'])}, had no place for "
            f"{sorted(unexpected)}, and read other shapes of {sorted(report['mismatched_keys'])}."
        )
    prefix = "videomae." if run.encoder_alone else ""  # which transformers leaves out where there is nothing else

    def rename(name: str) -> str:
        return names.videomae_name_from_hugging_face(prefix + name)

    if not run.encoder_alone:
        last_norm = model.fc_norm if run.fine_tuned else model.decoder.norm
        last_norm.eps = LAYER_NORM_EPS  # 1e-5 in transformers' code, whatever config.json says
    check_eps(model, rename)

    video = (inputs.video[:, 0].astype(np.float32) / 255 - tubelets.IMAGENET_MEAN) / tubelets.IMAGENET_STD
    pixels = torch.from_numpy(video).permute(0, 1, 4, 2, 3)
    arguments = {"pixel_values": pixels}
    if not run.fine_tuned:
        masked = torch.zeros(1, run.model.num_tokens, dtype=torch.bool)
        masked[0, inputs.hidden[0]] = True
        arguments["bool_masked_pos"] = masked
    found = record(model, rename, lambda: model(**arguments))
    return compare(expected, found, inputs.target_visible)
