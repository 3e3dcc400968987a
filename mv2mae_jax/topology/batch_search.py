"""The largest batch per chip that a compiler accepts, found with few compilations."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What a compiler said of one batch.

    Attributes:
      fits: the program was compiled.
      used_bytes: memory that it needs, even if it is too much; None if the compiler did not say.
      available_bytes: memory that the compiler grants a program; known only if it said so, as it does in a refusal.
    """

    fits: bool
    used_bytes: float | None
    available_bytes: float | None = None


def largest_batch(
    compile_at: Callable[[int], Trial],
    *,
    first: int,
    memory_bytes: float,
    multiple: int = 8,
    max_programs: int = 6,
    max_trials: int = 20,
) -> dict[int, Trial]:
    """Brackets the largest batch per chip that fits, to `multiple` samples or as near as the limits allow [ours].

    The search comes from above, because a compiler refuses a batch in a small part of the time of a compilation, unless
    the batch is close to the limit. Far from the limit memory is nearly linear in the batch. Near it, the compiler
    recomputes values of its own accord, and programs' memory hardly grows. The memory that refused programs would need
    still grows, so two of them show where to look next.

    Args:
      compile_at: compiles the step with so many samples per chip.
      first: where to begin; if that fits, the second trial is twice as large, else half.
      memory_bytes: of a chip; taken as the available memory until a trial says how much is really available.
      max_programs: trials that fit; max_trials: those and refused ones.

    Returns:
      The trials by batch; `bracket` reads them.
    """
    trials: dict[int, Trial] = {}
    while len(trials) < max_trials and sum(trial.fits for trial in trials.values()) < max_programs:
        batch = next_batch(trials, first=first, memory_bytes=memory_bytes, multiple=multiple)
        if batch is None:
            break
        trials[batch] = compile_at(batch)
    return trials


def bracket(trials: dict[int, Trial]) -> tuple[int, int | None]:
    """The largest batch that fits, 0 if none did, and the smallest that does not, None if all did."""
    fits = max((batch for batch, trial in trials.items() if trial.fits), default=0)
    return fits, min((batch for batch, trial in trials.items() if not trial.fits and batch > fits), default=None)


def next_batch(trials: dict[int, Trial], *, first: int, memory_bytes: float, multiple: int) -> int | None:
    """The next batch to try; None if no multiple lies between the batches that fit and those that do not."""
    if not trials:
        return first
    fits, fails = bracket(trials)
    lowest = fits // multiple * multiple + multiple
    highest = None if fails is None else (fails - 1) // multiple * multiple
    if highest is not None and lowest > highest:
        return None
    refused = sorted(batch for batch, trial in trials.items() if not trial.fits and trial.used_bytes is not None)
    available = available_bytes(trials, memory_bytes)
    if fails is None:
        guess = _where_line_crosses(trials, *sorted(trials), available) if len(trials) == 2 else 2 * fits
    else:
        guess = fits + (fails - fits) * 3 // 4  # a refusal is cheaper than a batch that fits
        if len(refused) == 1 and fits:
            guess = max(guess, _where_line_crosses(trials, fits, refused[0], available))
        elif len(refused) > 1:
            line = _where_line_crosses(trials, *refused[:2], available)
            agrees = fits <= line < lowest  # with the batches that fit; otherwise it points too low
            guess = line if agrees else max(line, (fits + fails) // 2)
    guess = max(guess // multiple * multiple, lowest)
    return guess if highest is None else min(guess, highest)


def available_bytes(trials: dict[int, Trial], memory_bytes: float) -> float:
    """The memory that the compiler grants a program, if a trial has told it."""
    return min((t.available_bytes for t in trials.values() if t.available_bytes), default=memory_bytes)


def _where_line_crosses(trials: dict[int, Trial], low: int, high: int, available: float) -> int:
    """Batch at which the line through two trials reaches what is available."""
    used = trials[low].used_bytes
    bytes_per_sample = (trials[high].used_bytes - used) / (high - low)
    if bytes_per_sample <= 0:  # the compiler saved more than the samples cost: no line to follow
        return 2 * high
    return int(low + (available - used) / bytes_per_sample + 1e-6)
