"""The parser and the end of every command: examples, exit codes, and errors that name the nearest match."""

import argparse
import difflib
import enum
import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from console import progress
from console.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class ExitCode(enum.IntEnum):
    """Exit codes, the same for every command."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    PARTLY = 3
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    UNREAD = 141  # 128 + SIGPIPE
    # 128 + SIGTERM: the code that shells and schedulers report for a process that the signal ended. [ours] Schedulers
    # that distinguish failures by code (Kubeflow, for instance) restart processes that end with 128 or more.
    PREEMPTED = 143


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "a fault of this program: the traceback says where",
    ExitCode.REFUSED: "the arguments, or what they name, do not fit: the message says what, and what to do",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.UNREAD: "the program behind | ended before the command did",
}
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = "A file, or a link that leads nowhere, is where a folder is needed: move it away, or name another path."
# What to do about what the system refuses.
_ADVICE = {
    errno.EACCES: "This user lacks the right: have it given (ls -l shows whose it is), or name another path.",
    errno.EROFS: "Nothing can be written on that file system: name another path.",
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: "A folder is where a file is to be written: name a file, for instance one in that folder.",
    errno.ENAMETOOLONG: "Name a shorter path.",
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose --help ends with examples and exit codes and whose errors are one paragraph.

    Options are not abbreviated. A mistyped option, choice or, with `add_config`, config key names the nearest. Refused
    are an option that stands twice, unless it collects its values, and a config key with two values.

    Args:
      prog: what is typed: 'python -m data.prepare'.
      doc: what the command does. Paragraphs in it that are indented command lines become the examples.
      examples: command lines, one per line, if `doc` has none. `# ...` at the end of a line explains it.
      notes: text between the options and the examples.
      exit_codes: what they mean where that is more than `_MEANINGS` says.
    """

    def __init__(
        self, prog: str, doc: str, *, examples: str = "", notes: str = "", exit_codes: Mapping[int, str] | None = None
    ):
        description, examples_in_doc = _split(doc)
        self.examples = [line.strip() for line in (examples or examples_in_doc).strip().splitlines()]
        assert self.examples, f"{prog} has no examples"
        codes = dict(sorted((_MEANINGS | dict(exit_codes or {})).items()))
        parts = [notes.strip()] if notes else []
        parts += ["\n  ".join(["examples:", *self.examples])]
        parts += ["\n".join(["exit codes:", *(f"  {int(code):<3}  {meaning}" for code, meaning in codes.items())])]
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n\n".join(parts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._config_keys: Callable[[], Iterable[str]] | None = None
        self._given: dict[str, str] = {}  # option -> how it stands on the command line

    def add_config(self, keys: Callable[[], Iterable[str]]) -> None:
        """Adds --config=FILE and --config.KEY=VALUE; the latter come as `options.overrides`, without '--config.'.

        `keys` is called if an unknown option is given, as it may be the name of a key.
        """
        self.add_argument(
            "--config", required=True, metavar="FILE", help="of configs/; --config.KEY=VALUE sets one of its keys"
        )
        self._config_keys = keys

    def add_progress(self, remark: str = "") -> None:
        """Adds --progress. The command passes its value to `progress.configure`. `remark` ends its help."""
        self.add_argument(
            "--progress",
            choices=progress.MODES,
            default="auto",
            help=f"auto: a bar on a terminal, else nothing; plain: a line every 10 seconds; none (auto){remark}",
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parses, or ends the program with ExitCode.REFUSED."""
        args = [_with_home(arg) for arg in (sys.argv[1:] if args is None else args)]
        overrides = []
        if self._config_keys is not None:
            overrides = [arg.removeprefix("--config.") for arg in args if arg.startswith("--config.")]
            args = [arg for arg in args if not arg.startswith("--config.")]
            given: dict[str, str] = {}
            for override in overrides:
                before = given.setdefault(override.partition("=")[0], override)
                if before != override:
                    self.error(f"--config.{before} and --config.{override} contradict each other: leave one out")
        self._check_options(args)
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            self.error(f"unexpected: {' '.join(extra)}. Options are written --NAME=VALUE.{self._as_option(extra[0])}")
        if self._config_keys is not None:
            options.overrides = overrides
        return options

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """As argparse's; no option may stand twice."""
        self._given = {}
        return super().parse_known_args(args, namespace)

    def _check_options(self, args: Sequence[str]) -> None:
        """Checks the names of options before argparse does: argparse would first say that the right one is missing."""
        for arg in args:
            name = arg.partition("=")[0]
            if arg == "--":
                return
            if re.match(r"--?[A-Za-z]", arg) and name not in self._option_string_actions:
                self.error(f"there is no option {name}.{self._as_option(arg)}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        """argparse calls this to turn text into a value, once for each time that an option is given."""
        collects = isinstance(action, (argparse._AppendAction, argparse._AppendConstAction, argparse._CountAction))
        if action.option_strings and not collects:
            name = action.option_strings[-1]
            now = "=".join([name, " ".join(arg_strings)]) if arg_strings else name
            if name in self._given:
                self.error(f"{name} is given twice ({self._given[name]}, {now}): give it once")
            self._given[name] = now
        return super()._get_values(action, arg_strings)

    def _as_option(self, text: str) -> str:
        """A hint at what `text` was meant to be; '' if nothing is near."""
        name, separator, value = text.lstrip("-").partition("=")
        options = [option.lstrip("-") for option in self._option_string_actions if option.startswith("--")]
        keys = list(self._config_keys()) if self._config_keys is not None else []
        if name.replace("-", "_") in keys:
            return f" It is a key of the config: --config.{name.replace('-', '_')}{separator}{value}"
        near = [f"--{option}" for option in nearest(name, options)]
        if not near:
            near = [f"--config.{key}" for key in nearest(name, keys)]
        return did_you_mean(near)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = did_you_mean(nearest(str(value), choices))
            raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(choices)}.{hint}")

    def error(self, message: str) -> None:
        """Ends the program: one paragraph instead of argparse's usage, which is in --help."""
        message = message if message.endswith((".", "?")) else f"{message}."
        self.exit(ExitCode.REFUSED, f"{self.prog}: {message} Options and examples: {self.prog} --help\n")


def _with_home(arg: str) -> str:
    """--NAME=~/PATH with the home folder in place of ~, which shells leave as it is behind `=`."""
    return re.sub(r"(?<==)~(?=/|$)", lambda _: os.path.expanduser("~"), arg, count=1) if arg.startswith("--") else arg


def _split(doc: str) -> tuple[str, str]:
    """(a docstring without the paragraphs that are indented commands, those)."""
    paragraphs = doc.strip().split("\n\n")
    commands = [text for text in paragraphs if all(line.startswith("    python ") for line in text.splitlines())]
    return "\n\n".join(text for text in paragraphs if text not in commands), "\n".join(commands)


def sizes(form: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """The `type` of an option like --frame=170x302: sizes("HEIGHTxWIDTH in pixels", "170x302")("8x16") is (8, 16)."""
    pattern = "x".join([r"[1-9]\d*"] * len(example.split("x")))

    def read(text: str) -> tuple[int, ...]:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {form}, e.g. {example}")
        return tuple(int(part) for part in text.split("x"))

    return read


def nearest(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """The names in `known` that `name` is most probably a mistyping of, the nearest first; may be none.

    Case, and '-' in place of '_', do not count against a match.
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "_")

    by_plain = {plain(text): text for text in known}
    found = difflib.get_close_matches(plain(name), list(by_plain), n=count, cutoff=0.6)
    if not found:
        found = [text for text in by_plain if len(name) > 2 and text.startswith(plain(name))][:count]
    return [by_plain[text] for text in found]


def did_you_mean(near: Sequence[str]) -> str:
    """' Did you mean X or Y?', to follow a sentence; empty where nothing is near."""
    return f" Did you mean {' or '.join(near)}?" if near else ""


def some_of(names: Sequence[str], most: int) -> str:
    """'a, b and 7 more': the first names of a list that may be long, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def exit_code_of(error: BaseException) -> ExitCode:
    """The code with which `execute` ends a command that raises this error; closed pipes and child processes aside."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    about_a_file = isinstance(error, OSError) and (error.filename or error.errno in _DISK_IS_FULL)
    return ExitCode.REFUSED if about_a_file or isinstance(error, UserError) else ExitCode.FAILED


def execute(prog: str, run: Callable[[], int | None], *, goes_on: bool = False) -> int:
    """Runs a command; returns its exit code.

    Three kinds of errors are printed as one paragraph: a `UserError`, what the system refuses about a file, and the
    refusal of another command of this project. All others keep their traceback.

    Args:
      prog: what is typed.
      run: does the work; None stands for ExitCode.DONE.
      goes_on: the same command, given again, continues where it was interrupted.
    """
    code, done = ExitCode.REFUSED, None
    try:
        done = run() or ExitCode.DONE
        print(end="", flush=True)
        return done
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tells of it again when it ends
        code, told = done, "the program behind | has ended, so the rest of the output was not printed."
        if done is None:
            code, told = ExitCode.UNREAD, "the program behind | has ended, so this one ended, too: give it again."
    except (UserError, OSError) as error:
        told = str(error)
        if not isinstance(error, UserError) and error.errno in _ADVICE:
            told += f". {_ADVICE[error.errno]}"
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
            where = f" for {error.filename}" if error.filename else ""
            then = "continues from here" if goes_on else "can be given again"
            told = f"no space is left on the disk{where}. With room, the same command {then}."
        elif exit_code_of(error) == ExitCode.FAILED:
            raise
    except subprocess.CalledProcessError as error:
        if error.returncode != ExitCode.REFUSED:
            raise
        told = f"the error above stopped the command {shlex.join(map(str, error.cmd))}"
    except KeyboardInterrupt:
        code, told = ExitCode.INTERRUPTED, f"interrupted.{' The same command continues from what is saved.' * goes_on}"
    print(f"{prog}: {told}", file=sys.stderr)
    return code
