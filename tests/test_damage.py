"""Damage in checkpoints is found before anything is restored; an intact older step is used; nothing is deleted."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.store import digests
from mv2mae_jax import training_run
from mv2mae_jax.distributed import sharding
from mv2mae_jax.runs import checkpoint, metrics_file, run_record, starts_file, step_folders
from mv2mae_jax.state import TrainState
from tests import faults, tiny
from tests.test_log_files import small_disk

RUN = {"config": json.dumps({"task": "pretrain"})}


def make_state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(rng.normal(size=(24, 32)), jnp.float32)}}
    state = TrainState.create(params, optax.adamw(0.1), with_ema=True)
    return state.replace(step=jnp.int32(step))


def abstract(state):
    return sharding.abstract(sharding.make_mesh(), state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpointer = checkpoint.Checkpointer(str(workdir))
    for step in (2, 4, 6):
        assert checkpointer.save(step, make_state(step), RUN)
    checkpointer.close()
    return workdir


@pytest.fixture
def checkpoints(saved, tmp_path) -> Path:
    """A copy of these checkpoints, to be damaged."""
    return Path(shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def restore(workdir: Path) -> TrainState:
    checkpointer = checkpoint.Checkpointer(str(workdir))
    state, run = checkpointer.restore(abstract(make_state(0)))
    checkpointer.close()
    assert run == RUN
    return state


def test_a_step_has_the_digests_of_all_its_files(saved):
    for step in (2, 4, 6):
        folder = saved / "checkpoints" / str(step)
        listed = [line.split("  ")[1] for line in (folder / digests.NAME).read_text().splitlines()]
        there = [path.relative_to(folder).as_posix() for path in files_of(folder)]
        assert sorted([*listed, digests.NAME]) == there and len(there) > 5
        assert step_folders.describe(folder) == ""


def flip_a_bit(path: Path, rng: np.random.Generator):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def cut_off(path: Path, rng: np.random.Generator):
    os.truncate(path, rng.integers(path.stat().st_size))


def delete(path: Path, rng: np.random.Generator):
    path.unlink()


@pytest.mark.parametrize("harm", [flip_a_bit, cut_off, delete])
def test_a_hundred_of_a_hundred_injuries_are_found(checkpoints, harm):
    rng = np.random.default_rng(0)
    step = checkpoints / "6"
    every_file = [path for path in files_of(step) if path.stat().st_size]
    # Every file is damaged, some more than once.
    targets = (every_file * 100)[:100] if harm is not flip_a_bit else [*every_file, *rng.choice(every_file, 100)][:100]
    for number, path in enumerate(targets):
        content = path.read_bytes()
        harm(path, rng)
        assert step_folders.describe(step), (number, path)
        path.write_bytes(content)
        assert step_folders.describe(step) == ""
    assert number == 99


def test_the_newest_intact_step_is_used_and_the_damaged_one_kept(checkpoints):
    content = {path.relative_to(checkpoints): path.read_bytes() for path in files_of(checkpoints)}
    hit = max(files_of(checkpoints / "6"), key=lambda path: path.stat().st_size)
    flip_a_bit(hit, np.random.default_rng(1))
    (line,) = step_folders.set_aside(checkpoints)
    name = hit.relative_to(checkpoints / "6").as_posix()
    assert f"Step 6 in {checkpoints} is damaged ({name} damaged): renamed to 6.damaged, not deleted." == line
    state = restore(checkpoints.parent)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(4))

    renamed = {path.relative_to(checkpoints): path.read_bytes() for path in files_of(checkpoints)}
    for path, before in content.items():
        now = renamed[Path("6.damaged", *path.parts[1:]) if path.parts[0] == "6" else path]
        assert now == before or path.parts[1:] == Path(name).parts

    # The step is written again, and damaged again.
    checkpointer = checkpoint.Checkpointer(str(checkpoints.parent))
    assert checkpointer.save(6, make_state(6), RUN)
    checkpointer.close()
    assert step_folders.set_aside(checkpoints) == []
    (checkpoints / "6" / digests.NAME).unlink()
    (line,) = step_folders.set_aside(checkpoints)
    assert "SHA256SUMS missing" in line and "renamed to 6.damaged-2" in line


def test_a_step_that_is_not_there_is_not_called_damaged(checkpoints):
    with pytest.raises(ValueError, match=r"no checkpoint of step 5: it has steps 2, 4, 6\. Choose one of them"):
        checkpoint.load_params(str(checkpoints.parent), None, 5)


def test_without_an_intact_step_nothing_goes_on_and_nothing_starts_over(checkpoints):
    for step in (2, 4, 6):
        delete(files_of(checkpoints / str(step))[0], None)
    for _ in range(2):  # the second time there are only the damaged steps that were set aside
        with pytest.raises(ValueError, match=r"No checkpoint in .* is intact \(2.damaged, 4.damaged, 6.damaged\)"):
            step_folders.set_aside(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2.damaged", "4.damaged", "6.damaged"]


def test_no_checkpoints_are_no_damage(tmp_path):
    assert step_folders.set_aside(tmp_path / "checkpoints") == []
    (tmp_path / "checkpoints").mkdir()
    assert step_folders.set_aside(tmp_path / "checkpoints") == []


def test_another_run_does_not_take_parameters_from_a_damaged_step(checkpoints):
    params = abstract(make_state(0).params)
    flip_a_bit(max(files_of(checkpoints / "6"), key=lambda path: path.stat().st_size), np.random.default_rng(2))
    with pytest.raises(ValueError, match=r"its step 6 is damaged \(.*move .*/6 away to take an older step"):
        checkpoint.load_params(str(checkpoints.parent), params)
    assert (checkpoints / "6").is_dir(), "the other run's files are not renamed"
    shutil.rmtree(checkpoints / "6")
    loaded = checkpoint.load_params(str(checkpoints.parent), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, make_state(4).params | make_state(4).ema_params)


def test_the_remains_of_a_killed_save_are_no_step(checkpoints):
    shutil.copytree(checkpoints / "6", checkpoints / "8.orbax-checkpoint-tmp-whole")
    assert int(restore(checkpoints.parent).step) == 6
    assert step_folders.set_aside(checkpoints) == []
    assert not (checkpoints / "8.orbax-checkpoint-tmp-whole").exists()


@pytest.mark.parametrize("older", [False, True], ids=["with the number", "of an older version"])
@pytest.mark.parametrize("put", [shutil.copytree, os.rename], ids=["copied", "renamed"])
@pytest.mark.parametrize("source", ["2", "6"])
def test_a_step_under_another_number_is_damaged(checkpoints, source, put, older):
    """Its files are intact, but it would be restored as a step that it is not, and block the saving of that step."""
    if older:
        for step in (2, 4, 6):
            folder = checkpoints / str(step)
            (folder / step_folders.STEP_FILE).unlink()
            (folder / digests.NAME).write_text(digests.table(folder))
            assert step_folders.describe(folder) == "", "older checkpoints stay intact"
    put(checkpoints / source, checkpoints / "8")
    with pytest.raises(ValueError, match=f"its step 8 is damaged .it holds step {source}"):
        run_record.read_record(str(checkpoints.parent))
    with pytest.raises(ValueError, match=f"its step 8 is damaged .it holds step {source}"):
        checkpoint.load_params(str(checkpoints.parent), abstract(make_state(0).params))
    (line,) = step_folders.set_aside(checkpoints)
    assert f"(it holds step {source}): renamed to 8.damaged, not deleted." in line
    newest = 4 if source == "6" and put is os.rename else 6
    jax.tree.map(np.testing.assert_array_equal, restore(checkpoints.parent), make_state(newest))
    checkpointer = checkpoint.Checkpointer(str(checkpoints.parent))
    assert checkpointer.save(8, make_state(8), RUN)
    checkpointer.close()
    assert step_folders.set_aside(checkpoints) == [] and int(restore(checkpoints.parent).step) == 8


def test_a_folder_in_the_way_of_a_save_is_kept_under_another_name(checkpoints):
    checkpointer = checkpoint.Checkpointer(str(checkpoints.parent))
    os.rename(checkpoints / "6", checkpoints / "8")
    assert checkpointer.save(8, make_state(8), RUN)
    checkpointer.close()
    assert int(restore(checkpoints.parent).step) == 8
    assert step_folders.describe(checkpoints / "8.damaged") == "it holds step 6"


@pytest.mark.parametrize("file", ["metrics.json", "starts.jsonl", "history.jsonl"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(tmp_path, file):
    """It would drop the rows of the first run, and its results would stand for those of the second."""
    config, workdir = tiny.make_config(), str(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"step": 2, "train/loss": 1.0}\n')  # of a run that was killed early
    starts_file.record_start(workdir, config, {})
    training_run.open_checkpoints(config, workdir).close()
    if file == "metrics.json":
        metrics_file.write(workdir, config, 6, {}, {})
    elif file == "starts.jsonl":
        starts_file.record_start(workdir, config, {}, 6)
    else:
        (tmp_path / file).write_text('{"step": 6, "eval/loss_self": 1.0}\n')
    with pytest.raises(ValueError, match=rf"holds no checkpoint, but {file} tells of step 6. .* another --workdir"):
        training_run.open_checkpoints(config, workdir)


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(tmp_path, name):
    workdir = tmp_path / "run"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with small_disk(tmp_path / name, 100) as disk:
        (workdir / "checkpoints").mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=f"Read-only file system: '{disk}"):
            training_run.open_checkpoints(tiny.make_config(), str(workdir))


def test_results_of_a_later_step_than_the_one_that_is_left_are_kept_apart(tmp_path, capsys):
    """Otherwise a run that is killed in its last evaluation would take them for its own when it is started again."""
    path = tmp_path / "metrics.json"
    metrics_file.write(str(tmp_path), tiny.make_config(), 6, {"eval/loss_self": 1.0}, {})
    metrics_file.set_aside_after(str(tmp_path), 6)
    assert metrics_file.read(str(tmp_path), 6) and capsys.readouterr().out == ""
    metrics_file.set_aside_after(str(tmp_path), 4)
    assert capsys.readouterr().out == f"{path} is of step 6, which is trained again: renamed to metrics.json.earlier.\n"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json.earlier"]


def test_names_that_only_look_like_numbers_are_no_steps(checkpoints):
    for name in ("008", "٨"):
        shutil.copytree(checkpoints / "6", checkpoints / name)
    assert step_folders.steps_in(checkpoints) == [2, 4, 6] and step_folders.set_aside(checkpoints) == []
    assert int(restore(checkpoints.parent).step) == 6


def test_a_save_that_fails_is_told_with_what_is_kept(saved, tmp_path):
    workdir = Path(shutil.copytree(saved, tmp_path / "run"))
    checkpointer = checkpoint.Checkpointer(str(workdir))
    (workdir / "checkpoints").rename(workdir / "elsewhere")
    (workdir / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=r"A checkpoint could not be written to .*/checkpoints; none was before"):
        checkpointer.save(8, make_state(8), RUN)
        checkpointer.wait()
    assert [path.name for path in sorted((workdir / "elsewhere").iterdir())][:3] == ["2", "4", "6"]


def test_a_full_disk_is_told_and_going_on_later_works(tmp_path):
    """A limit on the size of files stands for the full disk. Writing fails in the middle of the second checkpoint."""
    code = """
import asyncio, resource, sys
import jax.numpy as jnp
import tensorstore
from mv2mae_jax.runs import checkpoint
checkpointer = checkpoint.Checkpointer(sys.argv[1])
checkpointer.save(1, {"small": jnp.ones(10)}, {"config": "{}"})
checkpointer.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    checkpointer.save(2, {"small": jnp.ones(10), "large": jnp.arange(1e6)}, {"config": "{}"})
    checkpointer.wait()
except OSError as error:
    print(error)

# Writes of a save that was given up may end after Orbax has closed its event loop.
async def begin_waiting():
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0.01)
    return task

async def wait():
    await future

promise, future = tensorstore.Promise.new()
loop = asyncio.new_event_loop()
task = loop.run_until_complete(begin_waiting())
loop.close()
promise.set_result(None)
"""
    ended = faults.finish(faults.start("-c", code, tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert f"A checkpoint could not be written to {tmp_path}/checkpoints; step 1 is the newest that was" in ended.stdout
    assert "the same command continues" in ended.stdout
    assert "Traceback" not in ended.stderr, "tracebacks of Orbax's threads would hide the message"
    assert step_folders.set_aside(tmp_path / "checkpoints") == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    assert checkpointer.save(2, make_state(2), RUN)
    checkpointer.close()
    assert step_folders.describe(tmp_path / "checkpoints" / "2") == ""
