"""The encoder of a run as a function of video, and as a file that needs JAX but not this package.

    from mv2mae_jax.inference import load_encoder
    encoder = load_encoder("runs/ntu60")
    tokens = encoder(video)  # uint8[B, T, H, W, 3] RGB, or a list of clips -> float32[B, N, D]

The file: `python -m mv2mae_jax.inference --workdir=RUN --output=encoder.jax_export`.
"""

import argparse
import dataclasses
import functools
import os
import sys
import warnings
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from console import progress
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data.store.whole_files import refuse_existing, write_whole
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import frozen_encoder, mv2mae, variants
from mv2mae_jax.runs import checkpoint, run_record
from mv2mae_jax.torch_weights import encoder as exported
from mv2mae_jax.torch_weights import importer

PROG = "python -m mv2mae_jax.inference"
EXAMPLES = """
python -m mv2mae_jax.inference --workdir=runs/demo --output=encoder.jax_export
python -m mv2mae_jax.inference --workdir=runs/demo --output=encoder.jax_export --step=1000
"""
PLATFORMS = ("cpu", "cuda", "tpu")  # that an exported file runs on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """The encoder of a run; call it with video. Pixels are normalised inside.

    Attributes:
      workdir, step: where it comes from; step is None for an exported folder.
      model: has `clip_size` (frames, height, width), `grid` (tokens along these), `width` and so on.
      params: of the encoder.
      frame_stride: distance of a clip's frames in the run's data, in stored frames; None if an export does not say.
      frame_rates: (lowest, highest) frames per second of that data; None if the run or an export does not say.
      config: the run's; None for an exported folder.
      data_digest: `content_digest` of the set that it was trained on; None if the run or an export does not say.
    """

    workdir: str
    step: int | None
    model: mv2mae.MV2MAE
    params: Any
    frame_stride: int | None
    frame_rates: tuple[float, float] | None = None
    config: config_dict.ConfigDict | None = None
    data_digest: str | None = None

    @property
    def origin(self) -> str:
        return f"Step {self.step} of {self.workdir}" if self.config is not None else f"The encoder of {self.workdir}"

    def __call__(self, video: Any) -> jax.Array:
        """Tokens of whole clips, nothing masked.

        Args:
          video: uint8[B, T, H, W, 3] or a single uint8[T, H, W, 3], RGB, of the size `model.clip_size`: an array of
            NumPy or JAX, anything that NumPy reads by `__array__` (a tensor of PyTorch on the CPU), or a list of clips.

        Returns:
          float32[B, N, D], or float32[N, D] of a single clip; B may be 0. Tokens are in the order (time, row, column).
          The last norm of the encoder is applied after pre-training; a fine-tuned encoder has none: its classifier
          norms their mean.

        Raises:
          ValueError: video of another type, dtype or size; says what is wanted.
        """
        video = self._as_array(video)
        if len(video) == 0:
            return jnp.zeros((0, self.model.num_tokens, self.model.width), jnp.float32)
        if video.max() == 1:
            warnings.warn(
                "The largest value of the video is 1. Pixels are from 0 to 255: values from 0 to 1 that were cast to "
                "uint8 are nearly black. Multiply them by 255 before the cast.",
                stacklevel=2,
            )
        if video.ndim == 4:
            return _encode(self.model, self.params, video[None])[0]
        return _encode(self.model, self.params, video)

    def _as_array(self, video: Any) -> np.ndarray | jax.Array:
        """The video as uint8[B, T, H, W, 3] or uint8[T, H, W, 3]; an array on a device stays there."""
        clip_shape = (*self.model.clip_size, 3)
        size = ", ".join(map(str, clip_shape))
        wanted = f"The encoder takes uint8 clips of shape (B, {size}) or ({size}), RGB, or a list of the latter"
        if not isinstance(video, jax.Array):
            parts = video if isinstance(video, (list, tuple)) else [video]
            unknown = sorted({type(part).__name__ for part in parts if not hasattr(part, "__array__")})
            if unknown or not parts:
                raise UserError(f"{wanted}; got {'an empty list' if not parts else ' and '.join(unknown)}.")
            try:
                parts = [part if isinstance(part, jax.Array) else np.asarray(part) for part in parts]
            except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one with a gradient
                raise UserError(f"{wanted}; NumPy cannot read {type(video).__name__}: {error}") from error
            found = sorted({f"{part.dtype}{list(part.shape)}" for part in parts})
            if len(found) > 1:
                raise UserError(f"{wanted}; got a list of {' and '.join(found)}.")
            stack = jnp.stack if isinstance(parts[0], jax.Array) else np.stack
            video = stack(parts) if isinstance(video, (list, tuple)) else parts[0]
        if video.dtype == np.uint8 and video.ndim in (4, 5) and video.shape[-4:] == clip_shape:
            return video
        hint = "Pixels are from 0 to 255, and normalised inside the model." if video.dtype != np.uint8 else ""
        if video.ndim in (4, 5) and video.shape[-4:] != clip_shape:
            hint += " Put the channels last." if 3 in video.shape[-4:-2] else " Crop clips to this size."
        raise UserError(f"{wanted}; got {video.dtype}{list(video.shape)}. {hint.strip()}".strip())

    def export(self, path: str | os.PathLike) -> None:
        """Writes the encoder with its weights, in float32, for any batch size: see jax.export.

        To run it: `jax.export.deserialize(bytearray(open(path, "rb").read())).call(video)`.
        """
        model, params = self.model.with_compute(dtype=jnp.float32, attention="xla"), jax.device_get(self.params)
        (batch,) = jax.export.symbolic_shape("batch")
        video = jax.ShapeDtypeStruct((batch, *model.clip_size, 3), np.uint8)
        run = jax.jit(functools.partial(_tokens, model, params))
        serialized = jax.export.export(run, platforms=PLATFORMS)(video).serialize()
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_whole(path, serialized)


def _tokens(model: mv2mae.MV2MAE, params: Any, video: jax.Array) -> jax.Array:
    return frozen_encoder.encode(model, params, model.patchify(video)).astype(jnp.float32)


_encode = jax.jit(_tokens, static_argnums=0)


def load_encoder(workdir: str, step: int | None = None, *, mesh: jax.sharding.Mesh | None = None) -> Encoder:
    """The encoder of a pre-trained or fine-tuned run, with its averaged parameters if the run kept an average.

    It computes in the dtype of the run's config. For `auto`, and for an exported folder, this is float32 on CPUs and
    bfloat16 elsewhere.

    Args:
      workdir: the folder that run.py wrote to; or one with the config.json and the weights of a VideoMAE, from
        `python -m mv2mae_jax.torch_export --format=hf` (or `port`) or from Hugging Face.
      step: which checkpoint of a run, the newest by default.
      mesh: where the parameters go; the first device by default.

    Raises:
      ValueError: there is no such run or step, it is damaged, or its parameters are not finite.
    """
    mesh = sharding.one_device() if mesh is None else mesh
    if importer.is_torch_checkpoint(workdir):
        if step is not None:
            raise UserError(f"{workdir} is an exported folder and has no steps: leave the step ({step}) out.")
        config, (model, params, told) = None, exported.load(workdir, mesh)
    else:
        step, record, config = run_record.read_record(workdir, step)
        model, params = restore(workdir, step, config.task, variants.from_config(config), mesh)
        told = {
            "frame_stride": config.data.frame_stride,
            "frame_rates": record.get("frame_rates"),
            "data_digest": record.get("manifest_sha256"),
        }
    encoder = Encoder(workdir=workdir, step=step, model=model, params=params, config=config, **told)
    finite = jax.tree.map(lambda leaf: np.isfinite(leaf).all(), jax.device_get(params))
    if bad := checkpoint.not_finite(finite):  # all that the encoder gives would be NaN or infinite
        raise UserError(
            f"{encoder.origin}: {len(bad)} of the encoder's {len(jax.tree.leaves(finite))} parameters are not finite, "
            f"e.g. {bad[0]}. The training has diverged, or the weights are damaged. Take another step of the run, or "
            "another encoder."
        )
    return encoder


def restore(
    workdir: str, step: int, task: str, model: mv2mae.MV2MAE, mesh: jax.sharding.Mesh
) -> tuple[mv2mae.MV2MAE, Any]:
    """Restores from a checkpoint: (the model with the encoder that a run of this task has, the encoder's parameters).

    Raises:
      ValueError: names or shapes differ; lists them.
    """
    model = model.clone(final_norm=task == "pretrain")  # a classifier norms the mean instead
    shapes = jax.eval_shape(functools.partial(frozen_encoder.init_encoder, model), jax.random.key(0))
    params = checkpoint.load_encoder(workdir, sharding.abstract(mesh, shapes), step)
    return model, params


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Writes a run's encoder, with its weights, to a file that needs JAX but not this package.",
        examples=EXAMPLES,
        exit_codes={ExitCode.DONE: "written", ExitCode.REFUSED: "the arguments do not fit: no such run or step, ..."},
    )
    parser.add_argument(
        "--workdir", required=True, metavar="RUN", help="the folder that run.py wrote to, or an exported one"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--output", required=True, metavar="FILE", help="to write, e.g. encoder.jax_export")
    parser.add_progress()
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    progress.configure(arguments.progress)
    return execute(PROG, lambda: export_to_file(arguments))


def export_to_file(arguments: argparse.Namespace) -> None:
    """Runs the command. Raises ValueError where there is no such run or step, or OUTPUT exists."""
    refuse_existing(arguments.output)
    with progress.Bar(2, "reading the run", "stages", leave=False) as bar:
        encoder = load_encoder(arguments.workdir, arguments.step)
        bar.advance()
        bar.describe("compiling and writing")
        encoder.export(arguments.output)
        bar.advance()
    size, model = os.path.getsize(arguments.output), encoder.model
    clip, tokens = ", ".join(map(str, model.clip_size)), f"{model.num_tokens}, {model.width}"
    print(f"{encoder.origin} -> {arguments.output} ({size / 2**20:.1f} MiB).")
    print(f"uint8[B, {clip}, 3] RGB -> float32[B, {tokens}], any B, on {', '.join(PLATFORMS)}:")
    print(f"  jax.export.deserialize(bytearray(open({arguments.output!r}, 'rb').read())).call(video)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
