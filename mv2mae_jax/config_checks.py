"""Checks of a config before anything is compiled. Imports no JAX, so mistakes are reported at once."""

import ast
import math
import os
import pathlib
from collections.abc import Iterator

from ml_collections import config_dict

from console.errors import UserError
from data.store.directories import directories
from mv2mae_jax.config import accepts, base_of, flatten, parse_steps, suggestion, type_of
from mv2mae_jax.objectives.mask_kinds import MASK_KINDS, num_visible_tokens


def _table(file: str, name: str) -> ast.Dict | ast.Tuple:
    """The value of a constant of this package. It is read: importing it would import JAX."""
    tree = ast.parse((pathlib.Path(__file__).parent / file).read_text())
    return next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == name)


def _names_in(file: str, name: str) -> tuple[str, ...]:
    """The keys of a dict, or the elements of a tuple, of this package."""
    value = _table(file, name)
    return tuple(name.value for name in (value.keys if isinstance(value, ast.Dict) else value.elts))


# Keys with their allowed values. What a table defines is named only there.
_CHOICES = {
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "data.cache": ("auto", "off", "memory"),
    "data.motion_on": ("host", "device"),
    "model.variant": _names_in("models/variants.py", "VARIANTS"),
    "model.decoder": _names_in("models/variants.py", "DECODERS"),
    "masking.kind": tuple(MASK_KINDS),
    "loss.weighted_views": ("all", "target"),
    "loss.target": _names_in("objectives/losses.py", "TARGET_KINDS"),
    "loss.error": _names_in("objectives/losses.py", "ERRORS"),
    "optimizer.name": _names_in("optim.py", "OPTIMIZERS"),
    "eval.split": ("test", "held_out"),
    "probe.pooling": _names_in("features/__init__.py", "POOLINGS"),
} | {
    f"model.{key}": ("auto", *choices)
    for key, choices in ast.literal_eval(_table("models/compute.py", "CHOICES")).items()
}

PROBES = (*_names_in("evaluation/probe.py", "CLASSIFIERS"), "retrieval", "geometry", "motion")
_BASELINES = _names_in("evaluation/probe.py", "BASELINES")

# What a number must fulfil, and the keys of which it is asked. Keys that may be None ("not set") may be so here.
# fmt: off
_RANGES = {
    "must be greater than 0": (lambda value: value > 0, (
        "total_steps", "num_epochs", "global_batch_size",
        "data.num_frames", "data.frame_stride", "data.repeats", "data.cache_gb", "data.labels_per_class",
        "model.width", "model.depth", "model.num_heads",
        "model.decoder_width", "model.decoder_depth", "model.decoder_heads",
        "loss.temperature", "loss.motion_pixel_range",
        "optimizer.accumulation_steps", "optimizer.base_learning_rate", "optimizer.clip_norm", "optimizer.eps",
        "checkpoint.every_steps", "checkpoint.keep", "log.every_steps",
        "eval.every_steps", "eval.batch_size", "eval.max_takes", "eval.clips_per_element", "eval.clips_per_view",
        "eval.crops_per_clip",
        "probe.knn_k", "probe.epochs", "probe.batch_size",
        "limits.skipped_updates", "limits.heartbeat_timeout_seconds",
    )),
    "must not be negative": (lambda value: value >= 0, (
        "warmup_epochs", "init_from_step", "data.num_workers", "data.num_source_views",
        "model.head_init_scale", "loss.cross_weight",
        "optimizer.weight_decay", "optimizer.final_base_learning_rate",
        "eval.max_feature_takes", "eval.num_pictures", "eval.picture_blur_sigma",
        "augment.randaugment_num_ops", "augment.randaugment_magnitude", "augment.randaugment_magnitude_std",
        "mix.mixup_alpha", "mix.cutmix_alpha",
    )),
    "must lie in [0, 2**32)": (lambda value: 0 <= value < 2**32, ("seed", "data.label_seed")),
    "must lie in [0, 1]": (lambda value: 0 <= value <= 1, (
        "augment.random_erasing", "augment.flip", "mix.mix_probability", "mix.cutmix_probability",
        "loss.label_smoothing", "limits.damaged_samples",
    )),
    "must lie in [0, 1)": (lambda value: 0 <= value < 1, (
        "data.holdout_fraction", "model.drop_path", "optimizer.b1", "optimizer.b2",
    )),
    "must lie in (0, 1]": (lambda value: 0 < value <= 1, (
        "masking.decode_ratio", "loss.ess_fraction", "optimizer.layer_decay",
    )),
    "must lie in (0, 1)": (lambda value: 0 < value < 1, ("optimizer.ema_decay", "probe.validation_fraction")),
    "must be greater than 0, or -1 for the devices that are left": (
        lambda value: value > 0 or value == -1, ("mesh.data", "mesh.fsdp"),
    ),
}
# fmt: on
# What a key's limit means.
_LIMITS = {
    "loss.temperature": "inf is the plain MAE loss",
    "loss.ess_fraction": "1 weights all tokens alike",
    "optimizer.layer_decay": "1 switches it off",
    "mix.mixup_alpha": "0 switches mixup off",
    "mix.cutmix_alpha": "0 switches CutMix off",
    "data.labels_per_class": "None takes all labels",
    "eval.max_takes": "None takes all",
}


def validate(config: config_dict.ConfigDict, *, data_dir: bool = True) -> None:
    """Checks all that can be checked without data and devices; with `data_dir`, also that it names prepared sets.

    Raises:
      ValueError: lists everything that is wrong, each with its values and the fix.
    """
    values = dict(flatten(config))
    if told := list(_form(config, values)):  # all other checks need a whole config
        raise _refusal(told)
    wrong = (
        {
            key: f"is not one of {', '.join(options)}.{suggestion(str(values[key]), options)}"
            for key, options in _CHOICES.items()
            if key in values and values[key] not in options
        }
        | {
            key: f"{rule}{f'; {_LIMITS[key]}' if key in _LIMITS else ''}."
            for rule, (fulfilled, keys) in _RANGES.items()
            for key in keys
            if values.get(key) is not None and not fulfilled(values[key])
        }
        | {
            key: "must be finite."
            for key, value in values.items()
            if isinstance(value, float) and not math.isfinite(value) and key != "loss.temperature"
        }
    )
    told = [f"{key} = {values[key]!r} {what}" for key, what in wrong.items()]
    if not wrong.keys() & {"masking.kind", "data.repeats", "optimizer.accumulation_steps"}:  # looked up, or divided by
        told += _combinations(config)
    if data_dir:
        told += _folders(config)
    if told:
        raise _refusal(told)


def _refusal(told: list[str]) -> UserError:
    return UserError("The config cannot be run:\n  - " + "\n  - ".join(told))


def _form(config: config_dict.ConfigDict, values: dict[str, object]) -> Iterator[str]:
    """Finds keys that nothing reads, keys that are missing, and values of another type: a file may set anything."""
    base = base_of(config)
    known = dict(flatten(base))
    if missing := ", ".join(key for key in known if key not in values):
        yield f"It lacks {missing}. Begin with the config of configs/{config.task}_base.py, and set keys one by one."
    for key, value in values.items():
        if key not in known:
            yield f"{key} = {value!r}: task {config.task!r} has no such key.{suggestion(key, known)}"
        elif not accepts(key, value, kind := type_of(base, key), known[key]):
            yield f"{key} = {value!r} is not a value of type {kind.__name__}; the base holds {known[key]!r}."


def _combinations(config: config_dict.ConfigDict) -> Iterator[str]:
    if config.model.layer_loop == "rolled" and not config.model.scan_layers:
        yield "model.layer_loop = 'rolled' needs stacked layers: set model.scan_layers=True, or layer_loop='auto'."
    grid = yield from _clip(config)
    if grid and config.task == "pretrain":
        yield from _pretraining(config, grid)
    if config.task == "finetune":
        yield from _fine_tuning(config)
    if config.task == "probe":
        yield from _probing(config)
    elif config.init_from in _BASELINES and not os.path.exists(config.init_from):
        yield f"init_from = {config.init_from!r} is for probes. From scratch it is left empty: --config.init_from="
    if "optimizer" in config:
        yield from _optimization(config)
    at_steps = config.get("eval", {}).get("at_steps", ())
    if not all(isinstance(step, int) and step > 0 for step in at_steps):
        yield f"eval.at_steps = {at_steps} must hold whole numbers greater than 0."
    if (config.mesh.data, config.mesh.fsdp) == (-1, -1):
        yield "mesh.data and mesh.fsdp are both -1: only one can take the devices that are left."


# What generates the sets that configs name, by their first folder.
_GENERATED = {
    "demo_output": ", or generate it: `make demo`",
    "benchmark_output": ", or generate it: `python -m benchmarks.method --data_only`",
}


def _folders(config: config_dict.ConfigDict) -> Iterator[str]:
    if not config.data.dir:
        yield (
            "data.dir is not set. Prepare a data set (`python -m data.prepare --help`) and pass "
            "--config.data.dir=DIR; `make demo` makes one to try."
        )
        return
    folders = directories(config.data.dir)
    for directory in folders:
        if not os.path.isfile(os.path.join(directory, "prepared.json")):
            exists = os.path.isdir(directory)
            state = "is not a finished prepared data set" if exists else "does not exist"
            raw = " If it holds the raw videos, it is the --input, and --output is a new folder." if exists else ""
            several = f" (one of the {len(folders)} that data.dir names)" if len(folders) > 1 else ""
            yield (
                f"data.dir = {directory}{several} {state} (no prepared.json in it). Make it with "
                f"`python -m data.prepare --dataset=NAME --input=RAW_VIDEOS --output={directory}`"
                f"{_GENERATED.get(directory.split(os.sep)[0], '')}.{raw}"
            )


def _clip(config: config_dict.ConfigDict) -> Iterator[str]:
    """Finds problems of clips and crops; returns the grid of tokens, None if there is no valid one."""
    data, model = config.data, config.model
    sizes = (*data.crop_size, *model.tubelet_size)
    if len(data.crop_size) != 2 or len(model.tubelet_size) != 3 or not all(isinstance(size, int) for size in sizes):
        yield (
            f"data.crop_size = {data.crop_size} must be (height, width) and model.tubelet_size = {model.tubelet_size} "
            "(frames, height, width), in whole numbers."
        )
        return None
    clip, grid = (data.num_frames, *data.crop_size), []
    for axis, size, step in zip(("frames", "height", "width"), clip, model.tubelet_size, strict=True):
        if step < 1 or size < 1 or size % step:
            nearest = max(step, round(size / max(step, 1)) * max(step, 1))
            key = "data.num_frames" if axis == "frames" else "data.crop_size"
            yield (
                f"The clip's {axis} ({size}) is not a multiple of the tubelet's ({step}); {nearest} would be. "
                f"Set {key} or model.tubelet_size."
            )
        grid.append(size // max(step, 1))
    crop_scales = data.get("crop_scales", (1.0,))
    if not all(isinstance(scale, int | float) and 0 < scale <= 1 for scale in crop_scales) or not crop_scales:
        yield f"data.crop_scales = {crop_scales} must be fractions in (0, 1]."
    return grid if min(grid) > 0 else None


def _pretraining(config: config_dict.ConfigDict, grid: list[int]) -> Iterator[str]:
    data, model, masking, loss = config.data, config.model, config.masking, config.loss
    for pair in data.view_pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(view, str) for view in pair)):
            yield f"data.view_pairs holds {pair!r}; a pair is (target view, source view), e.g. (('C002', 'C003'),)."
    if data.num_source_views < model.cross_view:
        yield (
            f"data.num_source_views = {data.num_source_views}: the cross-view decoder needs at least one source view; "
            "set it to 1, or model.cross_view=False for a single-view masked autoencoder."
        )
    if model.decoder == "joint" and model.cross_view:
        yield (
            "model.decoder = 'joint' stands in for the self-view and the cross-view decoder: set "
            "model.cross_view=False with it, or model.decoder=mv2mae."
        )
    if model.decoder == "joint" and data.num_source_views < 1:
        yield (
            f"data.num_source_views = {data.num_source_views}: the joint decoder needs at least two views; set it to "
            "1, or model.decoder=mv2mae for a single-view masked autoencoder."
        )
    if model.decoder == "joint" and loss.cross_weight != 1.0:
        yield (
            f"loss.cross_weight = {loss.cross_weight} weighs the cross-view loss, which model.decoder = 'joint' does "
            "not have: leave it at 1.0."
        )
    for name in ("target_mask_ratio", "source_mask_ratio"):
        try:
            num_visible_tokens(tuple(grid), masking[name], masking.kind, key=f"masking.{name}")
        except UserError as error:
            yield str(error)
    if loss.temperature is None and loss.ess_fraction is None:
        yield "Set loss.temperature (60 in the paper, inf for the plain MAE loss) or loss.ess_fraction (e.g. 0.6)."


def _fine_tuning(config: config_dict.ConfigDict) -> Iterator[str]:
    if config.data.protocol == "all":
        yield "data.protocol = 'all' has no test split; `python -m data.catalog DATASET` lists the protocols."
    if config.eval.split == "held_out" and not config.data.holdout_fraction:
        yield "eval.split = 'held_out' takes takes off the training split: set data.holdout_fraction, e.g. to 0.1."
    if config.eval.crops_per_clip not in (1, 3):
        yield f"eval.crops_per_clip = {config.eval.crops_per_clip} must be 1 (the centre) or 3 (start, middle, end)."


def _probing(config: config_dict.ConfigDict) -> Iterator[str]:
    probe = config.probe
    if not probe.kinds:
        yield f"probe.kinds is empty: name some of {', '.join(PROBES)}."
    for kind in set(probe.kinds) - set(PROBES):
        yield f"probe.kinds holds {kind!r}, which is not one of {', '.join(PROBES)}.{suggestion(str(kind), PROBES)}"
    if not config.init_from:
        yield (
            "init_from is not set: probes look at a trained encoder. Pass --config.init_from=RUN, `random` for an "
            "encoder as initialised, or `pixels` for the clips' own pixels."
        )
    for name, lowest, allowed in (("learning_rates", 1e-30, "greater than 0"), ("weight_decays", 0.0, "0 or more")):
        values = probe[name]
        if not values or not all(isinstance(value, int | float) and lowest <= value < math.inf for value in values):
            yield f"probe.{name} = {values} must hold one number or more, each {allowed}."
    if "motion" in probe.kinds and config.data.num_frames < 2:
        yield f"data.num_frames = {config.data.num_frames}: one frame has no motion. Leave 'motion' out of probe.kinds."


def _optimization(config: config_dict.ConfigDict) -> Iterator[str]:
    data, optimizer = config.data, config.optimizer
    try:
        parse_steps(config.profile_steps)
    except UserError as error:
        yield str(error)
    if config.global_batch_size % (data.repeats * optimizer.accumulation_steps):
        yield (
            f"global_batch_size = {config.global_batch_size} is not divisible by data.repeats ({data.repeats}) * "
            f"optimizer.accumulation_steps ({optimizer.accumulation_steps})."
        )
