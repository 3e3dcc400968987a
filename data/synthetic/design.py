"""Which takes there are: a balanced design, so that setup, subject and performance say nothing about the class."""

import collections
import dataclasses
import math

import numpy as np

from console.errors import UserError
from data.synthetic.actions import ACTIONS
from data.synthetic.rooms import FACED_CAMERA

# [ours]: ten of each performance, so that a subject does several things in the same room
TAKES_PER_SETUP_AND_SUBJECT = 20
MAX_SETUPS = 300  # names hold three digits, and the pool of subjects is larger than the number of setups


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Take:
    """One take in the numbers of NTU's names: setup S, subject P, performance R, action A, all from 1."""

    setup: int
    subject: int
    performance: int
    action: int

    def file_name(self, camera: int) -> str:
        """The video's name, e.g. 'S001C002P003R001A004_rgb.avi'."""
        return f"S{self.setup:03}C{camera:03}P{self.subject:03}R{self.performance:03}A{self.action:03}_rgb.avi"


def subjects_by_setup(
    num_takes: int, num_setups: int | None = None, num_subjects: int | None = None
) -> dict[int, list[int]]:
    """Who acts in which setup.

    As many setups as subjects per setup, both about sqrt(takes / 20), so that both grow with the data set: 3 setups
    of 3 subjects at 160 takes, 7 of 7 at 1,000; at least 1 setup and 2 subjects per setup. Subjects come from a
    pool about one and a half times that size and each setup takes the next ones in turn, so that subjects act in
    several setups and no two setups have the same people.

    With `num_setups` given, the number of subjects per setup follows from it: two setups of 25 subjects at 1,000 takes.
    Fewer rooms are nearer to NTU RGB+D, which has over 1,000 takes per setup.

    With `num_subjects` given, all of them act in every setup.
    """
    cells = num_takes / TAKES_PER_SETUP_AND_SUBJECT
    size = min(max(1, round(math.sqrt(cells))), MAX_SETUPS) if num_setups is None else num_setups
    if num_subjects is not None:
        return {setup: list(range(1, num_subjects + 1)) for setup in range(1, size + 1)}
    per_setup = max(2, size if num_setups is None else round(cells / num_setups))
    shift = per_setup - 1
    pool = math.ceil(1.5 * per_setup)
    while math.gcd(pool, shift) > 1:  # otherwise a setup's people would repeat before all of the pool have acted
        pool += 1
    return {setup: sorted((setup * shift + k) % pool + 1 for k in range(per_setup)) for setup in range(1, size + 1)}


def plan_takes(num_takes: int, seed: int, num_setups: int | None = None, num_subjects: int | None = None) -> list[Take]:
    """The takes of a data set, in file-name order.

    Cells (setup, subject, performance) are filled in turn. Each gets an action that it does not have yet: the rarest so
    far in its setup, its subject, its performance and the whole set (the seed decides ties). The counts of the actions
    therefore differ by little within any of these.

    Raises:
      ValueError: num_takes, num_setups or num_subjects is not positive or more than the design can name.
    """
    if num_subjects is not None and not 2 <= num_subjects <= 999:
        raise UserError(f"the number of subjects must be 2 to 999, not {num_subjects}")
    if num_setups is not None and not 1 <= num_setups <= MAX_SETUPS:
        raise UserError(f"the number of setups must be 1 to {MAX_SETUPS}, not {num_setups}")
    capacity = MAX_SETUPS * MAX_SETUPS * len(FACED_CAMERA) * len(ACTIONS)
    if not 1 <= num_takes <= capacity:
        raise UserError(f"the number of takes must be 1 to {capacity:,}, not {num_takes:,}; try 160")
    rng = np.random.default_rng([seed, 0])
    cast = subjects_by_setup(num_takes, num_setups, num_subjects)
    rounds = max(len(subjects) for subjects in cast.values())
    cells = [
        (s, cast[s][(k + s) % rounds], (k + s + turn) % 2 + 1) for turn in range(2) for k in range(rounds) for s in cast
    ]
    different = len(cells) * len(ACTIONS)
    if num_takes > different:
        raise UserError(
            f"{num_takes:,} takes are more than the {different:,} different ones of {len(cast)} setups, "
            f"{rounds} subjects, {len(FACED_CAMERA)} performances and {len(ACTIONS)} actions; ask for more --setups "
            "or --subjects"
        )
    counts = collections.defaultdict(lambda: np.zeros(len(ACTIONS)))  # of the actions, by group of takes
    takes = []
    for index in range(num_takes):
        setup, subject, performance = cell = cells[index % len(cells)]
        groups = ("all", ("setup", setup), ("subject", subject), ("performance", performance), (setup, performance))
        rows = [counts[group] for group in groups]
        crowding = sum(row - row.min() for row in rows) + rng.uniform(0, 0.5, len(ACTIONS))
        action = int(np.argmin(np.where(counts[cell] > 0, np.inf, crowding)))
        for row in (*rows, counts[cell]):
            row[action] += 1
        takes.append(Take(setup=setup, subject=subject, performance=performance, action=action + 1))
    return sorted(takes)
