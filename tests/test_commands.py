"""Every command: its --help, its examples, its errors, its exit codes."""

import argparse
import contextlib
import errno
import fcntl
import importlib
import json
import os
import pathlib
import pickle
import pty
import re
import shlex
import socket
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

from console import command, errors, overview, progress
from data import catalog

ROOT = pathlib.Path(__file__).parent.parent
PLACES = ("run.py", "benchmarks", "data", "mv2mae_jax")


def find_commands() -> list[str]:
    """Modules that are meant to be run: 'run', 'data.prepare', ..."""
    files = [file for place in PLACES for file in (ROOT / place).rglob("*.py")] + [ROOT / "run.py"]
    guarded = sorted({file for file in files if '\nif __name__ == "__main__":\n' in file.read_text()})
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for file in guarded]


COMMANDS = find_commands()


def parser_of(name: str) -> command.Parser:
    module = importlib.import_module(name)
    if not hasattr(module, "make_parser"):
        module = importlib.import_module(f"{name}.__main__")
    return module.make_parser()


def test_the_commands_are_found():
    assert {"run", "data.prepare", "data.catalog", "data.synthetic", "mv2mae_jax.features", "benchmarks.soak"} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_parse_and_exit_codes(name):
    parser = parser_of(name)
    typed = "python run.py" if name == "run" else f"python -m {name}"
    assert parser.prog == typed
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= 120
    examples = re.search(r"\nexamples:\n((?:  .+\n)+)", text)[1].splitlines()
    for line in examples:
        assert line.strip().startswith(typed), line
        words = shlex.split(line.strip().removeprefix(typed), comments=True)
        parser.parse_args(words[: words.index(">")] if ">" in words else words)
    codes = re.search(r"\nexit codes:\n((?:  .+\n?)+)", text)[1]
    assert {"0", "1", "2", "130"} <= set(re.findall(r"^  (\d+) ", codes, re.M))


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(monkeypatch):
    """Shells leave it as it is there, and a folder named `~` would be made."""
    monkeypatch.setenv("HOME", "/home/a")
    options = parser_of("run").parse_args(
        ["--config=~/c.py", "--config.data.dir=~/set", "--config.init_from=~", "--workdir=~else/x~/y"]
    )
    assert (options.config, options.workdir) == ("/home/a/c.py", "~else/x~/y")
    assert options.overrides == ["data.dir=/home/a/set", "init_from=/home/a"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_option_names_the_nearest(name, capsys):
    parser = parser_of(name)
    options = [option for option in parser._option_string_actions if len(option) > 5 and option != "--help"]
    for option in options:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([option[:-2] + option[-1] + "=1"])
        said = capsys.readouterr().err
        assert ended.value.code == command.ExitCode.REFUSED
        assert re.search(rf"Did you mean .*{option}\b", said), said
        assert said.count("\n") == 1 and "--help" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_choice_names_the_nearest(name, capsys):
    parser = parser_of(name)
    for action in parser._actions:
        for choice in filter(lambda choice: len(choice) > 3, action.choices or ()):
            with pytest.raises(SystemExit) as ended:
                parser.parse_args([f"{action.option_strings[0]}={choice}x"])
            said = capsys.readouterr().err
            assert ended.value.code == command.ExitCode.REFUSED
            assert re.search(rf"Did you mean .*{choice}\b", said), said


def accepted_values(parser: command.Parser, action: argparse.Action) -> list[str]:
    """The value to write after an option; empty for a flag."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return []
    candidates = [str(choice) for choice in action.choices or ()] + ["1", "2x4", "2x4x4", "0.5", "a"]
    for candidate in candidates:
        with contextlib.suppress(argparse.ArgumentError):
            parser._get_value(action, candidate)
            return [candidate]
    raise AssertionError(f"no value for {action.option_strings}")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_given_twice_is_refused_unless_it_is_a_list(name, capsys):
    parser = parser_of(name)
    for action in parser._actions:
        if not action.option_strings or action.dest == "help":
            continue
        once = [action.option_strings[-1], *accepted_values(parser, action)]
        if isinstance(action, argparse._AppendAction):
            with contextlib.suppress(SystemExit):  # other required options may be missing
                parser.parse_args([*once, *once])
            assert "given twice" not in capsys.readouterr().err
            continue
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*once, *once])
        assert ended.value.code == command.ExitCode.REFUSED
        assert f"{once[0]} is given twice" in capsys.readouterr().err
        with contextlib.suppress(SystemExit):
            parser.parse_args(once)
        assert "given twice" not in capsys.readouterr().err, "a parser may be used again"


def test_a_config_key_has_one_value(capsys):
    common = ["--config=a.py", "--workdir=b"]
    said = refused([*common, "--config.seed=3", "--config.total_steps=5", "--config.seed=4"], capsys)
    assert "--config.seed=3 and --config.seed=4 contradict each other" in said
    same = parser_of("run").parse_args([*common, "--config.seed=3", "--config.seed=3"])
    assert set(same.overrides) == {"seed=3"}


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        parser_of("run").parse_args(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_options_in_a_wrong_form_are_refused_with_the_right_one(capsys):
    assert "--config.total_steps=5" in refused(["--total_steps=5"], capsys)
    assert "Did you mean --workdir?" in refused(["--config=a.py", "--workdir=b", "workdir=x"], capsys)
    assert "required: --config, --workdir" in refused([], capsys)
    assert "there is no option --work." in refused(["--config=a.py", "--work=b"], capsys), "no abbreviations"
    assert parser_of("run").parse_args(["--config=a.py", "--workdir=b", "--config.seed=3"]).overrides == ["seed=3"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("configs/ntu12.py", "Did you mean configs/ntu120.py"),
        ("ntu120", "Did you mean configs/ntu120.py"),
        ("config/demo.py", r"Did you mean configs/demo.py\?"),
        ("configs/zzzzz.py", "are in configs"),
        (str(ROOT / "configs" / "pretrain_bas.py"), r"Did you mean .*pretrain_base.py"),
    ],
)
def test_a_mistyped_config_file_names_the_nearest(path, hint, monkeypatch):
    from mv2mae_jax import config

    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=hint):
        config.load(path)


def test_errors_for_users_are_user_errors():
    """Any other ValueError ends in a traceback. The exported PyTorch files run without this package, so are exempt."""
    files = [path for place in (*PLACES, "console", "configs") for path in (ROOT / place).rglob("*.py")]
    assert len(files) > 100
    for path in set(files) - {
        ROOT / f"mv2mae_jax/torch_export/{name}.py" for name in ("mv2mae_torch", "mv2mae_processor")
    }:
        plain = re.findall(r"raise (?:ValueError|OSError|FloatingPointError)\(.*", path.read_text())
        assert not [line for line in plain if "OSError(str(error))" not in line], (path, plain)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: np.ones(2) + np.ones(3),
        lambda: int("seven"),
        lambda: json.loads("{"),
        lambda: importlib.import_module("console.errors").NoSuchName,
        lambda: socket.socket().connect(("localhost", -1)),
    ],
)
def test_an_unexpected_error_keeps_its_traceback_wherever_it_is_raised(fault):
    with pytest.raises((ValueError, AttributeError, OverflowError)) as kept:
        command.execute("python x", fault)
    assert not isinstance(kept.value, errors.UserError)


@pytest.mark.parametrize("kind", [errors.UserError, errors.UnusableFile, errors.NotFinite])
def test_a_message_for_the_user_is_told_alone_wherever_it_is_raised(kind, capsys):
    def refuse():
        raise kind("seven are too many; give five")

    assert command.execute("python x", refuse) == 2
    assert capsys.readouterr().err == "python x: seven are too many; give five\n"
    copied = pickle.loads(pickle.dumps(kind("from another process")))
    assert type(copied) is kind and isinstance(copied, ValueError) and str(copied) == "from another process"


def test_execute_distinguishes_refusals_from_faults(capsys):
    def fault():
        raise ValueError("no message for a user: it does not come from this program's code")

    with pytest.raises(ValueError, match="no message for a user"):
        command.execute("python x", fault)
    assert command.execute("python x", lambda: catalog.get("ntu61")) == 2
    assert "Did you mean ntu60" in capsys.readouterr().err
    assert command.execute("python x", pathlib.Path("/nowhere/at/all").read_text) == 2
    assert "/nowhere/at/all" in capsys.readouterr().err

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert command.execute("python x", full, goes_on=True) == 2
    assert "no space is left on the disk. With room, the same command continues" in capsys.readouterr().err
    assert command.execute("python x", lambda: None) == 0
    assert command.execute("python x", lambda: 3) == 3

    def interrupt():
        raise KeyboardInterrupt

    assert command.execute("python x", interrupt, goes_on=True) == 130
    assert capsys.readouterr().err == "python x: interrupted. The same command continues from what is saved.\n"


@pytest.mark.parametrize(
    "error",
    [
        errors.UserError("no"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ValueError("a fault"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__name__}{getattr(error, 'errno', '')}",
)
def test_the_code_of_an_error_is_that_of_the_command_which_raises_it(error):
    """An error that `execute` lets through ends Python with 1."""

    def fails():
        raise error

    try:
        code = command.execute("python x", fails)
    except type(error):
        code = 1
    assert command.exit_code_of(error) == code


def test_what_the_system_refuses_about_a_path_comes_with_advice(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused = [tmp_path / "file", tmp_path / "link", tmp_path / "file" / "x", tmp_path / ("x" * 300)]
    for path, advice in zip(refused, ["where a folder is needed"] * 3 + ["Name a shorter path"], strict=True):
        assert command.execute("python x", path.mkdir) == 2
        told = capsys.readouterr().err
        assert str(path) in told and advice in told


@pytest.mark.parametrize(
    ("prints", "code", "told"),
    [
        ("print('much ' * 9999)", 141, "the program behind | has ended, so this one ended, too: give it again."),
        ("print('little')", 0, "the program behind | has ended, so the rest of the output was not printed."),
    ],
)
def test_a_reader_that_has_ended_is_told_without_a_traceback(prints, code, told):
    program = f"import sys; from console import command; sys.exit(command.execute('python x', lambda: {prints}))"
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    settings = {"stdout": writing, "stderr": subprocess.PIPE, "cwd": ROOT, "env": environment, "text": True}
    done = subprocess.run([sys.executable, "-c", program], check=False, **settings)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, f"python x: {told}\n")


def test_the_parsers_are_light():
    """Every worker process imports run.py again, so that it must import neither JAX nor NumPy."""
    code = "import sys, run; run.make_parser(); sys.exit(bool({'jax', 'numpy', 'tensorboardX'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def in_terminal(arguments: list[str], columns: int) -> str:
    """All output of a program on a terminal with this number of columns."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(arguments, stdin=side, stdout=side, stderr=side)
    os.close(side)
    drawn = b""
    with contextlib.suppress(OSError):  # Linux raises this when the program has ended
        while data := os.read(main, 65536):
            drawn += data
    os.close(main)
    assert process.wait() == 0, drawn
    return drawn.decode()


def screen_after(drawn: str, columns: int) -> list[str]:
    """The lines that the terminal shows in the end."""
    screen, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[A|[\s\S]", drawn):
        if code == "\r":
            column = 0
        elif code == "\n":
            row += 1
        elif code == "\x1b[A":
            row = max(0, row - 1)
        else:
            if column == columns:  # a long line continues in the next row
                row, column = row + 1, 0
            screen += [""] * (row + 1 - len(screen))
            line = screen[row].ljust(column)
            screen[row] = line[:column] + code + line[column + 1 :]
            column += 1
        screen += [""] * (row + 1 - len(screen))
    return [line.rstrip() for line in screen]


TEN_THINGS = """
import multiprocessing, sys, time
from console import progress

progress.SECONDS_BETWEEN_LINES = 0.05

def worker():
    with progress.Bar(1, "SPAWNED", "things") as bar:
        bar.advance()

if __name__ == "__main__":
    progress.configure(sys.argv[1] if len(sys.argv) > 1 else "auto")
    with progress.Bar(10, "doing", "things") as bar:
        for thing in range(10):
            time.sleep(0.02)
            bar.advance()
            if thing == 5:
                progress.say("a line of the log")
                for _ in progress.track([1, 2], "within", "parts"):
                    progress.say("another line")
    worker_process = multiprocessing.get_context("spawn").Process(target=worker)
    worker_process.start()
    worker_process.join()
"""


@pytest.fixture
def ten_things(tmp_path):
    path = tmp_path / "ten_things.py"
    path.write_text(TEN_THINGS)
    return path


def run_things(path: pathlib.Path, *mode: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, path, *mode], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("columns", [100, 30])
def test_a_bar_on_a_terminal_keeps_to_its_line_and_spares_the_log(ten_things, columns):
    drawn = in_terminal(["env", f"PYTHONPATH={ROOT}", sys.executable, str(ten_things)], columns)
    screen = screen_after(drawn, columns)
    assert "a line of the log" in screen and screen.count("another line") == 2
    assert any(line.startswith("doing 100% 10/10 things") for line in screen)
    assert "SPAWNED" not in drawn
    assert not any(line.startswith("within") for line in screen), "a finished inner bar is removed"
    assert len([line for line in screen if line]) == 4


def test_without_a_terminal_there_are_no_bars(ten_things):
    for mode in ((), ("auto",), ("none",)):
        shown = run_things(ten_things, *mode)
        assert shown.stderr == "" and shown.stdout.splitlines() == ["a line of the log", "another line", "another line"]


def test_plain_progress_is_lines(ten_things):
    lines = run_things(ten_things, "plain").stderr.splitlines()
    assert re.match(r"doing  \d0% \d/10 things, 00:00 left, 00:00 gone, [ .\d]+ things/s$", lines[0])
    assert len(lines) > 2
    assert lines[-1].startswith("doing 100% 10/10 things, 00:00 left")
    assert not any("\r" in line or "SPAWNED" in line for line in lines)


def test_the_packages_list_their_commands(capsys):
    assert set(overview.find("data")) == {name for name in COMMANDS if name.startswith("data.")}
    assert overview.main("data", []) == 0
    assert "python -m data.prepare    Raw multi-view videos" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        overview.main("data", ["prepar"])
    assert "Did you mean python -m data.prepare?" in capsys.readouterr().err


def test_progress_is_silent_until_a_command_asks_for_it(capfd):
    with progress.Bar(2, "doing", "things") as bar:
        bar.advance()
        bar.resume()
    assert list(progress.track("ab", "doing", "things")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")
    assert not progress.silenced(), "a run's own lines are printed"
