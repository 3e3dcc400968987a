"""Settings and fixtures that several test files share."""

import atexit
import gc
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile

# The tests run on the CPU, on one device; tests of several devices start processes of their own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the tests' time, so compiled programs are kept for the session and its subprocesses.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cache_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Most of what a command that a test starts does is importing. Without this, it would compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import hypothesis
import pytest

from console import progress
from tests import tiny

# JAX reads these flags when it first compiles.
os.environ.setdefault("XLA_FLAGS", tiny.QUICK_FLAGS)

# Generated examples are the same in every run, so that a failure is nobody's luck. Others:
# `python -m pytest --hypothesis-profile=search tests/test_catalog.py`.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=5000, deadline=None)
hypothesis.settings.load_profile("same")

# The longest files run first, in this order. A long file that began late would keep one process busy after the others
# had finished.
LONGEST = [
    f"test_{name}.py"
    for name in (
        *("finetune", "train", "models", "torch_export", "torch_parity", "faults", "processes", "end_to_end"),
        *("sharding", "topology", "buffers", "torch_deployment", "torch_classifier", "pretrain", "inference"),
    )
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, and looking for garbage in it takes time
    gc.set_threshold(50_000)  # tracing makes many objects, and nearly all of them stay


@pytest.fixture(scope="session", autouse=True)
def forked_workers():
    """Worker processes are forks of one that has imported the code. Each would need seconds of a core to import it.

    They share nothing else with the tests' process, as those of "spawn". Commands that tests start use "spawn" itself.
    """
    get_context = multiprocessing.get_context
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    get_context("forkserver").set_forkserver_preload(["data.pipeline", "data.prepare.workers"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing,
            "get_context",
            lambda method=None: get_context("forkserver" if method == "spawn" else method),
        )
        yield


@pytest.fixture(autouse=True)
def no_progress_chosen(monkeypatch):
    """A command that an earlier test called in this process has chosen how progress is shown."""
    monkeypatch.setattr(progress, "_mode", None)


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory) -> pathlib.Path:
    """A small generated data set, prepared: 24 takes, three cameras, 40x53 pixels."""
    from data.prepare import __main__ as prepare
    from data.synthetic import __main__ as synthetic

    folder = tmp_path_factory.mktemp("synthetic_set")
    raw, prepared = folder / "raw", folder / "prepared"
    assert synthetic.main([f"--output={raw}", "--takes=24", "--seed=1", "--resolution=64x48", "--workers=2"]) == 0
    arguments = ["--dataset=synthetic", f"--input={raw}", f"--output={prepared}", "--short_side=40", "--workers=2"]
    assert prepare.main(arguments) == 0
    return prepared


@pytest.fixture(scope="session")
def synthetic_set_dct(synthetic_set) -> pathlib.Path:
    """The same data set, stored as JPEG coefficients."""
    from data.prepare import __main__ as prepare

    raw, prepared = synthetic_set.parent / "raw", synthetic_set.parent / "prepared_dct"
    arguments = ["--dataset=synthetic", f"--input={raw}", f"--output={prepared}", "--short_side=40", "--workers=2"]
    assert prepare.main([*arguments, "--codec=dct"]) == 0
    return prepared


@pytest.fixture(scope="session")
def shifted_sets(synthetic_set, tmp_path_factory) -> list[pathlib.Path]:
    """Twelve takes of it, prepared by two tables of --sync: alike in all but which frames are kept."""
    from data.prepare import __main__ as prepare

    folder = tmp_path_factory.mktemp("shifted_sets")
    (folder / "raw").mkdir()
    videos = sorted((synthetic_set.parent / "raw").glob("*_rgb.avi"))
    some = [video for video in videos if video.name[9:20] in sorted({video.name[9:20] for video in videos})[:12]]
    for video in some:
        (folder / "raw" / video.name).symlink_to(video)
    for name, seconds in (("late", 0.2), ("early", -0.2)):
        lines = [f"{v.name[:4]}{v.name[8:20]},{v.name[4:8]},{seconds * ('C002' in v.name)}" for v in some]
        (folder / f"{name}.csv").write_text("\n".join(["take,view,seconds", *lines]))
        arguments = ["--dataset=synthetic", f"--input={folder / 'raw'}", f"--output={folder / name}", "--short_side=40"]
        assert prepare.main([*arguments, f"--sync={folder / name}.csv", "--workers=2"]) == 0
    sets = [folder / "late", folder / "early"]
    assert len({(path / "prepared.json").read_bytes() for path in sets}) == 1
    return sets


@pytest.fixture
def hub_modules(tmp_path, monkeypatch):
    """Makes transformers copy a folder's code to this test's directory and import it from there.

    If an earlier test has imported the package `transformers_modules`, Python would search that test's directory.
    """
    folder = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    _forget("transformers_modules")
    yield folder
    _forget("transformers_modules")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
