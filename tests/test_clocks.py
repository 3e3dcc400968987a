"""Whether what is prepared as one instant was filmed at one instant, whatever the files' rates, starts and losses."""

import numpy as np
import pytest

from data import catalog, clocks, prepare, shards, takes
from tests.video_files import time_shown, write_timed

CODECS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4"}
LOST = [n for n in range(90) if not 40 <= n < 50]


def write_here(jobs, num_files, settings, input_dir, output_dir, num_workers):
    for job in jobs:
        shards.write(job, settings, input_dir, output_dir, starting=lambda path: None)


def prepared(folder, sync=None, names=None, **options):
    """The prepared set, its frames' numbers by view, and the quarantined reasons by file."""
    output = folder.parent / f"{folder.name}-{sync if sync is None or '/' not in sync else 'file'}"
    names = names or catalog.get("folder", pattern="{take}_cam{view}")
    told = prepare.prepare(names, folder, output, sync=sync, write_shards=write_here, **options)
    aside = {entry["path"]: entry["reason"] for entry in told["quarantined"]}
    if not told["counts"]["videos"]:
        return None, {}, aside
    found = takes.open_prepared(output)
    shown = {}
    for record, view in enumerate(found.views["view"].tolist()):
        frames = found.read(record, np.arange(found.views["num_frames"][record]))
        shown[view] = [time_shown(frame) for frame in frames]
    return found, shown, aside


def gaps_of(numbers, filmed, source_fps, begin, fps, stamp=lambda n: n / 30):
    """How many of a view's frames stand in; fails where one is farther from its tick than half a frame of the source.

    Args:
      numbers: that the prepared frames show.
      filmed: that the file's frames show.
      source_fps: of the file.
      begin: seconds of the first tick.
      fps: of the ticks.
      stamp: the seconds of a number.
    """
    filmed, gaps = np.array(filmed), 0
    times = stamp(filmed)
    for tick, number in enumerate(numbers):
        seconds = begin + tick / fps
        if np.abs(times - seconds).min() <= 0.5 / source_fps + 0.001:
            assert abs(stamp(number) - seconds) <= 0.5 / source_fps + 0.0015, (tick, number)
        else:
            gaps += 1
            assert number == filmed[times <= seconds + 1e-3].max()
    return gaps


def test_half_a_frame_is_the_largest_error():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rate, fps = rng.choice([12.5, 20, 25, 29.97, 30, 60], 2)
        stamps = np.round(rng.uniform(-2, 2) + np.arange(90) / rate, 3)
        stamps = np.delete(stamps, rng.choice(np.arange(1, 89), 8, replace=False))
        ticks = clocks.ticks([stamps], [rate], fps)
        frames, gap = clocks.shown(stamps, rate, ticks)
        error = np.abs(stamps[frames] - ticks)
        assert error[~gap].max() <= 0.5 / rate + 0.0015
        assert (np.abs(stamps[:, None] - ticks[gap]).min(axis=0) > 0.5 / rate).all()
        assert (stamps[frames[gap]] <= ticks[gap]).all()
        assert abs(clocks.rate(stamps, rate) / rate - 1) < 1e-3
        assert abs(clocks.rate(stamps, 3 * rate) / rate - 1) < 3e-3  # a header that states another


def test_half_way_between_two_frames_rounding_repeats_none():
    stamps = np.round(np.arange(300) / 30, 3)
    frames, gap = clocks.shown(stamps, 30, np.arange(290) / 30 + 1 / 60)
    assert not gap.any() and set(np.diff(frames)) == {1}


@pytest.mark.parametrize(
    "rates, expected",
    [([30], 30), ([20, 30, 30], 30), ([20, 30], 20), ([30000 / 1001, 30, 25], 30000 / 1001), ([60, 30, 60], 60)],
)
def test_the_rate_that_most_views_have(rates, expected):
    assert clocks.common_rate(rates) == expected


@pytest.mark.parametrize("ending", CODECS)
def test_a_view_that_began_later(tmp_path, ending):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_timed(raw / f"t_camA.{ending}", list(range(90)), codec=CODECS[ending])
    late = list(range(15, 100))
    write_timed(raw / f"t_camB.{ending}", late, codec=CODECS[ending])
    if ending == "avi":  # whose writer leaves the time before the first frame as a gap behind it
        found, shown, _ = prepared(raw, "timestamps", max_gap_seconds=1)
        assert found.views["gap_frames"].tolist() == [0, 15]
        assert shown["A"][16:] == shown["B"][16:] == list(range(16, 90))
        return
    _, shown, aside = prepared(raw)
    assert not shown and len(aside) == 2
    reason = aside[f"t_camB.{ending}"]
    assert "stamped 0.500 s" in reason and "--sync=timestamps" in reason and "--sync=start" in reason
    found, shown, _ = prepared(raw, "timestamps")
    assert shown["A"] == shown["B"] == list(range(15, 90))
    assert found.views["gap_frames"].tolist() == [0, 0] and found.views["offset_seconds"].tolist() == [0, 0]
    found, shown, _ = prepared(raw, "start")
    assert (shown["A"], shown["B"]) == (list(range(85)), late)
    np.testing.assert_allclose(np.diff(found.views["offset_seconds"]), -0.5, atol=1e-3)
    found, shown, _ = prepared(raw, "frames")
    assert (shown["A"], shown["B"]) == (list(range(90)), late)
    table = tmp_path / "offsets.csv"
    table.write_text("take,view,seconds,confidence\nt,A,0.25,9\nt,B,-0.25,9\nother,B,1,9\n")
    found, shown, _ = prepared(raw, str(table))  # B began at 0.25 s, A too
    assert (shown["A"][0], shown["B"][0]) == (0, 15) and found.views["offset_seconds"].tolist() == [0.25, -0.25]


@pytest.mark.parametrize("ending", CODECS)
def test_a_view_that_lost_frames(tmp_path, ending):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_timed(raw / f"t_camA.{ending}", list(range(90)), codec=CODECS[ending])
    write_timed(raw / f"t_camB.{ending}", LOST, codec=CODECS[ending])
    found, shown, aside = prepared(raw)
    assert not aside and shown["A"] == list(range(90))
    assert gaps_of(shown["B"], LOST, 30, 0, 30) == 10
    assert found.views["gap_frames"].tolist() == [0, 10]
    assert found.views["resampled"].tolist() == [False, True]
    np.testing.assert_allclose(found.views["source_fps"], 30)
    _, _, aside = prepared(raw, "start", max_gap_seconds=0.3)
    assert "gap of 0.33 s at 1.33 s" in aside[f"t_camB.{ending}"]
    assert "the only view" in aside[f"t_camA.{ending}"]
    _, _, aside = prepared(raw, "timestamps", max_gap_share=0.1)
    assert "10 of 90 ticks" in aside[f"t_camB.{ending}"] and "gap of 0.33 s at 1.33 s" in aside[f"t_camB.{ending}"]


def test_mixed_rates_show_the_same_instants(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    fast, slow = list(range(90)), list(range(60))
    write_timed(raw / "t_camA.mp4", fast)
    write_timed(raw / "t_camB.mkv", slow, rate=20)
    write_timed(raw / "t_camC.ts", [n for n in fast if n not in (30, 31)], b_frames=2)
    found, shown, _ = prepared(raw, "start")
    assert found.views["fps"].tolist() == [30, 30, 30] and found.views["source_fps"].tolist() == [30, 20, 30]
    assert shown["A"] == fast
    assert gaps_of(shown["B"], slow, 20, 0, 30, stamp=lambda n: n / 20) == 0
    assert gaps_of(shown["C"], [n for n in fast if n not in (30, 31)], 30, 0, 30) == 2
    _, shown, _ = prepared(raw, "timestamps", fps=10)  # the encoder of C delays its stamps by two frames
    assert shown["A"][:3] == [2, 5, 8] and gaps_of(shown["B"], slow, 20, 1 / 15, 10, stamp=lambda n: n / 20) == 0
    _, shown, aside = prepared(raw, "frames")
    assert "20 fps, its siblings A 30, C 30" in aside["t_camB.mkv"] and shown.keys() == {"A", "C"}


def test_a_header_that_states_another_rate(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_timed(raw / "t_camA.mkv", list(range(60)))
    write_timed(raw / "t_camB.mkv", list(range(60)), stated_rate=50)
    found, shown, aside = prepared(raw)
    assert not aside and found.views["fps"].tolist() == [30, 30]
    assert shown["A"] == shown["B"] == list(range(60))
