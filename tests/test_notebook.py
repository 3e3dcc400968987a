"""The notebook runs from top to bottom, and is kept small and without outputs."""

import pathlib

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


def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    """The small way, as a user would: in an empty folder, beside the checkout."""
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
        ("torch", "(8, 48, 48, 3) uint8 -> (1, 144, 96) torch.float32"),
        ("jax", "PyTorch and JAX differ by"),
        ("transformers", "transformers and the port differ by"),
    ):
        assert said in "".join(output.get("text", "") for output in shown[cell])
