"""A damaged record in training is found, replaced reproducibly and reported. No reader returns other pixels."""

import os
import shutil
import signal
import subprocess
import time
import types
from pathlib import Path

import numpy as np
import pytest

from console.command import ExitCode
from data import pipeline, samples
from data.dataset import Dataset
from data.labelled import LabelledDataset
from data.prepare import __main__ as prepare
from data.prepare import metadata
from data.store import frame_index, takes, truth
from mv2mae_jax import features
from tests import faults, tiny


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(takes, "RETRY_AFTER_SECONDS", (0.0, 0.0))


@pytest.fixture
def damaged_set(synthetic_set, tmp_path) -> tuple[Path, int]:
    """(copy of the set, record): a byte is changed in every frame of this record."""
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    prepared, record = takes.open_prepared(copy), 10
    first = int(prepared.views["num_frames"][:record].sum())
    entries = np.load(copy / frame_index.NAME)[first : first + prepared.views["num_frames"][record]]
    shard = sorted(copy.glob("*.array_record-*"))[record // 6]  # a shard holds two takes of three views
    content = bytearray(shard.read_bytes())
    for start in entries["start"]:
        content[frame_index._in_file(int(start)) + 40] ^= 1
    shard.write_bytes(content)
    return copy, record


def open_dataset(directory: Path) -> Dataset:
    config = tiny.make_config()
    with config.unlocked():
        config.data.dir = str(directory)
    return Dataset.from_config(config)


def batches(dataset, count: int, start_step: int = 0, **options) -> list[dict[str, np.ndarray]]:
    stream = pipeline.train_batches(dataset, seed=3, start_step=start_step, **({"global_batch_size": 8} | options))
    return [next(stream) for _ in range(count)]


def test_the_damage_is_where_it_was_put(damaged_set):
    directory, record = damaged_set
    prepared = takes.open_prepared(directory)
    take, view = prepared.views["take"][record], prepared.views["view"][record]
    with pytest.raises(takes.DamagedRecord, match=rf"take {take}, view {view}\) is damaged .*--verify") as found:
        prepared.read(record, np.array([0]))
    assert found.value.record == record
    for other in (record - 1, record + 1):
        prepared.read(other, np.arange(prepared.views["num_frames"][other]))


@pytest.mark.parametrize("name", ["prepared.json", "manifest.parquet", "frames.npy", "SHA256SUMS"])
def test_no_bit_of_the_small_files_changes_a_meaning(synthetic_set, tmp_path, name):
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    content, rng = (copy / name).read_bytes(), np.random.default_rng(0)
    positions = rng.integers(len(content), size=100)
    if name == "SHA256SUMS":  # opening compares only these digests; --verify compares the others
        lines = [content.index(b"  " + other) for other in (b"prepared.json", b"manifest.parquet", b"frames.npy")]
        positions = [end - int(back) for end in lines for back in rng.integers(1, 64, 10)]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(changed)
        with pytest.raises(ValueError, match=r"(frames\.npy|manifest\.parquet|prepared\.json|SHA256SUMS) is damaged"):
            takes.open_prepared(copy)
    (copy / name).write_bytes(content)
    takes.open_prepared(copy)


def test_a_small_file_that_is_missing_or_unlisted_is_told(synthetic_set, tmp_path):
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    listed = (copy / "SHA256SUMS").read_text()
    (copy / "SHA256SUMS").write_text("".join(line for line in listed.splitlines(True) if "manifest" not in line))
    with pytest.raises(ValueError, match=r"manifest\.parquet is not listed in SHA256SUMS"):
        takes.open_prepared(copy)
    (copy / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match=r"SHA256SUMS is missing, so nothing tells whether prepared\.json"):
        takes.open_prepared(copy)
    (copy / "SHA256SUMS").write_text(listed)
    (copy / "frames.npy").unlink()
    with pytest.raises(ValueError, match=r"frames\.npy is missing"):
        takes.open_prepared(copy)


def test_a_manifest_may_be_written_anew_but_not_changed(synthetic_set, tmp_path):
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    prepared, manifest = takes.open_prepared(copy), copy / "manifest.parquet"
    content = manifest.read_bytes()
    manifest.write_bytes(content)
    os.utime(manifest, ns=(0, 0))
    prepared.views["label"]
    manifest.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    with pytest.raises(ValueError, match=r"manifest\.parquet has changed since it was opened"):
        prepared.views["subject"]


@pytest.mark.parametrize("name", [truth.JOINTS, truth.CAMERAS])
def test_joints_and_cameras_may_be_written_anew_but_not_changed_until_they_are_read(synthetic_set, tmp_path, name):
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    table, rows, frames = copy / truth.FOLDER / name, np.arange(4), np.zeros((4, 1), int)
    content = table.read_bytes()
    opened = takes.open_prepared(copy).truth
    table.write_bytes(content)
    os.utime(table, ns=(0, 0))
    assert takes.open_prepared(copy).truth.in_camera(rows, frames).shape == (4, 1, len(opened.joint_names), 3)
    table.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    with pytest.raises(ValueError, match=rf"{name} has changed since it was opened: start again"):
        opened.in_camera(rows, frames)


def test_a_frame_table_that_shrinks_or_changes_is_damage_not_the_end(synthetic_set, tmp_path):
    """`cp` and `rsync --inplace` change files so while a set is being read."""
    copy = Path(shutil.copytree(synthetic_set, tmp_path / "prepared"))
    prepared, table = takes.open_prepared(copy), copy / "frames.npy"
    last, content = len(prepared.views["record"]) - 1, table.read_bytes()
    wanted = prepared.read(last, np.array([0, 5]))
    for changed in (content[: len(content) // 2], b"", content[:200] + bytes(len(content) - 200)):
        with open(table, "rb+") as file:
            file.truncate(len(changed))
            file.write(changed)
        with pytest.raises(takes.DamagedRecord, match="has changed"):
            prepared.read(last, np.array([0, 5]))
    table.write_bytes(content)
    np.testing.assert_array_equal(prepared.read(last, np.array([0, 5])), wanted)


def test_a_set_that_is_prepared_anew_is_not_read_in_place_of_the_one_that_was_opened(shifted_sets, tmp_path):
    """Both sets have the same takes and lengths, and other frames."""
    first, other = shifted_sets
    copy = Path(shutil.copytree(first, tmp_path / "prepared"))
    reading, starting = takes.open_prepared(copy), takes.open_prepared(copy)  # a process that has begun, and a new one
    wanted = reading.read(0, np.array([0, 5]))
    assert not np.array_equal(takes.open_prepared(other).read(0, np.array([0, 5])), wanted)
    shutil.copytree(other, copy, dirs_exist_ok=True)
    for prepared in (reading, starting):
        for record in (0, 1, 0):
            with pytest.raises(ValueError, match="has changed since it was opened: start again"):
                prepared.read(record, np.array([0, 5]))
    shutil.copytree(first, copy, dirs_exist_ok=True)
    for prepared in (reading, starting):
        np.testing.assert_array_equal(prepared.read(0, np.array([0, 5])), wanted)


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a file system of one megabyte. Skips the test where mounting is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_table_that_does_not_fit_on_the_disk_is_an_error(small_disk):
    """Writing to mapped memory without reserving space would end the process with SIGBUS."""
    shards_dir = small_disk / "parts"
    shards_dir.mkdir()
    part = np.zeros(2**15, frame_index.ENTRY)  # 512 KiB
    np.save(shards_dir / "0.frames.npy", part)
    with pytest.raises(OSError, match="No space left"):
        metadata._write_frame_index([shards_dir / "0.frames.npy"] * 2, 2 * len(part), small_disk)
    model = types.SimpleNamespace(num_tokens=2**10, width=2**9)
    with pytest.raises(OSError, match="No space left"):
        features.map_tokens(str(small_disk), 10, model)


def test_damaged_samples_are_replaced_and_nothing_else_changes(synthetic_set, damaged_set):
    directory, record = damaged_set
    whole, damaged = batches(open_dataset(synthetic_set), 12), batches(open_dataset(directory), 12)
    hit = np.stack([batch["damaged"] >= 0 for batch in damaged])
    assert 0 < hit.sum() < hit.size / 4
    assert {batch["damaged"].max() for batch in damaged} == {-1, record}
    assert all((batch["damaged"] == -1).all() for batch in whole)
    for row, (before, after) in enumerate(zip(whole, damaged, strict=True)):
        for key in set(before) - {"damaged"}:
            np.testing.assert_array_equal(before[key][~hit[row]], after[key][~hit[row]])
    # The replacements were not read from the damaged record either.
    rows = open_dataset(directory).train.rows
    shown = np.stack([rows[batch["take"][:, None], batch["view"]] for batch in damaged])
    assert (shown != record).all() and (shown[hit] >= 0).all()


def test_replacements_are_a_function_of_seed_and_step(damaged_set):
    dataset = open_dataset(damaged_set[0])
    once, resumed, workers = batches(dataset, 6), batches(dataset, 3, start_step=3), batches(dataset, 6, num_workers=2)
    assert any((batch["damaged"] >= 0).any() for batch in once[3:])
    shares = [batches(dataset, 6, process_index=index, process_count=2) for index in (0, 1)]
    for first, second in (*zip(once[3:], resumed, strict=True), *zip(once, workers, strict=True)):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
    for whole, *parts in zip(once, *shares, strict=True):
        np.testing.assert_array_equal(whole["video"], np.concatenate([part["video"] for part in parts]))


def test_labelled_samples_are_replaced_too(damaged_set):
    config = tiny.make_finetune_config(f"data.dir={damaged_set[0]}", "data.protocol=xview")
    dataset = LabelledDataset.from_config(config)
    stream = pipeline.labelled_batches(dataset, seed=0, start_step=0, global_batch_size=8)
    found = [next(stream) for _ in range(20)]
    damaged = np.concatenate([batch["damaged"] for batch in found]).reshape(-1, dataset.spec.repeats)
    assert (damaged[:, 0] == damaged[:, 1]).all() and (damaged >= 0).any(), "the crops of a clip are replaced together"
    assert all((batch["row"] != damaged_set[1]).all() for batch in found)


def test_a_read_that_fails_once_changes_nothing(synthetic_set, monkeypatch):
    dataset = open_dataset(synthetic_set)
    wanted = batches(dataset, 2)
    read, calls = frame_index.Frames.read, []

    def hiccup(self, record, frames):
        calls.append(record)
        if len(calls) % 3 == 1:
            raise OSError(5, "Input/output error")
        return read(self, record, frames)

    monkeypatch.setattr(frame_index.Frames, "read", hiccup)
    for before, after in zip(wanted, batches(dataset, 2), strict=True):
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])


def test_when_nothing_can_be_read_the_reader_gives_up(synthetic_set, monkeypatch):
    asked = []

    def read(record, frames):
        asked.append(record)
        raise OSError(5, "Input/output error")

    dataset = open_dataset(synthetic_set)
    (frames,) = dataset.prepared.stored.values()
    monkeypatch.setattr(frames, "read", read)
    drawn = samples.draw_sample(dataset, 5, np.random.default_rng(0))
    with pytest.raises(takes.DamagedRecord, match=r"take .*, view .* is damaged \(.*Input/output error"):
        samples.read_training_batch(dataset, [drawn])
    waited_for, others = takes.MOST_WAITED_FOR, 1 + samples.MOST_REPLACEMENTS - takes.MOST_WAITED_FOR
    reads = (1 + len(takes.RETRY_AFTER_SECONDS)) * waited_for + 2 * others
    assert len(asked) == reads and len(set(asked)) > 5 and others > 0
    monkeypatch.undo()
    dataset.prepared.read(0, np.array([0]))
    assert not any(dataset.prepared.failed_in_a_row.values()), "one can be read, so the next one is waited for again"


@pytest.mark.parametrize("codec", ["jpeg", "dct"])
def test_no_bit_of_a_shard_changes_a_pixel_unseen(request, codec, tmp_path):
    """Every frame of a damaged shard is either refused or read as it was written."""
    directory = request.getfixturevalue({"jpeg": "synthetic_set", "dct": "synthetic_set_dct"}[codec])
    copy = Path(shutil.copytree(directory, tmp_path / "prepared"))
    prepared, frames = takes.open_prepared(directory), np.array([0, 20, 40])
    assert prepared.codec == codec
    shard, records = sorted(copy.glob("*.array_record-*"))[1], range(6, 12)
    wanted = {record: prepared.read(record, frames) for record in records}
    content, rng, refused = shard.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        changed = bytearray(content)
        position = int(rng.integers(len(content)))
        changed[position : position + int(rng.integers(1, 2000))] = rng.bytes(int(rng.integers(0, 2000)))
        # Another length would be noticed when the set is opened.
        changed = changed[: len(content)].ljust(len(content), b"\0")
        shard.write_bytes(changed)
        damaged = takes.open_prepared(copy)
        for record in records:
            try:
                np.testing.assert_array_equal(damaged.read(record, frames), wanted[record])
            except takes.DamagedRecord:
                refused += 1
    assert 20 < refused < 900


def test_reading_processes_end_with_a_run_that_is_killed(synthetic_set):
    code = """
import os, signal, sys
from tests.test_damaged_data import batches, open_dataset
if __name__ == "__main__":
    stream = batches(open_dataset(sys.argv[1]), 2, num_workers=1)
    me = str(os.getpid())
    stat = lambda process: open(f"/proc/{process}/stat").read().rpartition(")")[2].split()
    print(*[process for process in os.listdir("/proc") if process.isdecimal() and stat(process)[1] == me], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = faults.finish(faults.start("-c", code, synthetic_set))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    readers = killed.stdout.split()
    assert readers
    for _ in range(600):
        if not any(Path(f"/proc/{process}").exists() for process in readers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a reading process outlives its run")


@pytest.mark.long
def test_a_run_goes_on_over_a_damaged_record_and_says_so(damaged_set, tmp_path):
    """Damage is reported with take and view, and stops the run if less damage is allowed."""
    directory, record = damaged_set
    prepared = takes.open_prepared(directory)
    take = prepared.views["take"][record]
    options = ("total_steps=6", "data.holdout_fraction=0", "eval.max_takes=1", "limits.damaged_samples=0")
    stopped = faults.run(tmp_path / "strict", directory, *options)
    assert stopped.returncode == 2 and "more than limits.damaged_samples = 0 of 1000" in stopped.stderr
    assert f"(take {take}, view" in stopped.stdout and "Traceback" not in stopped.stderr
    assert prepare.main(["--verify", f"--output={directory}"]) == ExitCode.FAILED
    done = faults.run(tmp_path / "run", directory, *options[:-1])
    assert done.returncode == 0, done.stderr
    assert faults.history(tmp_path / "run")[-2]["data/damaged_samples"] > 0
