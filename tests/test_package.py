"""The wheel holds the whole program, which works without a checkout."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from mv2mae_jax.runs import metrics_file
from tests.pages import repository

ROOT = pathlib.Path(__file__).parent.parent
FOR_THE_CHECKOUT = {"benchmarks", "docs", "tests"}  # folders with Python that are not installed


def run(*command, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Builds the wheel from a copy: setuptools leaves a build folder, whose old files a later wheel would hold."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in repository()[0]:
        (folder / "tree" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / "tree" / file)
    (folder / "tree/data/__pycache__").mkdir()
    (folder / "tree/data/__pycache__/left.pyc").touch()
    options = ("--quiet", "--no-build-isolation", "--no-deps", f"--wheel-dir={folder}")
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_all_folders_of_the_program(wheel):
    folders = {file.partition("/")[0] for file in repository()[0] if file.endswith(".py") and "/" in file}
    folders -= FOR_THE_CHECKOUT
    assert {"configs", "console", "data", "mv2mae_jax"} <= folders
    expected = {file for file in repository()[0] if file.partition("/")[0] in folders}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"mv2mae_jax/report/style.css", "mv2mae_jax/report/template.html"} <= held


def test_what_is_installed_imports_nothing_of_the_checkout(wheel):
    archive = zipfile.ZipFile(wheel)
    for name in (name for name in archive.namelist() if name.endswith(".py")):
        for node in ast.walk(ast.parse(archive.read(name))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {*FOR_THE_CHECKOUT, "run"}, name


def test_the_revision_is_not_that_of_a_checkout_around_the_installed_package(tmp_path, monkeypatch):
    for command in (["init"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "--allow-empty", "-m", "theirs"]):
        run("git", *command, cwd=tmp_path)
    (tmp_path / "metrics_file.py").touch()
    monkeypatch.setattr(metrics_file, "__file__", str(tmp_path / "metrics_file.py"))
    assert metrics_file.git_revision() == "unknown"
    run("git", "add", "metrics_file.py", cwd=tmp_path)
    assert metrics_file.git_revision() != "unknown"


@pytest.mark.slow
def test_the_installed_program_works_in_any_folder(wheel, tmp_path):
    """Videos, the demo's training, a report and an export. Dependencies come from this environment."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    (site_packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site_packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-index", "--no-deps", wheel)
    here = tmp_path / "elsewhere"
    for folder in ("data", "configs"):  # users may have folders of these names
        (here / folder).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}

    def typed(*command) -> str:
        return run(python, *command, cwd=here, env=environment).stdout

    found = typed("-c", "import configs, console, data, mv2mae_jax as m; print(configs, console, data, m)")
    assert found.count(str(site_packages)) == 4
    typed("-m", "data.synthetic", "--output=raw", "--takes=8", "--resolution=64x48", "--workers=2")
    typed("-m", "data.prepare", "--dataset=synthetic", "--input=raw", "--output=prepared", "--short_side=40")
    shrunk = ["data.dir=prepared", "total_steps=2", "data.crop_size=(32,32)", "eval.num_pictures=1"]
    shrunk += ["eval.batch_size=8", "eval.clips_per_element=1", "eval.max_feature_takes=6", "data.num_workers=1"]
    options = ["--workdir=run", *(f"--config.{key}" for key in shrunk)]
    said = typed("-m", "mv2mae_jax.run", "--config=configs/demo.py", *options)
    assert "Report: run/report.html" in said
    (here / "run/report.html").unlink()
    typed("-m", "mv2mae_jax.report", "--workdir=run")
    assert "<svg" in (here / "run/report.html").read_text()
    assert '"command": "python -m mv2mae_jax.run --config=' in (here / "run/starts.jsonl").read_text()
    typed("-m", "mv2mae_jax.torch_export", "--workdir=run", "--format=port", "--output=port")
    assert (here / "port/mv2mae_torch.py").exists()
    assert "python -m mv2mae_jax.run " in typed("-m", "mv2mae_jax")
