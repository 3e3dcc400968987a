"""The documentation: it renders without a warning; links lead somewhere; commands, keys and code are the program's."""

import argparse
import ast
import fnmatch
import functools
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import config_tables
import draw_architecture
import draw_curves
import draw_method
import pytest
from markdown_it import MarkdownIt
from source_pages import tracked_files

from data import catalog
from mv2mae_jax import config as configs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "data/README.md", *DOCS.glob("*.md")])
PAGE_NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
TASKS = configs.TASKS
OUTPUT = "text"  # the language of blocks that show what a program wrote


@functools.cache
def tokens(page: str):
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def inline(page: str, kind: str) -> Iterator:
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def fences(page: str) -> Iterator[tuple[str, str, int]]:
    """(language, text, line) of every fenced block."""
    for token in tokens(page):
        if token.type == "fence":
            yield token.info.strip(), token.content, token.map[0] + 1


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub and myst-parser make them."""
    found = []
    for heading, text in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            plain = "".join(c.content for c in text.children if c.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@functools.cache
def repository() -> tuple[set[str], set[str]]:
    """The repository's files and its folders."""
    files = set(tracked_files())
    return files, {parent.as_posix() for file in files for parent in Path(file).parents}


@functools.cache
def in_examples() -> set[str]:
    """Keys and names that the patches of extending.md add; only tests/test_docs_examples.py has them."""
    patches = "".join(text for language, text, _ in fences("docs/extending.md") if language == "diff")
    return set(re.findall(r'^\+ +"([\w.]+)": ', patches, re.M))


# --- Links ---


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_links_and_pictures_exist(page):
    files, folders = repository()
    assert all(image.content for image in inline(page, "image")), f"{page}: a picture says nothing to who cannot see it"
    targets = [link.attrs["href"] for link in inline(page, "link_open")]
    targets += [image.attrs["src"] for image in inline(page, "image")]
    for target in targets:
        if re.match(r"https?://", target):
            continue  # not fetched
        path, _, anchor = target.partition("#")
        place = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert place in files or place in folders, f"{page} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(place), f"{page} links to {target}; {place} has {sorted(anchors(place))}"


def test_every_page_is_linked_from_the_index():
    linked = {link.attrs["href"] for link in inline("docs/index.md", "link_open")}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_the_readme_links_to_every_page():
    linked = {link.attrs["href"] for link in inline("README.md", "link_open")}
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} - {"docs/reference.md"} <= linked


# --- Commands ---

# Programs of others that the pages call; what is asked of them is not checked.
OTHERS = {"source", "git", "cd", "sha256sum", "find", "tensorboard", "gcloud", "srun", "python3", "chromium", "apt"}


class _Captured(Exception):
    pass


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser that `python -m PROGRAM`, or `python run.py`, makes."""

    def capture(self, *_, **__):
        raise _Captured(self)

    with (
        warnings.catch_warnings(action="ignore"),  # the module may have been imported before
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture),
        mock.patch.object(sys, "argv", [program]),
        pytest.raises(_Captured) as caught,
    ):
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    return caught.value.args[0]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def check_command(words: list[str], where: str, complete: bool = True) -> None:
    """Fails unless program, flags, config, keys and values exist; `complete`: nothing that is needed is missing."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    name = words[0].removeprefix(".venv/bin/").removeprefix(".venv-tpu/bin/") if words else ""
    for word in words[1:]:
        if re.search(r"python (-m|run\.py)", word):  # a command for another shell
            for command in commands(re.sub("^--[a-z]+=", "", word)):
                check_command(command, where, complete)
    if name == "srun":
        return check_command(words[1:], where, complete)
    if name == "make":
        known = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
        assert not (wrong := [w for w in words[1:] if "=" not in w and w not in known]), f"{where}: make {wrong}"
        return None
    if name == "pip":
        named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-r"]
        assert all((ROOT / file).exists() for file in named), f"{where}: {named}"
        return None
    if name != "python":
        assert name in OTHERS, f"{where}: {name!r} is no command that is known here"
        return None
    program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    if program in ("pytest", "sphinx"):
        return None
    assert importlib.util.find_spec(program) if words[1] == "-m" else (ROOT / program).exists(), f"{where}: {program}"
    if program.startswith("docs/"):
        assert not arguments, f"{where}: {program} takes no arguments"
        return None
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    rest = [a for a in arguments if not a.startswith("--config.") and a != "..."]
    parser = parser_of(program)
    if complete:
        try:
            options, unknown = parser.parse_known_args(rest)
        except SystemExit:
            pytest.fail(f"{where}: {program} refuses {rest}")
        assert not unknown, f"{where}: {program} does not know {unknown}"
        if getattr(options, "dataset", None):
            assert options.dataset in {*catalog.NAMES, *in_examples()}, f"{where}: --dataset={options.dataset}"
    else:
        flags = [a.partition("=")[0] for a in rest if a.startswith("--")]
        unknown = set(flags) - parser._option_string_actions.keys()
        assert not unknown, f"{where}: {program} does not know {sorted(unknown)}"
    file = next((a.removeprefix("--config=") for a in rest if a.startswith("--config=")), None)
    check_config(None if file in (None, "...") else file, overrides, where)
    return None


@functools.cache
def bases() -> dict[str, object]:
    return {task: configs.load(str(ROOT / f"configs/{task}_base.py")) for task in TASKS}


def check_config(file: str | None, overrides: list[str], where: str) -> None:
    """Fails unless the config exists and, with the overrides, is valid for a data set that exists."""
    overrides = [o for o in overrides if o.partition("=")[0].islower() and o.partition("=")[2] != "..."]
    overrides = [o for o in overrides if o.partition("=")[0] not in in_examples()]
    if file is None:  # any task that has these keys
        for task in TASKS:
            try:
                configs.load(str(ROOT / f"configs/{task}_base.py"), overrides)
                return
            except ValueError as error:
                problem = error
        pytest.fail(f"{where}: {problem}")
    assert (ROOT / file).exists(), f"{where}: {file} does not exist"
    config = configs.load(str(ROOT / file), overrides)
    try:
        configs.validate(config)
    except ValueError as error:
        wrong = [line for line in str(error).splitlines()[1:] if "data.dir" not in line]
        assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_commands_are_understood(page):
    for language, text, line in fences(page):
        if language not in ("", "sh", "bash"):
            continue
        for command in commands(text):
            check_command(command, f"{page}:{line}")
    for code in inline(page, "code_inline"):
        text = code.content
        if re.match(r"(\.venv/bin/)?python (-m |run\.py)|make [a-z]", text):
            check_command(shlex.split(text), f"{page}: {text}", complete=False)
        elif text.startswith("--config."):
            check_config(None, [flag.removeprefix("--config.") for flag in shlex.split(text)], f"{page}: {text}")


# --- Names ---


# Where runs, demos and users keep things; what lies there is not the repository's.
ELSEWHERE = re.compile(r"(demo_output|benchmark_output|runs|prepared|exported|WORKDIR|RUN|DIR|OUTPUT|/)\b|.*[A-Z]{3,}/")
SUFFIXES = r"\.(py|md|ipynb|toml|json|jsonl|txt|csv|yml|yaml|parquet|npy|npz|pth|safetensors|html|css|svg|png|jpg)"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_config_keys_exist(page):
    known = {key for base in bases().values() for key, _ in configs.flatten(base)}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for code in inline(page, "code_inline"):
        matched = re.fullmatch(r"(?:config\.)?((\w+)\.\w+)(?:=\S*)?", code.content)
        if matched and matched[2] in sections and not re.fullmatch(rf".*{SUFFIXES}", code.content):
            key = matched[1]
            module = key.replace(".", "/")  # the package `data` and the section of this name share their form
            assert key in known | in_examples() or any(f.startswith(module) for f in repository()[0]), (
                f"{page}: there is no key {key}"
            )


@functools.cache
def written_in_code() -> str:
    return "\n".join((ROOT / file).read_text() for file in repository()[0] if file.endswith(".py"))


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_named_files_exist(page):
    files, folders = repository()
    names = {file.rpartition("/")[2] for file in files}
    for code in inline(page, "code_inline"):
        path = code.content.rstrip("/")
        if not re.fullmatch(rf"[\w./-]+{SUFFIXES}|[\w.-]+(/[\w.-]+)*/", code.content) or ELSEWHERE.match(path):
            continue
        if "/" in path:
            top = path.partition("/")[0]
            if top in {file.partition("/")[0] for file in files}:
                added = f"<!-- file: {path} -->" in (ROOT / page).read_text()  # by a worked example
                assert path in files or path in folders or added, f"{page}: {path} does not exist"
        else:
            known = path in names or path in {folder.rpartition("/")[2] for folder in folders}
            assert known or path in written_in_code(), f"{page}: nothing is called {path}"


# --- Python ---


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_python_compiles(page):
    for language, text, line in fences(page):
        if language == "python":
            tree = ast.parse(text, f"{page}:{line}")
            for node in ast.walk(tree):
                names = []
                if isinstance(node, ast.ImportFrom):
                    names = [(node.module, alias.name) for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [(alias.name, None) for alias in node.names]
                for module, attribute in names:
                    check_import(module, attribute, f"{page}:{line}")


def check_import(module: str, attribute: str | None, where: str) -> None:
    if module.partition(".")[0] not in ("mv2mae_jax", "data", "configs", "benchmarks", "run"):
        return
    assert importlib.util.find_spec(module), f"{where}: there is no module {module}"
    if attribute:
        found = hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(f"{module}.{attribute}")
        assert found, f"{where}: {module} has no {attribute}"


# --- Figures ---


def test_the_picture_of_the_architecture_is_true():
    for box in draw_architecture.BOXES:
        assert all((ROOT / file).exists() for file in box.files), f"{box.name}: {box.files}"
    for first, second in draw_architecture.ARROWS:
        assert draw_architecture.is_import(first, second), f"no file of {first} and {second} imports the other's"
    assert not draw_architecture.is_import("catalogues", "optimiser")
    drawn = draw_architecture.PICTURE.read_text()
    assert drawn == draw_architecture.draw(), "python docs/draw_architecture.py draws it anew"


def test_every_figure_is_drawn_by_a_script_and_shown():
    drawn = {"architecture.svg", "model.svg"}  # the latter by hand
    for script in (draw_method, draw_curves):
        drawn |= script.FIGURES_BY_NAME.keys()
    shown = {os.path.basename(i.attrs["src"]) for page in PAGE_NAMES for i in inline(page, "image")}
    there = {path.name for path in (DOCS / "figures").iterdir()}
    assert there == drawn and there <= shown


# --- Numbers ---


def test_the_reference_table_is_that_of_the_histories():
    runs = ("demo_seed0", "demo_seed1", "demo_rate_tenfold", "demo_rate_tenth")
    rows = re.findall(r"^\| `eval/(\w+)` \| ([-\d. ±%|]+)\|$", (DOCS / "reading_your_run.md").read_text(), re.M)
    assert len(rows) == 7
    for metric, cells in rows:
        for run, cell in zip(runs, cells.split("|"), strict=True):
            measured = draw_curves.final(run)
            number, _, error = cell.strip(" %").partition(" ± ")
            scale, step = (100, 0.1) if "%" in cell else (1, 10.0 ** -len(number.partition(".")[2]))
            assert abs(float(number) - scale * measured[metric]) <= 0.51 * step, (run, metric)
            if error:
                assert abs(float(error) - scale * measured[f"{metric}_standard_error"]) <= 0.51 * step, (run, metric)


def test_explained_metrics_exist():
    explained = [c.content for c in inline("docs/reading_your_run.md", "code_inline")]
    explained = {name for name in explained if re.fullmatch(r"(train|eval|data|perf)/[\w*]+", name)}
    reported = {
        key for path in draw_curves.HISTORIES.glob("*.jsonl") for row in draw_curves.history(path.stem) for key in row
    }
    for name in explained:
        known = fnmatch.filter(reported, name) or name.partition("/")[2] in written_in_code()
        assert known, f"nothing reports {name}"
    not_explained = [key for key in reported if not any(fnmatch.fnmatch(key, name) for name in explained)]
    assert set(not_explained) <= {
        "step",
        "perf/steps_per_second",
        "perf/tflops_per_second_per_device",
        "eval/cross_gain_pose_standard_error",
    }


# --- Tables and the whole ---


@pytest.mark.parametrize("task", TASKS)
def test_tables_hold_every_key_once_with_its_value(task):
    base = f"{task}_base"
    rows = [line.split("|")[1:4] for line in config_tables.keys_table(base) if line.startswith("| `")]
    shown = {key.strip(" `"): value.strip() for key, value, _ in rows}
    assert len(shown) == len(rows)
    source = (ROOT / f"configs/{base}.py").read_text()
    values = dict(configs.flatten(bases()[task]))
    borrowed = {"mesh", "checkpoint", "log", "limits"} if task != "pretrain" else set()
    assert shown.keys() == {key for key in values if key.partition(".")[0] not in borrowed}
    for key, text in shown.items():
        if text != "not set":
            assert ast.literal_eval(text.strip("`")) == values[key]
            assert f"{key.rpartition('.')[2]}=" in source


def test_reasons_are_read_from_above_and_behind(tmp_path):
    path = tmp_path / "base.py"
    path.write_text(
        "config.loss = config_dict.ConfigDict(\n    dict(\n        # --- Rule ---\n        # Scale of t,\n"
        "        # unknown.\n        temperature=60.0,  # [paper] best\n        ess=0.6,  # [ours]\n    )\n)\n"
    )
    assert configs.documented_keys(str(path)) == {
        "loss.temperature": ("paper", "Scale of t, unknown. best"),
        "loss.ess": ("ours", ""),
    }


def test_pages_render_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "html")]
    built = subprocess.run([*command, "-d", str(tmp_path / "trees")], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in DOCS.glob("*.md"):
        html = (tmp_path / "html" / f"{page.stem}.html").read_text()
        assert html.count("<h1>") == 1
        assert "<!-- {" not in html, f"{page.name}: a hidden directive was not read"
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', html)
        assert not fetched, f"{page.name} needs the network for {fetched}"
    method = re.sub("<[^>]+>", "", (tmp_path / "html/method.html").read_text())
    for name in ("patchify", "draw_mask", "motion_energy", "motion_weights", "reconstruction_loss", "make_train_step"):
        assert f"def {name}(" in method
    rows = (tmp_path / "html/configs.html").read_text().count("<td><p><code")
    assert rows >= len(dict(configs.flatten(bases()["pretrain"])))


# --- Messages ---

PART = "…"  # stands for what a message fills in


@functools.cache
def messages_in_code() -> list[str]:
    """Every string of the program but its docstrings, with PART for what is filled in."""
    found = []
    for file in repository()[0]:
        if file.endswith(".py") and file.partition("/")[0] in ("run.py", "data", "mv2mae_jax"):
            nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else PART for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    found.append(node.value)
    return found


def occurs(message: str) -> bool:
    pattern = re.compile(".*".join(map(re.escape, message.split(PART))), re.DOTALL)
    return any(pattern.search(text) for text in messages_in_code())


def quoted_messages() -> list[str]:
    """The first column of the tables of troubleshooting.md, up to the messages of other programs."""
    found, page = [], tokens("docs/troubleshooting.md")
    for row, _, cell in zip(page, page[1:], page[2:], strict=False):
        if row.type == "inline" and row.content == "Messages of other programs":
            return found
        if row.type == "tr_open" and cell.content.startswith("`"):
            found.append(next(child.content for child in cell.children if child.type == "code_inline"))
    raise AssertionError("The section on other programs is gone.")


def test_quoted_messages_are_the_programs():
    quoted = quoted_messages()
    assert len(quoted) > 50
    missing = [message for message in quoted if not occurs(message)]
    assert not missing, "The program does not say:\n" + "\n".join(missing)


def test_a_message_that_nothing_says_is_noticed():
    assert occurs("There is no config key …")
    assert not occurs("There is no config kez …")
