"""Damaged and hostile input never leads to a hang, a silent crash, a changed pixel or a file outside the output."""

import json
import pickle
import resource
import shutil
import time
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune_base, pretrain_base, probe_base
from console.command import ExitCode
from data.prepare import __main__ as prepare
from data.store import takes
from mv2mae_jax.runs import checkpoint
from mv2mae_jax.torch_weights import importer
from tests import fuzz, video_files


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    return fuzz.video_seeds(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """Two takes of two views."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("a_cam0", "a_cam1", "b_cam0", "b_cam1"):
        video_files.write_video(folder / "raw" / f"{name}.avi", video_files.moving_square(6, 24, 32, seed=len(name)))
    assert prepare.main(["--dataset=folder", f"--input={folder / 'raw'}", f"--output={folder / 'prepared'}"]) == 0
    return folder / "prepared"


def test_mutated_videos_are_used_or_set_aside(seeds, tmp_path):
    used, aside = fuzz.prepare_mutated_videos(tmp_path / "fuzz", seeds, seed=0, num_takes=60)
    assert used > 0 and aside > 20


def test_mutated_sets_are_read_rightly_or_refused(small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(takes, "RETRY_AFTER_SECONDS", ())
    copy = Path(shutil.copytree(small_set, tmp_path / "prepared"))
    read, refused = fuzz.read_mutated_set(copy, seed=0, cases=100)
    assert read > 20 and refused > 50
    assert prepare.main(["--verify", f"--output={copy}"]) == 0, "mended"
    for path in fuzz.mutated_files(copy, seed=1, cases=40, which=lambda path: path.name != ".lock"):
        assert prepare.main(["--verify", f"--output={copy}"]) == ExitCode.FAILED, path


def test_mutated_checkpoints_are_told(tmp_path):
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    checkpointer.save(1, {"kernel": jnp.arange(3000.0)}, {"config": "{}"})
    checkpointer.close()
    fuzz.check_mutated_step(tmp_path / "checkpoints" / "1", seed=0, cases=150)


@pytest.mark.parametrize("base", [pretrain_base, finetune_base, probe_base])
def test_random_configs_are_accepted_or_refused_by_name(base, small_set):
    accepted = [fuzz.validate_random_config(base.__file__, seed, str(small_set)) for seed in range(120)]
    assert 0 < sum(accepted) < 120


# --- hostile input


def run_prepare(tmp_path: Path, capsys, *arguments: str) -> tuple[int, str]:
    command = ["--dataset=folder", f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"]
    command += ["--workers=1", "--max_quarantined=100", *arguments]
    code = prepare.main(command)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_archives_that_lead_outside_write_nothing_there(seeds, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    fuzz.hostile_zip(tmp_path / "raw" / "a.zip", seeds[0], "escaped")
    code, said = run_prepare(tmp_path, capsys, "--pattern=a.zip/{take}_cam{view}")
    assert code == 0 and "leads out of its archive" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    assert not list(Path("/tmp").glob("escaped*"))
    assert takes.open_prepared(tmp_path / "out").views["take"].tolist() == ["t1", "t1"]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (dict(frames=10**9), "claims 1000000000 frames"),
        # The stream states its own size, which the decoder uses.
        (dict(width=40_000, height=30_000), ""),
        (dict(width=2**31 - 1, height=2**31 - 1), ""),
    ],
)
def test_claims_beyond_reason_cost_neither_time_nor_memory(seeds, tmp_path, capsys, claim, reason):
    (tmp_path / "raw").mkdir()
    for take in ("a", "b"):
        for camera in (0, 1):
            (tmp_path / "raw" / f"{take}_cam{camera}.avi").write_bytes(seeds[0])
    (tmp_path / "raw" / "a_cam0.avi").write_bytes(fuzz.avi_claiming(seeds[0], **claim))
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, said = run_prepare(tmp_path, capsys)
    assert code == 0 and reason in said, said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"
    assert time.process_time() - began < 20, "a bound, not a measurement"
    assert set(takes.open_prepared(tmp_path / "out").views["take"]) == ({"b"} if reason else {"a", "b"})


def test_files_that_are_no_videos_are_set_aside(seeds, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    rng = np.random.default_rng(0)
    for number, content in enumerate(
        (b"", b"hello", rng.bytes(5000), pickle.dumps(fuzz.Bomb(tmp_path / "struck")), b"RIFF\xff\xff\xff\xffAVI LIST")
    ):
        (tmp_path / "raw" / f"n{number}_cam0.avi").write_bytes(content)
        (tmp_path / "raw" / f"n{number}_cam1.avi").write_bytes(seeds[0])
    for camera in (0, 1):
        (tmp_path / "raw" / f"good_cam{camera}.avi").write_bytes(seeds[0])
    code, said = run_prepare(tmp_path, capsys)
    assert code == 0 and takes.open_prepared(tmp_path / "out").views["take"].tolist() == ["good", "good"], said
    counts = json.loads((tmp_path / "out" / "prepared.json").read_text())["counts"]
    assert counts["quarantined"] == 10
    assert not (tmp_path / "struck").exists()


def test_a_bomb_in_a_zip_file_is_bounded(tmp_path, capsys, monkeypatch):
    from data.recordings import archives

    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2**20)
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for camera in (0, 1):
            archive.writestr(f"a_cam{camera}.avi", bytes(2**24))
    code, said = run_prepare(tmp_path, capsys, "--pattern=a.zip/{take}_cam{view}")
    assert "larger than 1048576 bytes, in an archive" in said and code == 0  # --max_quarantined allows both


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.safetensors"])
def test_a_pickle_where_tensors_are_expected_runs_nothing(tmp_path, name):
    struck = tmp_path / "struck"
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:  # as torch.save writes them
        archive.writestr("archive/data.pkl", pickle.dumps({"model": fuzz.Bomb(struck)}))
        archive.writestr("archive/version", "3")
    for content in (pickle.dumps(fuzz.Bomb(struck)), (tmp_path / "archive.pth").read_bytes(), b"\x80\x05", b""):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="init_from"):
            importer.load_videomae(str(path), {"encoder": {}}, None)
        assert not struck.exists()
