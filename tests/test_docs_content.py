"""Figures, numbers, tables and messages in the documentation agree with their sources; it renders without a warning."""

import ast
import fnmatch
import functools
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys

import config_tables
import draw_architecture
import draw_curves
import draw_method
import draw_report
import pytest
from source_pages import tracked_files

from mv2mae_jax import config as configs
from tests.pages import DOCS, PAGE_NAMES, ROOT, bases, inline, repository, tokens, written_in_code

# --- Figures ---


def test_the_picture_of_the_architecture_shows_the_imports():
    for box in draw_architecture.BOXES:
        assert all((ROOT / file).exists() for file in box.files), f"{box.name}: {box.files}"
    for first, second in draw_architecture.ARROWS:
        assert draw_architecture.is_import(first, second), f"no file of {first} and {second} imports the other's"
    assert not draw_architecture.is_import("catalogues", "optimiser")
    drawn = draw_architecture.PICTURE.read_text()
    assert drawn == draw_architecture.draw(), "the picture is out of date: run python docs/draw_architecture.py"


def test_every_figure_is_drawn_by_a_script_and_shown():
    drawn = {"architecture.svg", "model.svg"}  # the latter by hand
    for script in (draw_method, draw_curves, draw_report):
        drawn |= script.FIGURES_BY_NAME.keys()
    shown = {os.path.basename(i.attrs["src"]) for page in PAGE_NAMES for i in inline(page, "image")}
    there = {path.name for path in (DOCS / "figures").iterdir()}
    assert there == drawn and there <= shown


# --- Numbers ---

GAINS = ("cross_gain", "cross_gain_pose")


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


def test_the_demos_numbers_are_those_of_its_history():
    measured = draw_curves.final("demo_seed0")
    gains = [f"{100 * measured[name]:.1f} {{}} {100 * measured[f'{name}_standard_error']:.1f} %" for name in GAINS]
    readme, docstring = (ROOT / "README.md").read_text(), (ROOT / "configs/demo.py").read_text()
    for gain in gains:
        assert gain.format("±") in readme and gain.format("+-") in docstring
    for name in ("loss_mean_prediction", "loss_self", "loss_cross"):
        assert f"{measured[name]:.3f}" in readme and f"{name} {measured[name]:.3f}" in docstring
    for name in ("psnr_self", "psnr_cross"):
        assert f"{name} {measured[name]:.1f}" in docstring


def test_the_effect_of_a_changed_loss_is_that_of_the_histories():
    rows = re.findall(r"^\| (\d+) \| ([\d. |]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert len(rows) == 3
    logged = [
        {row["step"]: row for row in draw_curves.history(name) if "train/loss_self" in row}
        for name in ("demo_seed0", "centred_first_steps")
    ]
    for step, cells in rows:
        demo, centred = (
            [f"{run[int(step)][f'train/loss_{name}']:.3f}" for name in ("mean_prediction", "self", "cross")]
            for run in logged
        )
        assert demo[0] == centred[0], "the mean prediction does not depend on the patches' mean colours"
        assert cells.split(" | ") == [demo[0], demo[1], centred[1], demo[2], centred[2]]


def test_the_demos_commands_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace('"$(DEMO)"', "demo_output")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)[1].replace("\t", "")
    assert recipe in (DOCS / "get_started.md").read_text()


def test_the_demos_folder_may_have_a_space_in_its_name():
    """`make clean` would remove two other folders."""
    dry = subprocess.run(
        ["make", "--dry-run", "clean", "DEMO=my demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "my demo" in shlex.split(dry.stdout)


def test_sizes_for_your_own_videos_are_those_of_the_configs():
    small, large = (
        dict(configs.flatten(configs.load(str(ROOT / f"configs/{name}.py")))) for name in ("folder", "pretrain_base")
    )
    page = (DOCS / "your_videos.md").read_text()
    compared = 0
    for key, *cells in re.findall(r"^\| `([\w.]+)`[^|]*\| ([^|]*) \| ([^|]*) \|", page, re.M):
        for config, cell in zip((small, large), cells, strict=True):
            numbers = tuple(map(int, re.findall(r"\d+", cell.replace(",", ""))))
            if numbers and key in config and not isinstance(config[key], str):
                wanted = config[key] if isinstance(config[key], tuple) else (config[key],)
                assert numbers == wanted, (key, cell)
                compared += 1
    assert compared == 10


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


# --- Speed, TPUs and input: tables against the raw figures ---

TIMES = {  # row of docs/speed.md: file in benchmarks/results/train_step
    "cpu": {
        "ViT-S, 16x128x128": "cpu",
        "ViT-S, 16x224x224": "cpu_s224",
        "ViT-B, 16x128x128": "cpu_b128",
        "ViT-B, 16x224x224": "cpu_b224",
    },
    "h200": {
        "ViT-S, 16x128x128, 256 clips": "h200_s128",
        "ViT-S, 16x224x224, 64 clips": "h200_s224",
        "ViT-B, 16x128x128, 256 clips": "h200_b128",
        "ViT-B, 16x224x224, 64 clips": "h200_b224",
    },
}


def rows_of(page: str) -> dict[str, list[str]]:
    """The cells of every table row by the row's first cell. If two rows share it, the first is taken."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", (DOCS / page).read_text(), re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in reversed(rows)}


def raw(path: str) -> dict:
    return json.loads((ROOT / "benchmarks/results" / path).read_text())


def timed(path: str, precision: str) -> dict[str, dict]:
    """Median clips/s, time relative to ours, memory in GB and MFU of each implementation."""
    (record,) = (r for r in raw(f"train_step/{path}.json")["records"] if r["case"]["precision"] == precision)
    ours = record["implementations"]["mv2mae-jax"]
    found = {}
    for name, one in record["implementations"].items():
        seconds, rate = statistics.median(one["seconds"]), None
        if one.get("peak_flops_per_second"):
            rate = one["model_flops"] / seconds / one["peak_flops_per_second"]
        ratios = [theirs / own for theirs, own in zip(one["seconds"], ours["seconds"], strict=True)]
        found[name] = {
            "clips/s": record["case"]["batch"] / seconds,
            "time / ours": statistics.median(ratios),
            "GB": one["memory_bytes"] / 1e9,
            "MFU": rate,
        }
    return found


@pytest.mark.parametrize("row", TIMES["cpu"])
def test_cpu_speeds_are_those_measured(row):
    cells = rows_of("speed.md")[row][1:]
    for precision, shown in (("float32", cells[:3]), ("bfloat16", cells[3:])):
        measured = timed(TIMES["cpu"][row], precision)
        assert shown == [
            f"{measured['mv2mae-jax']['clips/s']:.1f}",
            f"{measured['transformers']['time / ours']:.2f}",
            f"{measured['transformers, torch.compile']['time / ours']:.2f}",
        ]


@pytest.mark.parametrize("row", TIMES["h200"])
def test_gpu_speeds_are_those_measured(row):
    measured = timed(TIMES["h200"][row], "bfloat16")
    ours = measured["mv2mae-jax"]
    assert rows_of("speed.md")[row] == [
        f"{ours['clips/s']:,.0f}",
        f"{100 * ours['MFU']:.0f} %",
        f"{ours['GB']:.1f}",
        f"{measured['transformers']['time / ours']:.2f}",
        f"{measured['transformers, torch.compile']['time / ours']:.2f}",
        f"{measured['mv2mae-jax, whole MV2MAE step']['clips/s']:,.0f}",
    ]


def compiled(file: str) -> dict[str, str]:
    """The figures of a compilation as docs/tpu.md writes them."""
    record = raw(f"topology/{file}")
    bound, program = record["bound"], record["program"]
    by_compiler, seconds = bound["mfu_by_compiler"], bound["compiler_seconds"]
    memory = (record["memory_per_device"]["total"], record["chip_memory_bytes"])
    return {
        "program": record["title"],
        "slice": record["topology"],
        "batch/chip": f"{record['batch_per_chip']:g}",
        "memory GB/chip": " of ".join(f"{size / 1e9:.1f}" for size in memory),
        "HBM GB/chip": f"{program['hbm_bytes'] / 1e9:.1f}",
        "sent MB/chip": f"{sum(kind['wire_bytes'] for kind in program['collectives'].values()) / 1e6:.0f}",
        "compiler's ms": f"{1e3 * seconds:.0f}" if seconds else "",
        "MFU at most": f"{bound['mfu']:.0%}",
        "MFU by it": f"{by_compiler:.0%}" if by_compiler else "",
        "clips/s per host, at most": f"{record['input']['clips_per_second_per_host']:,.0f}",
    }


def test_tpu_tables_are_those_compiled():
    files = [path.name for path in (ROOT / "benchmarks/results/topology").glob("*.json")]
    records = [compiled(file) for file in files if "bound" in raw(f"topology/{file}")]
    lines = (DOCS / "tpu.md").read_text().splitlines()
    compared = 0
    for number, line in enumerate(lines):
        if line.startswith("| program | slice |"):
            columns = [cell.strip() for cell in line.strip("|").split("|")]
            for row in itertools.takewhile(lambda text: text.startswith("|"), lines[number + 2 :]):
                shown = dict(zip(columns, (cell.strip() for cell in row[1:-1].split("|")), strict=True))
                assert any(shown.items() <= record.items() for record in records), row
                compared += 1
    assert compared == 13


def test_rates_of_the_input_are_those_measured():
    figures, compared = raw("input_pipeline/real_video.json")["figures"], 0
    places = {"threads": "workers=0", "two reading processes": "workers=2"}
    for row, cells in rows_of("input.md").items():
        place, *options = row.replace("threads of one process", "threads").split(", ")
        if place not in places:
            continue
        repeats = "4" if "`data.repeats=4`" in options else "1"
        case = f"pipeline, repeats={repeats}, {places[place]}"
        case += ", motion_on=device" if "`data.motion_on=device`" in options else ""
        for cell, stored in zip(cells, ("jpeg 170", "dct 170", "jpeg 128", "dct 128"), strict=True):
            if cell:
                assert cell == f"{1e3 / statistics.median(figures[stored][case]):,.0f}", (row, stored)
                compared += 1
    assert compared == 24


# --- Tables of config keys, and rendering ---


@pytest.mark.parametrize("task", configs.TASKS)
def test_tables_hold_every_key_once_with_its_value(task):
    base = f"{task}_base"
    rows = [line.split("|")[1:4] for line in config_tables.keys_table(base) if line.startswith("| `")]
    shown = {key.strip(" `"): value.strip() for key, value, _ in rows}
    assert len(shown) == len(rows)
    values = dict(configs.flatten(bases()[task]))
    assert shown.keys() == values.keys()
    for key, text in shown.items():
        if text != "not set":
            assert ast.literal_eval(text.strip("`")) == values[key]


def test_reasons_are_read_from_above_and_behind(tmp_path):
    path = tmp_path / "base.py"
    path.write_text(
        "config.loss = config_dict.ConfigDict(\n    dict(\n        # --- Rule ---\n        # Scale of t,\n"
        "        # unknown.\n        temperature=60.0,  # [paper] best\n        ess=0.6,  # [ours]\n    )\n)\n"
        "config.model.remat = 'none'  # [ours] no gradients\nconfig.seed = 1  # [ours] of the demo\n"
    )
    assert configs.documented_keys(str(path)) == {
        "loss.temperature": ("paper", "Scale of t, unknown. best"),
        "loss.ess": ("ours", ""),
        "model.remat": ("ours", "no gradients"),
        "seed": ("ours", "of the demo"),
    }


def test_files_are_found_without_git(tmp_path):
    for path in ("docs/index.md", ".ci/run", ".venv/bin/python", "demo_output/run/x.png", "docs/_build/a.html"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert tracked_files(tmp_path) == [".ci/run", "docs/index.md"]


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
    """Every string of the program except docstrings, with PART for each value that is filled in."""
    found = []
    for file in repository()[0]:
        if file.endswith(".py") and file.partition("/")[0] in ("run.py", "console", "data", "mv2mae_jax"):
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
