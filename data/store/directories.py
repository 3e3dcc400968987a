"""What `data.dir` names: one prepared set, or several that are used as one."""

import ast
import os
from collections.abc import Sequence


def directories(named: str | os.PathLike | Sequence[str]) -> tuple[str, ...]:
    """The folders in their order.

    `named` is a folder; several with commas between; or several as a tuple, or as the text of one.
    """
    if isinstance(named, (str, os.PathLike)):
        text = os.fspath(named)
        if os.path.exists(text):  # perhaps with a comma in its name
            return (text,)
        if text.startswith(("(", "[")):
            try:
                return tuple(map(str, ast.literal_eval(text)))
            except (ValueError, SyntaxError, TypeError):
                return (text,)
        return tuple(part.strip() for part in text.split(",")) if "," in text else (text,)
    return tuple(map(os.fspath, named))
