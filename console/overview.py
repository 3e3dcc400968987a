"""The commands of a package, for `python -m data` and so on: what there is, and what a mistyped one may have been."""

import ast
from collections.abc import Sequence
from pathlib import Path

from console.command import ROOT, ExitCode, Parser, did_you_mean, nearest


def find(package: str) -> dict[str, str]:
    """The modules of a package that are meant to be run: {'data.prepare': 'Raw multi-view videos -> ...', ...}."""
    found = {}
    for path in Path(ROOT, package).rglob("*.py"):
        text, name = path.read_text(), ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        if '\nif __name__ == "__main__":\n' in text and name != package:
            found[name] = ast.get_docstring(ast.parse(text)).split("\n")[0]
    return dict(sorted(found.items()))


def make_parser(package: str) -> Parser:
    first, *_ = find(package)
    parser = Parser(
        f"python -m {package}",
        f"Lists the commands of {package}.",
        examples=f"python -m {package}\npython -m {package} {first.rpartition('.')[2]}",
        exit_codes={ExitCode.REFUSED: "there is no such command: the message names near ones"},
    )
    parser.add_argument("command", nargs="?", help="how is it typed?")
    return parser


def main(package: str, arguments: Sequence[str] | None = None) -> int:
    """Prints all commands, or how one is typed."""
    parser, commands = make_parser(package), find(package)
    wanted = parser.parse_args(arguments).command
    if wanted is not None:
        names = {name.rpartition(".")[2]: f"python -m {name}" for name in commands}
        if wanted not in names:
            hint = did_you_mean([names[near] for near in nearest(wanted, names)])
            parser.error(f"there is no command {wanted} among {', '.join(commands)}.{hint}")
        print(f"{names[wanted]} --help")
        return ExitCode.DONE
    width = max(map(len, commands))
    for name, does in commands.items():
        print(f"python -m {name:<{width}}  {does}")
    return ExitCode.DONE
