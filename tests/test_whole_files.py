"""A file appears whole or not at all."""

import pytest

from console.command import ExitCode, execute
from data.store.whole_files import whole_file, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, durable):
    path = tmp_path / "table.csv"
    write_whole(path, "before", durable=durable)
    with pytest.raises(OSError, match="disk is full"), whole_file(path, durable=durable) as temporary:
        temporary.write_text("half of")
        assert path.read_text() == "before"
        raise OSError("disk is full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    write_whole(path, b"after", durable=durable)
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "missing/"])
def test_a_folder_is_no_file(tmp_path, name, capsys):
    (tmp_path / "folder").mkdir()
    assert execute("python x", lambda: write_whole(f"{tmp_path}/{name}", b"")) == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert name in told and "A folder is where a file is to be written: name a file" in told
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "file", b"")
