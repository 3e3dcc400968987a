"""What the forward pass of a step keeps for the backward pass, here and in Hugging Face's VideoMAE in PyTorch.

    python -m benchmarks.saved_for_backward
    python -m benchmarks.saved_for_backward --model=B --batch=4

The step is that of `benchmarks.train_step`: one view, mask ratio 0.9, the self-view decoder, float32, no
rematerialisation. Nothing is run but PyTorch's forward pass. Printed are megabytes without parameters: what either side
keeps, the largest of these arrays, and the temporary memory of this project's whole compiled step.
"""

import collections
import math
import sys
from typing import Any

from benchmarks import train_step
from benchmarks.train_step import Case
from console.command import Parser, execute

SHOWN = 12  # of the kinds of arrays


def kept_here(case: Case) -> tuple[dict[str, int], int]:
    """(bytes by shape and type, bytes of temporary memory of the compiled step)."""
    import jax
    from jax._src.ad_checkpoint import saved_residuals  # what jax.ad_checkpoint.print_saved_residuals prints

    from mv2mae_jax import optim
    from mv2mae_jax.distributed import sharding
    from mv2mae_jax.state import TrainState
    from mv2mae_jax.train import jit_train_step

    config = train_step.our_config(case, whole=False)
    task, mesh = train_step.make_objective(config), sharding.make_mesh(1, 1, jax.devices()[:1])
    schedule = optim.Schedule.from_config(config, steps_per_epoch=1000.0)
    optimizer, key = optim.make_optimizer(config.optimizer, schedule), jax.random.key(0)
    batch = train_step.batch_shapes(config)
    state = jax.eval_shape(lambda key: TrainState.create(task.init(key), optimizer, with_ema=False), key)
    inputs = jax.eval_shape(task.make_inputs, batch, key)
    found: dict[str, int] = collections.Counter()
    for array, source in saved_residuals(lambda *arguments: task.loss(*arguments)[0], state.params, inputs):
        if not source.startswith("from the argument"):
            found[f"{array.dtype}{list(array.shape)}"] += math.prod(array.shape) * array.dtype.itemsize
    step = jit_train_step(task, optimizer, schedule, config, mesh, state, key)
    return found, step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def kept_by_peer(case: Case) -> dict[str, int]:
    """Bytes by shape and type; memory that several arrays share counts once."""
    import torch

    model, video, asked = train_step.make_peer(case, train_step.model_sizes(case), torch.device("cpu"))
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[str, int] = collections.Counter()
    kept = []  # so that no memory is freed and counted again

    def keep(array: Any) -> Any:
        storage = array.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(array)
            found[f"{str(array.dtype).removeprefix('torch.')}{list(array.shape)}"] += storage.nbytes()
        return array

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda array: array):
        model(video, **asked)
    return found


def make_parser() -> Parser:
    parser = Parser("python -m benchmarks.saved_for_backward", __doc__)
    parser.add_argument("--model", default="S", help="ViT size (S)")
    parser.add_argument("--clip", type=train_step.read_clip, default=(16, 128, 128), help="frames, height, width")
    parser.add_argument("--batch", type=int, default=8, help="clips (8)")
    return parser


def main(argv: list[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    case = Case(model=options.model, clip=options.clip, batch=options.batch, precision="float32")
    ours, temporary = kept_here(case)
    for name, found in ((train_step.OURS, ours), (train_step.PEER, kept_by_peer(case))):
        print(f"{case}: {name} keeps {sum(found.values()) / 1e6:.0f} MB")
        for kind, num_bytes in collections.Counter(found).most_common(SHOWN):
            print(f"  {num_bytes / 1e6:6.1f}  {kind}")
    print(f"temporary memory of the step of {train_step.OURS}: {temporary / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(execute("python -m benchmarks.saved_for_backward", main))
