"""The notebook runs from top to bottom, finds its own repository, is small, and is stored without outputs."""

import ast
import io
import json
import os
import pathlib
import re
import urllib.request
import zipfile

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "mv2mae_colab.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs_and_small(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert NOTEBOOK.stat().st_size < 30_000


def source_of(notebook, cell):
    return next(c.source for c in notebook.cells if c.id == cell)


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (
            [{"path": "fileId=https%3A%2F%2Fgithub.com%2Fsome.one%2Fa_fork%2Fblob%2Fa%2Fbranch%2Fnotebooks%2Fx.ipynb"}],
            ["--branch=a/branch", "https://github.com/some.one/a_fork"],
        ),
        ([{"path": "fileId=1AbC"}], []),  # a copy in Google Drive
        ([{}], []),
        (None, []),
    ],
)
def test_the_repository_is_the_one_that_colab_opened_the_notebook_from(notebook, monkeypatch, answer, source):
    def urlopen(address, timeout):
        assert re.fullmatch(r"http://[\d.]+:9000/api/sessions", address)
        if answer is None:
            raise urllib.error.URLError("no such host")
        return io.BytesIO(json.dumps(answer).encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    tree = ast.parse(source_of(notebook, "install"))
    tree.body = [n for n in tree.body if isinstance(n, ast.Import) or getattr(n, "name", None) == "opened_from"]
    names = {"os": os}
    exec(compile(tree, "install", "exec"), names)
    assert names["opened_from"]() == source
    assert 'REPOSITORY = ""' in source_of(notebook, "settings")


def test_the_folder_of_the_results_may_have_a_space_in_its_name(notebook, tmp_path, capsys):
    """As `My Drive` has."""
    tree = ast.parse(source_of(notebook, "install"))
    tree.body = [n for n in tree.body if isinstance(n, ast.Import) or getattr(n, "name", None) == "run"]
    output = tmp_path / "My Drive"
    output.mkdir()
    (output / "a.py").write_text("print('found')")
    names = {"CODE": tmp_path, "OUTPUT": output}
    exec(compile(tree, "install", "exec"), names)
    names["run"](f"python {output}/a.py --b='(1, 2)'")
    assert capsys.readouterr().out.endswith("found\n")


def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    """The small preset, run as a user would: in an empty folder beside the checkout."""
    monkeypatch.setenv("MV2MAE_QUICK", "1")
    (tmp_path / "mv2mae-jax").symlink_to(ROOT)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for cell, pictures in (("data", 1), ("losses", 1), ("pictures", 2)):
        assert sum("image/png" in output.get("data", {}) for output in shown[cell]) == pictures
    for cell, said in (
        ("pretrain", "step 30/30"),
        ("pictures", "eval/loss_cross"),
        ("probe", "knn/top_1"),
        ("export", "Compared with JAX"),
        ("torch", "(8, 32, 32, 3) uint8 -> (1, 64, 64) torch.float32"),
        ("jax", "PyTorch and JAX differ by"),
        ("transformers", "transformers and the port differ by"),
        ("save", "This is not Colab: the file stays where it is."),
    ):
        assert said in "".join(output.get("text", "") for output in shown[cell])
    names = zipfile.ZipFile(tmp_path / "mv2mae_output/mv2mae_results.zip").namelist()
    assert {"run/report.html", "run/metrics.json", "exported_port/mv2mae_torch.py", "exported_hf/config.json"} <= set(
        names
    )
    assert any(name.startswith("run/checkpoints/30/") for name in names)
