"""How well a run uses its devices: rates relative to published peaks, memory, and traces of single steps."""

import os
import platform
import resource
import sys
from pathlib import Path

import jax

from mv2mae_jax.distributed import chips
from mv2mae_jax.monitoring.metrics import Clock


class StepCost:
    """The cost of one step, which turns a rate of steps into metrics of the `perf` area.

    Attributes:
      clips: clips (one view of a sample) per step.
      flops: floating-point operations that the model needs per step, over all devices; see flops.training_flops.
      num_devices: devices that share the operations.
      peak: published bfloat16 rate of one device; None if unknown, as on a CPU.
    """

    def __init__(self, *, clips: int, flops: float, mesh: jax.sharding.Mesh):
        self.clips, self.flops, self.num_devices = clips, flops, mesh.size
        self.peak = chips.peak_flops_per_second(mesh.devices.flat[0].device_kind)
        self._device = mesh.local_devices[0]

    def read(self, clock: Clock) -> dict[str, float]:
        """Metrics since the last reading; `perf/mfu` (a share of 1) only where the peak is known."""
        steps_per_second, wait_fraction = clock.read()
        flops_per_second = steps_per_second * self.flops / self.num_devices
        values = {
            "perf/steps_per_second": steps_per_second,
            "perf/clips_per_second": steps_per_second * self.clips,
            "perf/tflops_per_second_per_device": flops_per_second / 1e12,
            "perf/memory_gb": peak_memory_bytes(self._device) / 1e9,
            "data/wait_fraction": wait_fraction,
        }
        return values | ({"perf/mfu": flops_per_second / self.peak} if self.peak else {})


def peak_memory_bytes(device: jax.Device) -> int:
    """The peak memory so far: of the device, or of this process if the device keeps no count (CPU)."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # kilobytes on Linux


# Where Linux says whether it gives large pages: 'always', to programs that ask ('[madvise]'), or 'never'.
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ASK_FOR_LARGE_PAGES = "glibc.malloc.hugetlb=1"


def advice_on_pages() -> str:
    """What makes steps on a CPU faster on this machine: a sentence; '' where there is nothing to do.

    XLA takes the memory of every step anew. Linux hands it out in pages of 4 KB, or of 2 MB if the C library asks for
    them, which costs less time (benchmarks/results/NOTES_speed.md). The C library reads whether to ask when the process
    starts, from the environment.
    """
    library, version = platform.libc_ver()
    if jax.default_backend() != "cpu" or library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return ""
    asks = ASK_FOR_LARGE_PAGES in os.environ.get("GLIBC_TUNABLES", "")
    if asks or not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text():
        return ""
    return f"in small pages; faster with GLIBC_TUNABLES={ASK_FOR_LARGE_PAGES} before the command"


class Profiler:
    """Traces a range of steps; TensorBoard (with its profile plugin) and xprof open what it writes.

    Args:
      folder: the trace goes to FOLDER/plugins/profile/TIME, once per process.
      steps: consecutive steps; those before the first step of a resumed run are left out.
    """

    def __init__(self, folder: str, steps: range):
        self._folder, self._steps, self._tracing = folder, steps, False

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context that a step runs in; the first of the range starts the trace."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def finish(self, step: int, results: object) -> bool:
        """Ends the trace once `results` of the last step of its range are computed; returns whether it ended."""
        if not self._tracing or step + 1 in self._steps:
            return False
        jax.block_until_ready(results)
        self.close()
        return True

    def close(self) -> None:
        """Writes the trace if one is under way, at the latest when the run ends."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
