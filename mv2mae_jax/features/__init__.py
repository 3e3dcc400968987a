"""Features of a frozen encoder: extracted once from whole clips, pooled, and kept on disk.

This is what probes and evaluations use. For users there is a command on top of it (`python -m mv2mae_jax.features`, in
__main__.py, sources.py and store.py) and a function of video (inference.py).
Imports: models, inference.py, runs, distributed, data, data/store, data/catalog, data/recordings, console.
Used by: evaluation, report.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from console.errors import UserError
from data import clips
from data.store import digests, takes
from data.store.whole_files import reserve
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import frozen_encoder, mv2mae, stored_frames

POOLINGS: Final[tuple[str, ...]] = ("mean", "slices", "motion")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """An encoder's features of M clips.

    Attributes:
      row: int64[M], the manifest row of each clip.
      label: int32[M], -1 where unknown.
      slices: float32[M, nt, D], the mean token of each temporal slice.
      motion: float32[M, nt, D], the same with tokens weighted by their motion energies (data/motion.py). With a still
        camera only the actor moves, so the room has little weight.
      tokens: float16[M, N, D], or None if only pooled features were wanted. May be mapped from a file.
    """

    row: np.ndarray
    label: np.ndarray
    slices: np.ndarray
    motion: np.ndarray
    tokens: np.ndarray | None = None

    def pooled(self, pooling: str) -> np.ndarray:
        """'mean': float32[M, D], the mean token. 'slices' and 'motion': float32[M, nt * D], in the order of time.

        Raises:
          ValueError: unknown pooling.
        """
        if pooling == "mean":
            return self.slices.mean(axis=1)
        if pooling in ("slices", "motion"):
            return getattr(self, pooling).reshape(len(self.row), -1)  # (M, nt * D)
        raise UserError(f"Unknown pooling {pooling!r}. Choose one of {', '.join(POOLINGS)}.")

    def per_row(self) -> "Features":
        """One entry per manifest row, ascending: the mean of its clips' slices. Tokens are not averaged: None."""
        rows, first, inverse, count = np.unique(self.row, return_index=True, return_inverse=True, return_counts=True)

        def mean(values: np.ndarray) -> np.ndarray:
            total = np.zeros((len(rows), *values.shape[1:]), np.float32)
            np.add.at(total, inverse, values)
            return total / count[:, None, None].astype(np.float32)

        return Features(row=rows, label=self.label[first], slices=mean(self.slices), motion=mean(self.motion))


def extract(
    model: mv2mae.MV2MAE,
    params: Any,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    *,
    tokens: np.ndarray | None = None,
) -> Features:
    """One pass over `batches` with nothing masked.

    Args:
      model: its encoder is used.
      params: the encoder's parameters, replicated or sharded over `mesh`; neither changed nor donated.
      batches: `video` uint8[B, T, H, W, 3], or `stored` coefficients of it, `label` int32[B], `row` int32[B], `valid`
        bool[B]; rows that are not valid are dropped. With several processes each passes its own rows, in the order of
        the processes, and all receive all features in this order.
      tokens: float16[M, N, D] that receives the tokens, M the number of valid rows to come; None if not wanted.

    Raises:
      ValueError: `batches` hold more or fewer valid clips than `tokens`.
    """
    collected, count = [], 0
    for batch in batches:
        # A mesh may interleave the devices of several processes, and with them the rows of these processes.
        own = len(batch["row"])
        batch = batch | {"place": np.arange(own, dtype=np.int32) + jax.process_index() * own}
        output = jax.device_get(
            _encode_batch(model, params, sharding.put_batch(mesh, batch), mesh=mesh, with_tokens=tokens is not None)
        )
        order = np.argsort(output.pop("place"))
        order = order[output.pop("valid")[order]]
        output = {name: value[order] for name, value in output.items()}
        if tokens is not None:
            found = output.pop("tokens")
            if count + len(found) > len(tokens):
                raise UserError(f"`tokens` has room for {len(tokens)} clips, but more have come.")
            tokens[count : count + len(found)] = found
        count += len(order)
        collected.append(output)
    if tokens is not None and count != len(tokens):
        raise UserError(f"Tokens of {len(tokens)} clips were expected, {count} clips have come.")
    pooled = {name: np.concatenate([output[name] for output in collected]) for name in collected[0]}
    return Features(**pooled | {"row": pooled["row"].astype(np.int64)}, tokens=tokens)


@functools.partial(jax.jit, static_argnames=("model", "mesh", "with_tokens"))
def _encode_batch(
    model: mv2mae.MV2MAE, params: Any, batch: dict[str, jax.Array], *, mesh: jax.sharding.Mesh, with_tokens: bool
) -> dict[str, jax.Array]:
    batch = stored_frames.pixels(batch, model.clip_size[1:])
    patches = model.patchify(batch["video"])  # (B, N, P)
    motion = stored_frames.motion_energy(patches, model.grid, model.tubelet_size)  # (B, N)
    tokens = sharding.with_mesh(mesh, frozen_encoder.encode)(model, params, patches)
    batch_size, num_tokens, width = tokens.shape
    slices = model.grid[0]
    by_time = tokens.astype(jnp.float32).reshape(batch_size, slices, num_tokens // slices, width)  # (B, nt, nh * nw, D)
    weight = motion.reshape(batch_size, slices, -1, 1)  # (B, nt, nh * nw, 1)
    weight = weight + 1e-6  # a slice in which nothing moves is averaged evenly
    output = {name: batch[name] for name in ("row", "label", "valid", "place")} | {
        "slices": by_time.mean(axis=2),
        "motion": (by_time * weight).sum(axis=2) / weight.sum(axis=2),
    }
    if with_tokens:
        output["tokens"] = tokens.astype(jnp.float16)
    return jax.lax.with_sharding_constraint(output, sharding.replicated(mesh))  # every process receives all rows


def cached(directory: str, facts: dict[str, Any], make: Callable[[str], Features]) -> Features:
    """Features from `directory`; computed first if they are missing, or not as they were written.

    Args:
      directory: holds one folder per digest of `facts`; one process at a time may use it.
      facts: everything that the features depend on, as JSON; see `facts_of`.
      make: `make(folder) -> Features`. It may map tokens from `folder` (see `map_tokens`); the rest is written here.

    Returns:
      The features; tokens are mapped from their file, not read.
    """
    text = json.dumps(facts, sort_keys=True)
    folder = Path(directory, hashlib.sha256(text.encode()).hexdigest()[:16])
    if folder.is_dir():
        wrong = digests.check(folder)
        if not wrong:
            return _load(folder)
        found = ", ".join(f"{name} {problem}" for name, problem in wrong.items())
        logging.warning("Features in %s are not as they were written (%s): extracted anew.", folder, found)
        shutil.rmtree(folder)
    for left in folder.parent.glob("*.unfinished"):  # by a process that was killed, perhaps for other facts
        shutil.rmtree(left)
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(parents=True)
    features = make(str(unfinished))
    for name, array in vars(features).items():
        if isinstance(array, np.memmap):
            array.flush()
        elif array is not None:
            np.save(unfinished / name, array)
    (unfinished / "features.json").write_text(json.dumps({"facts": facts}, indent=2))
    (unfinished / digests.NAME).write_text(digests.table(unfinished))
    unfinished.rename(folder)
    return _load(folder)


def check_finite(found: Features, encoder: str) -> None:
    """Raises ValueError if features are NaN or infinite; read-outs would take them for values. `encoder` is named."""
    tokens = [] if found.tokens is None else [found.tokens]
    bad = sum(
        not all(np.isfinite(part[clip]).all() for part in (found.slices, found.motion, *tokens))
        for clip in range(len(found.row))  # mapped tokens need not fit into memory
    )
    if bad:
        raise UserError(
            f"The features of {bad} of {len(found.row)} clips are not finite: {encoder} gives NaN, or values beyond "
            "float16. Its training has diverged, or its weights are damaged. Take another encoder, or another "
            "checkpoint of this one (of a run: init_from_step)."
        )


def _load(folder: Path) -> Features:
    modes = {"tokens": "r"}  # mapped
    return Features(**{path.stem: np.load(path, modes.get(path.stem)) for path in folder.glob("*.npy")})


def map_tokens(folder: str, num_clips: int, model: mv2mae.MV2MAE) -> np.ndarray:
    """`folder`/tokens.npy as a writable float16[num_clips, N, D] that need not fit into memory."""
    path, shape = os.path.join(folder, "tokens.npy"), (num_clips, model.num_tokens, model.width)
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with open(path, "rb+") as file:  # on a full disk a write to mapped memory would be killed
        reserve(file, os.path.getsize(path))
    return tokens


def digest_of(params: Any) -> str:
    """A digest of the names and the values of parameters, in hexadecimal."""
    values = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(params))[0]:
        values.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return values.hexdigest()


def code_digest() -> str:
    """A digest of the sources that compute features: those of models/, and this file. In hexadecimal."""
    here = Path(__file__)
    sources = [here, *sorted(here.parents[1].joinpath("models").rglob("*.py"))]
    return hashlib.sha256("".join(digests.sha256_of(path)[0] for path in sources).encode()).hexdigest()


def facts_of(
    model: mv2mae.MV2MAE, params: Any, prepared: takes.Prepared, spec: clips.ClipSpec, rows: np.ndarray, **more: Any
) -> dict[str, Any]:
    """Everything that features depend on: the encoder, its code and parameters, the data set, the clips, and `more`.

    Parameters, code and data are represented by digests, so another step, run or set at the same path has other facts.
    """
    encoder = {name: getattr(model, name) for name in ("clip_size", "tubelet_size", "width", "depth", "num_heads")}
    classes = [getattr(model, "backbone", type(model)), type(model)]
    return {
        "parameters": digest_of(params),
        "encoder": {**encoder, "dtype": model.compute.dtype.name, "classes": [repr(kind) for kind in classes]},
        "code": code_digest(),
        "data": prepared.content_digest(),
        "rows": hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest(),
        "num_frames": spec.num_frames,
        "frame_stride": spec.frame_stride,
        "crop_size": list(spec.crop_size),
        **more,
    }
