"""Frames prepared as one instant were filmed at one instant, whatever the files' rates, starts and lost frames."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from console.errors import UserError
from data import catalog
from data.prepare import carry_truth, contact_sheet, estimate, preparation, shards
from data.prepare.options import Options
from data.recordings import clocks, offsets, raw_video
from data.recordings.listing import list_videos
from data.store import takes
from tests import video_files
from tests.video_files import corners_shown, time_shown, write_timed

CODECS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4"}
LOST = [n for n in range(90) if not 40 <= n < 50]


def write_here(jobs, num_files, settings, input_dir, output_dir, num_workers):
    for job in jobs:
        shards.write(job, settings, input_dir, output_dir, starting=lambda path: None)


def prepared(folder, sync=None, names=None, **options):
    """The prepared set, its frames' numbers by view, and the quarantined reasons by file."""
    output = folder.parent / f"{folder.name}-{sync if sync is None or '/' not in sync else 'file'}"
    names = names or catalog.get("folder", pattern="{take}_cam{view}")
    told = preparation.prepare(names, folder, output, Options(sync=sync, **options), write_shards=write_here)
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
    """The number of a view's frames that fill a gap.

    Args:
      numbers: the numbers that the prepared frames show.
      filmed: the numbers that the file's frames show.
      source_fps: the file's frame rate.
      begin: the time of the first tick in seconds.
      fps: the rate of the ticks.
      stamp: gives the time in seconds of a number.

    Raises:
      AssertionError: a frame outside gaps is more than half a frame of the file away from its tick.
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
        assert abs(clocks.rate(stamps, 3 * rate) / rate - 1) < 3e-3  # the header states another rate


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
    if ending == "avi":  # its writer turns the time before the first frame into a gap after the first frame
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
    found, shown, _ = prepared(raw, str(table))  # with their offsets, both begin at 0.25 s
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


def test_the_contact_sheet_shows_one_moment_of_a_take(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for take, begin in (("s", 5), ("t", 15)):
        write_timed(raw / f"{take}_camA.mp4", list(range(90)))
        write_timed(raw / f"{take}_camB.mp4", [n for n in range(begin, 100) if not 30 <= n < 40])
    write_timed(raw / "t_camC.mp4", list(range(90)))  # a camera that take s lacks
    _, shown, _ = prepared(raw, "timestamps", sheet=True)
    sheet = cv2.imread(str(tmp_path / "raw-timestamps" / contact_sheet.NAME))[..., ::-1]
    height, width = 96 + contact_sheet.LABEL_HEIGHT + contact_sheet.GAP, 128 + contact_sheet.GAP
    assert sheet.shape == (3 * height, width, 3), "take t alone has all cameras"
    cells = [sheet[top + contact_sheet.LABEL_HEIGHT :][:96, :128] for top in range(0, 3 * height, height)]
    middle = shown["A"][len(shown["A"]) // 2]
    assert [time_shown(cell) for cell in cells] == [middle] * 3 and middle > 50


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


def read(path):
    """The frames of a raw video, and its source."""
    with open(path, "rb") as file:
        source = raw_video.open_source(file)
        return list(raw_video.frames(source, 96)), source


@pytest.mark.parametrize(
    "matrix, corners",
    [
        ((1, 0, 0, 1), "RGBW"),
        ((-1, 0, 0, 1), "GRWB"),  # mirrored, as in a looking glass
        ((1, 0, 0, -1), "BWRG"),
        ((-1, 0, 0, -1), "WBGR"),  # turned by 180 degrees
        ((0, 1, -1, 0), "BRWG"),  # by 90, clockwise
        ((0, -1, 1, 0), "GWRB"),  # by 270
        ((0, 1, 1, 0), "RBGW"),  # along the diagonal
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_the_display_matrix_is_applied_whole(tmp_path, matrix, corners):
    path = write_timed(tmp_path / "a.mp4", [1, 2])
    video_files.set_display_matrix(path, *matrix)
    frames, _ = read(path)
    assert {corners_shown(frame) for frame in frames} == {corners}
    assert frames[0].shape[:2] == ((96, 128) if matrix[0] else (128, 96))


@pytest.mark.parametrize("ending, num_frames", [("mp4", 1), ("mkv", 1), ("mkv", 3)])
def test_the_longest_track_is_taken_and_several_are_told(tmp_path, ending, num_frames):
    raw = tmp_path / "raw"
    raw.mkdir()
    source = write_timed(tmp_path / f"plain.{ending}", list(range(90)))
    for view in "AB":
        video_files.with_thumbnail(raw / f"t_cam{view}.{ending}", source, num_frames)
    found, shown, _ = prepared(raw)
    assert shown["A"] == shown["B"] == list(range(90))
    assert found.views["video_tracks"].tolist() == [2, 2]


@pytest.mark.parametrize("ending", CODECS)
def test_reordered_frames_keep_their_times(tmp_path, ending):
    numbers = [*range(20), *range(26, 60)]
    for codec in {CODECS[ending], "libx264"}:
        path = write_timed(tmp_path / f"{codec}.{ending}", numbers, codec=codec, b_frames=2)
        frames, source = read(path)
        assert [time_shown(frame) for frame in frames] == numbers
        stamps = np.array(source.seconds) * 30
        np.testing.assert_allclose(stamps - stamps[0], numbers, atol=0.05)


def test_times_before_zero(tmp_path):
    """In MP4 an edit list hides the frames before zero; Matroska keeps what is shown."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_timed(raw / "t_camA.mp4", list(range(60)), first=-5)
    write_timed(raw / "t_camB.mkv", list(range(5, 60)), first=0)
    _, shown, aside = prepared(raw, "timestamps")
    assert not aside and shown["A"] == shown["B"] == list(range(5, 60))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_variable_rate(tmp_path, ending):
    raw = tmp_path / "raw"
    raw.mkdir()
    rng = np.random.default_rng(3)
    variable = np.cumsum(rng.choice([1, 1, 1, 2], 70)).tolist()
    variable = [n - variable[0] for n in variable if n < 90]
    write_timed(raw / f"t_camA.{ending}", list(range(90)))
    write_timed(raw / f"t_camB.{ending}", variable)
    found, shown, aside = prepared(raw)
    assert not aside and shown["A"][: len(shown["B"])] == list(range(len(shown["B"])))
    assert found.views["gap_frames"][1] == gaps_of(shown["B"], variable, 30, 0, 30) > 5


def test_empty_entries_of_avi_are_the_frame_before(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    numbers = [*range(20), *range(25, 60)]
    for view in "AB":
        write_timed(raw / f"t_cam{view}.avi", numbers, codec="mpeg4")
    for sync in ("frames", "start"):
        found, shown, aside = prepared(raw, sync)
        assert not aside and shown["A"] == [*range(20), *[19] * 5, *range(25, 60)] == shown["B"]
        assert found.views["gap_frames"].tolist() == [5, 5]


def test_truth_by_frame_number_is_refused_if_frames_are_renumbered(tmp_path):
    views = pa.table({"take": ["t", "t"], "view": ["A", "B"], "resampled": [False, True]})
    with pytest.raises(UserError, match=r"1 of 2 .* view B of take t.*--sync=frames"):
        carry_truth._check_numbers(tmp_path, views)
    carry_truth._check_numbers(tmp_path, views.slice(0, 1))


def test_tables_of_offsets_are_refused_in_words(tmp_path):
    path = tmp_path / "offsets.csv"
    for content, reason in {
        "take,view\nt,A\n": "lacks the column seconds",
        "take,view,seconds\nt,A,soon\n": "line 2: 'soon' is no number",
        "take,view,seconds\nt,A,1\nt,A,2\n": "line 3: view A of take t is there twice",
        "take,view,seconds\nt,A,0,5\n": "line 2 has more cells .*'5' is left over. Numbers have a point",
        "take,view,seconds,method,seconds\nt,A,1,,2\n": "has the column seconds more than once",
        'take,view,seconds\n"t,A,1\n' + "t,B,1\n" * 25_000: "offsets.csv cannot be read as CSV: field larger",
    }.items():
        path.write_text(content)
        with pytest.raises(UserError, match=reason):
            offsets.read(path)
    path.write_text("\ufefftake,view,seconds\nt,A,-1.5,\n\nt,B,\n")
    assert offsets.read(path) == {("t", "A"): -1.5}


@pytest.mark.parametrize(
    "options, reason",
    [({"sync": "frames", "fps": 10}, "--sync=frames pairs"), ({"sync": "start", "name": "pkummd"}, "label file")],
)
def test_choices_that_do_not_go_together(tmp_path, options, reason):
    names = catalog.get(options.pop("name", "folder"), pattern=None, num_classes=None)
    with pytest.raises(UserError, match=reason):
        preparation.prepare(names, tmp_path, tmp_path / "out", Options(**options))


def test_the_times_are_told_beforehand(tmp_path):
    write_timed(tmp_path / "t_cam1.mp4", list(range(30)))
    write_timed(tmp_path / "t_cam2.mkv", list(range(10, 30)), rate=20)
    said = estimate.times(list_videos(catalog.get("folder"), tmp_path)[1])
    assert [line.split() for line in said[2:4]] == [
        ["1", "1", "30.00", "0.00", "1.00"],
        ["2", "1", "20.00", "0.50", "1.00"],
    ]
    assert "1 of 1 takes do not begin at one time" in said[4]


def test_takes_of_different_rates_and_rates_above_the_files_are_told(tmp_path):
    for take, fps in enumerate((10, 25, 30, 30)):
        for view in (1, 2):
            frames = video_files.moving_square(fps, 48, 64, seed=take)
            video_files.write_video(tmp_path / "raw" / f"t{take}_cam{view}.mp4", frames, fps=fps)
    names = catalog.get("folder", pattern="{take}_cam{view}")

    def remarks(**options) -> list[str]:
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return preparation.prepare(names, tmp_path / "raw", output, Options(**options), write_shards=write_here)[
            "remarks"
        ]

    assert remarks() == [
        "frames per second differ: 10 (1 take), 25 (1 take), 30 (2 takes), so a frame stride spans another time in "
        "each. --fps=RATE prepares all at one rate, with any --sync but frames"
    ]
    assert remarks(fps=10.0) == []
    assert remarks(fps=120.0) == [
        "--fps=120 is above the rate of 8 of 8 files, 10 at least: their frames are stored up to 12 times in a row, as "
        "if nothing moved"
    ]
    assert len(remarks(sync="frames")) == 1


def test_rates_that_are_nearly_the_same_are_not_told():
    views = [("a", 29.97, 29.97), ("a", 29.97, 30.0), ("b", 30.0, 29.6), ("c", 30.0, None)]
    assert clocks.remarks(views, None, True) == clocks.remarks(views, 30.0, True) == []
    assert "--fps" not in clocks.remarks([("a", 15.0, 15.0), ("b", 30.0, 30.0)], None, False)[0]
