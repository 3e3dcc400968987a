"""The search for the largest batch, against compilers whose limit is known."""

import pytest

from mv2mae_jax.topology import batch_search
from mv2mae_jax.topology.batch_search import Trial


class Compiler:
    """Uses `fixed` + `per_sample` bytes per sample up to `limit`, and `squeezed` per sample where it must recompute."""

    def __init__(self, *, limit, fixed=10.0, per_sample=1.0, squeezed=None, silent=False):
        self.limit, self.fixed, self.per_sample, self.silent = limit, fixed, per_sample, silent
        self.squeezed = squeezed or per_sample
        self.compiled = []

    def __call__(self, batch: int) -> Trial:
        assert batch not in self.compiled
        self.compiled.append(batch)
        used = self.fixed + self.per_sample * batch
        if used > self.limit:
            used = max(self.limit - 1, self.fixed + self.squeezed * batch)
        if used <= self.limit:
            return Trial(fits=True, used_bytes=used)
        return Trial(fits=False, used_bytes=None if self.silent else used, available_bytes=self.limit)

    def largest(self) -> int:
        return int((self.limit - self.fixed) / self.squeezed) // 8 * 8


@pytest.mark.parametrize("limit", [50, 123, 210, 1000, 20_000])
@pytest.mark.parametrize("published", [1.0, 1.02, 1.3])
def test_where_memory_is_linear_three_programs_are_enough(limit, published):
    compiler = Compiler(limit=limit, fixed=30.0, per_sample=0.9)
    trials = batch_search.largest_batch(compiler, first=16, memory_bytes=limit * published)
    assert batch_search.bracket(trials) == (compiler.largest(), compiler.largest() + 8)
    assert list(trials) == compiler.compiled
    assert sum(trial.fits for trial in trials.values()) <= 3 and len(trials) <= 6


@pytest.mark.parametrize("squeezed", [0.5, 0.8, 0.95])
def test_a_compiler_that_recomputes_near_the_limit_is_followed(squeezed):
    """Near the limit, accepted programs use about the same memory. Refusals cost little and say how much is missing."""
    compiler = Compiler(limit=300, squeezed=squeezed)
    trials = batch_search.largest_batch(compiler, first=16, memory_bytes=320)
    assert batch_search.bracket(trials) == (compiler.largest(), compiler.largest() + 8)


@pytest.mark.parametrize("squeezed", [0.5, 0.8, 0.95])
def test_a_compiler_that_does_not_say_what_is_missing_is_halved(squeezed):
    compiler = Compiler(limit=300, squeezed=squeezed, silent=True)
    trials = batch_search.largest_batch(compiler, first=16, memory_bytes=320, max_programs=30, max_trials=30)
    assert batch_search.bracket(trials) == (compiler.largest(), compiler.largest() + 8)


def test_a_compiler_whose_refusals_ask_for_more_and_more_is_followed():
    """libtpu does so for v6e. A line through two of its values ends far below the largest batch that fits."""

    def compile_at(batch: int) -> Trial:
        over = batch - 400
        used = min(10 + batch, 300 + batch / 100) if over <= 0 else 306 + over / 2 + over**2 / 200
        return Trial(fits=over <= 0, used_bytes=used, available_bytes=None if over <= 0 else 305)

    trials = batch_search.largest_batch(compile_at, first=128, memory_bytes=320)
    assert batch_search.bracket(trials) == (400, 408)
    assert sum(trial.fits for trial in trials.values()) <= 4


def test_a_first_batch_that_does_not_fit_leads_down():
    compiler = Compiler(limit=64)
    trials = batch_search.largest_batch(compiler, first=512, memory_bytes=64)
    assert compiler.compiled[0] == 512
    assert batch_search.bracket(trials) == (48, 56)


def test_nothing_fits():
    trials = batch_search.largest_batch(Compiler(limit=12, fixed=11.0), first=64, memory_bytes=12, max_trials=20)
    assert batch_search.bracket(trials) == (0, 8)


@pytest.mark.parametrize(("limits", "counted"), [({"max_trials": 4}, (4, 4)), ({"max_programs": 5}, (5, 7))])
def test_the_number_of_compilations_is_limited(limits, counted):
    """The bracket stays wide if the limit ends the search."""
    compiler = Compiler(limit=10_000, silent=True, squeezed=0.3)
    trials = batch_search.largest_batch(compiler, first=16, memory_bytes=10_000, **limits)
    assert (sum(trial.fits for trial in trials.values()), len(trials)) == counted
    fits, fails = batch_search.bracket(trials)
    assert trials[fits].fits and (fails is None or not trials[fails].fits)
    assert fails is None or fails - fits > 8


def test_the_bracket_of_no_failure_is_open():
    assert batch_search.bracket({16: Trial(fits=True, used_bytes=1.0)}) == (16, None)
