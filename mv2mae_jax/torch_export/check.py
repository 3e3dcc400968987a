"""The exporter's check: PyTorch reads what was written, and its outputs are compared with JAX's, layer by layer.

Imports torch, and transformers for the Hugging Face layout.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import torch
from torch import nn

from mv2mae_jax.models import mv2mae, tubelets
from mv2mae_jax.models.classifier import Classifier
from mv2mae_jax.models.tubelets import Mask
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.torch_export import mv2mae_torch
from mv2mae_jax.torch_export.trained_run import Mismatch, TrainedRun
from mv2mae_jax.torch_weights import heads, names

# Largest difference in a layer's outputs, relative to its largest output [ours]. Correct exports stay near 1e-6.
TOLERANCE = 1e-4
LAYER_NORM_EPS = 1e-6
TO_HEADS = (".qkv", ".projq", ".projk", ".projv")  # ends of the names of layers.ToHeads


@flax.struct.dataclass
class FixedInput:
    """The input of every check: clips of noise, with half of the tokens visible. The second view is the source.

    A classifier sees all tokens of the target view.
    """

    video: np.ndarray  # uint8[1, 2, T, H, W, 3]
    target: Mask  # int32[1, Nv] and int32[1, N - Nv]
    source: Mask  # int32[1, 1, Nv] and int32[1, 1, N - Nv]

    @classmethod
    def of(cls, model: mv2mae.MV2MAE | Classifier) -> "FixedInput":
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, (1, 2, *model.clip_size, 3), dtype=np.uint8)
        num_visible = model.num_tokens if isinstance(model, Classifier) else model.num_tokens // 2
        target, source = (
            Mask(visible=np.sort(order[:num_visible])[None], masked=np.sort(order[num_visible:])[None])
            for order in (rng.permutation(model.num_tokens).astype(np.int32) for _ in range(2))
        )
        return cls(video=video, target=target, source=jax.tree.map(lambda indices: indices[None], source))


Outputs = dict[str, np.ndarray]  # VideoMAE's name of a module -> its (first) output


def jax_outputs(model: mv2mae.MV2MAE | Classifier, params: Any, inputs: FixedInput) -> Outputs:
    """What every module of the model puts out for the target view; blocks unrolled, computed in full float32."""
    with jax.default_matmul_precision("highest"):
        outputs = jax.device_get(_intermediates(params, inputs, model=model))
    named = {names.videomae_name(name.removesuffix("/__call__")): out for name, out in names.flatten(outputs).items()}
    return {name: _heads_last(out) if name.endswith(TO_HEADS) else out for name, out in named.items()}


@functools.partial(jax.jit, static_argnames="model")
def _intermediates(params: Any, inputs: FixedInput, *, model: mv2mae.MV2MAE | Classifier) -> Any:
    """Outputs by the modules' names in JAX."""

    def run(module: mv2mae.MV2MAE | Classifier) -> None:
        video, visible, hidden = inputs.video, inputs.target.visible, inputs.target.masked
        if isinstance(module, Classifier):
            module(video[:, 0])
            return
        target = module.encode(video[:, 0], visible)
        if params.keys() == {"encoder"}:
            return
        module.decode_self(target, visible, hidden)
        if module.cross_view:
            source = module.encode(video[:, 1], inputs.source.visible[:, 0])[:, None]
            module.decode_cross(target, visible, hidden, source, inputs.source.visible)

    _, state = model.apply({"params": params}, method=run, capture_intermediates=True, mutable=["intermediates"])
    # A module that runs for both views keeps a tuple of outputs, the target view's first.
    return jax.tree.map(lambda calls: calls[0], state["intermediates"], is_leaf=lambda x: isinstance(x, tuple))


def _heads_last(output: np.ndarray) -> np.ndarray:
    """[B, heads, N, head_dim], as `layers.ToHeads` has it -> [B, N, heads * head_dim], as PyTorch has it."""
    return output.swapaxes(1, 2).reshape(output.shape[0], output.shape[2], -1)  # (B, N, D)


def record(module: nn.Module, rename: Callable[[str], str], run: Callable[[], Any]) -> Outputs:
    """Runs a PyTorch model without gradients; outputs of its modules in the order in which they were computed."""
    outputs: Outputs = {}

    def keep(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.setdefault(name, output.numpy())

    named = [(rename(name), child) for name, child in module.named_modules() if name]
    handles = [child.register_forward_hook(functools.partial(keep, name)) for name, child in named]
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


def in_their_target(run: TrainedRun, expected: Outputs) -> Outputs:
    """The outputs of JAX with predictions as VideoMAE and transformers make them: pixels lie in [0, 1]."""
    if not run.has_decoders or run.normalizes_patches:
        return expected
    predictions = {name for head in heads.HEADS for name in (head, head.removesuffix(".head"))} & expected.keys()
    return expected | {name: np.asarray(tubelets.denormalize_pixels(expected[name])) for name in predictions}


def their_loss(run: TrainedRun, predicted: np.ndarray, inputs: FixedInput) -> float:
    """The unweighted loss of the self-view decoder's [1, N - Nv, P] by VideoMAE's definition, as JAX has it."""
    patches = tubelets.patchify(inputs.video[:, 0], run.model.tubelet_size)
    hidden = tubelets.gather_tokens(patches, inputs.target.masked)  # (1, N - Nv, P)
    target = losses.targets(hidden, "normalized_pixels") if run.normalizes_patches else hidden / 255
    return float(np.square(predicted - np.asarray(target)).mean())


def own_loss(run: TrainedRun, inputs: FixedInput) -> float:
    """The loss of pre-training of the two views: motion-weighted, of every decoder, by the run's config."""
    objective = dataclasses.replace(Pretrain.from_config(run.config), model=run.model, num_source_views=1)
    masks = {
        "target_mask": inputs.target,
        "source_mask": inputs.source,
        "decoded_target": inputs.target.masked,
        "decoded_source": inputs.source.masked,
    }
    with jax.default_matmul_precision("highest"):
        return float(_loss(run.params, inputs.video, masks, objective=objective))


@functools.partial(jax.jit, static_argnames="objective")
def _loss(params: Any, video: jax.Array, masks: dict[str, Any], *, objective: Pretrain) -> jax.Array:
    return objective.loss(params, objective.tokenize({"video": video}) | masks)[0]


def compare_loss(expected: float, found: float, whose: str) -> float:
    """The relative difference of two losses of the same predictions.

    Raises:
      Mismatch: they differ: what the heads predict is not what the other side compares with.
    """
    difference = abs(found - expected) / abs(expected)
    if not difference <= TOLERANCE:  # also where it is not a number
        raise Mismatch(
            f"The loss by {whose} is {found:.6g}, by JAX {expected:.6g}: they compare the predictions with different "
            "targets, or weigh them differently."
        )
    return difference


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
    target, source = (torch.from_numpy(mask.visible).long() for mask in (inputs.target, inputs.source))
    if isinstance(port, mv2mae_torch.Classifier):
        found = record(port, rename, lambda: port(video[:, 0]))
    elif isinstance(port, mv2mae_torch.MV2MAE):
        found = record(port, rename, lambda: port(video, target, source))
    else:
        found = record(port, rename, lambda: port.encode(video[:, 0], target))
    return compare(expected, found, inputs.target.visible)


def check_written_port(folder: pathlib.Path, run: TrainedRun, expected: Outputs, inputs: FixedInput) -> float:
    """Loads the exported folder strictly with the port; its loss, too; returns and raises as `compare`."""
    port = _strictly(lambda: mv2mae_torch.load(folder))
    worst = check_port(port, expected, inputs)
    if not run.has_decoders:
        return worst
    video, target, source = map(torch.from_numpy, (inputs.video, inputs.target.visible, inputs.source.visible))
    settings = json.loads((folder / "config.json").read_text())["loss"]
    with torch.no_grad():
        found = port.loss(video, target.long(), source.long(), **settings).item()
    return max(worst, compare_loss(own_loss(run, inputs), found, "the port"))


def check_written_videomae(folder: pathlib.Path, run: TrainedRun, expected: Outputs, inputs: FixedInput) -> float:
    """Loads videomae.pth as data (`weights_only`) into the port, whose names are VideoMAE's; returns as `compare`."""
    port = getattr(mv2mae_torch, run.architecture)(**run.model_config).eval()
    state = torch.load(folder / "videomae.pth", map_location="cpu", weights_only=True)["model"]
    _strictly(lambda: port.load_state_dict(state, strict=True))
    return check_port(port, in_their_target(run, expected), inputs)


def _strictly(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except RuntimeError as error:  # PyTorch's list of missing, unexpected and misshapen parameters
        raise Mismatch(f"The exported weights do not fill the PyTorch model: {error}") from error


def check_written_hugging_face(folder: pathlib.Path, run: TrainedRun, expected: Outputs, inputs: FixedInput) -> float:
    """Loads the folder with transformers; encoder and decoders, or classifier; the loss; returns as `compare`."""
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its table of unexpected keys: they are checked here
    (name,) = json.loads((folder / "config.json").read_bytes())["architectures"]
    architecture = getattr(transformers, name)
    if run.has_cross_view:
        from mv2mae_jax.torch_export import mv2mae_cross_view  # a copy is in the folder

        architecture = mv2mae_cross_view.MV2MAEForPreTraining
    model, report = architecture.from_pretrained(folder, output_loading_info=True)
    model.eval()
    unexpected = report["unexpected_keys"]
    if report["missing_keys"] or unexpected or report["mismatched_keys"]:
        raise Mismatch(
            f"transformers {transformers.__version__} did not find {sorted(report['missing_keys'])}, had no place for "
            f"{sorted(unexpected)}, and read other shapes of {sorted(report['mismatched_keys'])}."
        )
    prefix = "videomae." if run.left_out else ""  # which transformers leaves out where there is nothing else

    def rename(name: str) -> str:
        return names.videomae_name_from_hugging_face(prefix + name)

    if not run.left_out:
        last_norm = model.fc_norm if run.fine_tuned else model.decoder.norm
        last_norm.eps = LAYER_NORM_EPS  # 1e-5 in transformers' code, whatever config.json says
    check_eps(model, rename)

    video = (inputs.video.astype(np.float32) / 255 - tubelets.IMAGENET_MEAN) / tubelets.IMAGENET_STD
    pixels = torch.from_numpy(video).permute(0, 1, 2, 5, 3, 4)  # (1, 2, T, 3, H, W)
    target_masked, source_masked = (
        torch.zeros(1, run.model.num_tokens, dtype=torch.bool).scatter_(1, torch.from_numpy(hidden).long(), True)
        for hidden in (inputs.target.masked, inputs.source.masked[:, 0])
    )
    outputs = []

    def compute() -> None:
        masked = {} if run.fine_tuned else {"bool_masked_pos": target_masked}
        outputs.append(model(pixel_values=pixels[:, 0], **masked))
        if run.has_cross_view:
            model.decode_cross(pixels[:, 0], target_masked, pixels[:, 1:], source_masked[:, None])

    found = record(model, rename, compute)
    expected = in_their_target(run, expected)
    worst = compare(expected, found, inputs.target.visible)
    if not run.has_decoders:
        return worst
    loss = their_loss(run, expected["decoder.head"], inputs)
    return max(worst, compare_loss(loss, outputs[0].loss.item(), "transformers"))
