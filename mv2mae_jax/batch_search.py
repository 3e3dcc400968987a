"""The largest batch per chip that a compiler accepts, found with few compilations."""

import dataclasses
from collections.abc import Callable

# After so many trials the line has misled, and the middle of the bracket is taken [ours].
_BY_LINE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What a compiler said of one batch.

    Attributes:
      fits: the program was compiled.
      used_bytes: of memory that it needs, also where that is too much; None where the compiler did not say.
      available_bytes: what the compiler grants a program, where it said so (it does when it refuses one).
    """

    fits: bool
    used_bytes: float | None
    available_bytes: float | None = None


def largest_batch(
    compile_at: Callable[[int], Trial], *, first: int, memory_bytes: float, multiple: int = 8, max_trials: int = 7
) -> dict[int, Trial]:
    """Brackets the largest batch per chip that fits, to `multiple` samples or as near as `max_trials` allow [ours].

    Memory is nearly linear in the batch, so a line through two trials says where to look next; the compiler decides.
    (Near the limit it recomputes values of its own accord, and tiles are padded: the line is a guess.)

    Args:
      compile_at: compiles the step with so many samples per chip.
      first: where to begin; if that fits, the second trial is twice as large, else half.
      memory_bytes: of a chip; taken for what is available until a trial says how much really is.

    Returns:
      The trials by batch, at most `max_trials`; `bracket` reads them.
    """
    trials: dict[int, Trial] = {}
    while len(trials) < max_trials:
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
    """What to try next; None where no multiple lies between what fits and what does not."""
    if not trials:
        return first
    fits, fails = bracket(trials)
    lowest = fits // multiple * multiple + multiple
    highest = None if fails is None else (fails - 1) // multiple * multiple
    if highest is not None and lowest > highest:
        return None
    measured = {batch: trial.used_bytes for batch, trial in trials.items() if trial.used_bytes is not None}
    if len(measured) > 1 and (fails is None or len(trials) < _BY_LINE):
        guess = _where_line_crosses(measured, available_bytes(trials, memory_bytes))
    else:
        guess = 2 * fits if fails is None else (fits + fails) // 2
    guess = guess // multiple * multiple
    guess = max(guess, lowest)
    return guess if highest is None else min(guess, highest)


def available_bytes(trials: dict[int, Trial], memory_bytes: float) -> float:
    """What the compiler grants a program, as far as a trial said it."""
    return min((t.available_bytes for t in trials.values() if t.available_bytes), default=memory_bytes)


def _where_line_crosses(used: dict[int, float], available: float) -> int:
    """Batch at which the line through the two trials nearest to the limit reaches what is available."""
    low, high = sorted(sorted(used, key=lambda batch: abs(used[batch] - available))[:2])
    bytes_per_sample = (used[high] - used[low]) / (high - low)
    if bytes_per_sample <= 0:  # the compiler saved more than the samples cost: no line to follow
        return 2 * high
    return int(low + (available - used[low]) / bytes_per_sample + 1e-6)
