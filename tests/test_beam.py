"""The preparation on Apache Beam writes the same files as local processes. Skipped where Beam is not installed."""

from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam has an environment of its own: requirements-beam.txt")

from console.command import ExitCode
from data.prepare import __main__ as prepare
from tests import video_files

pytestmark = pytest.mark.slow

RUNNER = "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for take in range(6):
        for view in range(2):
            frames = video_files.moving_square(10, 36, 64, seed=10 * take + view)
            video_files.write_video(folder / f"t{take}_cam{view}.avi", frames)
    (folder / "t3_cam1.avi").write_bytes(b"no video")
    return folder


def arguments(raw: Path, output: Path, *more: str) -> list[str]:
    return ["--dataset=folder", f"--input={raw}", f"--output={output}", "--short_side=32", "--workers=1", *more]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_beam_writes_the_same_files(raw, tmp_path):
    assert prepare.main(arguments(raw, tmp_path / "local")) == ExitCode.PARTLY
    assert prepare.main(arguments(raw, tmp_path / "beam", f"--beam={RUNNER}")) == ExitCode.PARTLY
    assert files_of(tmp_path / "beam") == files_of(tmp_path / "local")


def test_a_failed_pipeline_is_told_and_goes_on(raw, tmp_path, capsys):
    (tmp_path / "local").mkdir()
    prepare.main(arguments(raw, tmp_path / "local"))
    output = tmp_path / "beam"
    blocked = output / "folder-takes.array_record-00002-of-00006"
    (blocked / "in_the_way").mkdir(parents=True)  # a folder where a shard belongs
    assert prepare.main(arguments(raw, output, f"--beam={RUNNER}")) == ExitCode.REFUSED
    assert "the Beam pipeline failed" in capsys.readouterr().err
    (blocked / "in_the_way").rmdir()
    blocked.rmdir()
    assert prepare.main(arguments(raw, output, f"--beam={RUNNER}")) == ExitCode.PARTLY
    assert files_of(output) == files_of(tmp_path / "local")
