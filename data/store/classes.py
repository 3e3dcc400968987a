"""Which of a set's classes `data.classes` names, by their names or numbers."""

from collections.abc import Sequence

from console.command import did_you_mean, nearest
from console.errors import UserError
from data import catalog


def number_of(wanted: str | int, class_names: Sequence[str], directory: str) -> int:
    """The number of a class of the set in `directory`. Raises ValueError where there is none (names near ones)."""
    called = [catalog.composed(name) for name in class_names]
    text = catalog.composed(str(wanted).strip())
    number = int(text) if text.isascii() and text.isdecimal() else None
    if text in called:
        if isinstance(wanted, int) and called.index(text) != wanted < len(called):
            raise UserError(
                f"data.classes = {wanted}: class {text!r} of {directory} has another number, {called.index(text)}. "
                f"Write the name in quotes if it is meant, else the name of class {wanted}, {called[wanted]!r}."
            )
        return called.index(text)
    if number is not None and number < len(called):
        return number
    if not called:
        raise UserError(f"data.classes = {wanted!r}: {directory} has no classes.")
    near = did_you_mean([repr(name) for name in nearest(text, called)])
    raise UserError(
        f"data.classes: there is no class {wanted!r} in {directory}; it has {len(called)}, numbered from 0 to "
        f"{len(called) - 1} ({', '.join(called[:5])}, ...).{near}"
    )
