"""The catalogues: names both ways, complete lists, official splits."""

import dataclasses
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import catalog
from data.catalog import ntu
from data.catalog.folder import Folder

NTU_LIKE = ("ntu60", "ntu120", "synthetic")


@pytest.fixture(scope="module")
def ntu_videos():
    names = {name: catalog.get(name) for name in ("ntu60", "ntu120")}
    return {name: [names[name].parse(path) for path in names[name].names()] for name in names}


# The counts are the data set's own: github.com/shahroudy/NTURGB-D and the row counts of public split files.
@pytest.mark.parametrize(
    ("name", "videos", "takes", "subjects", "splits"),
    [
        ("ntu60", 56_880, 18_960, 40, {"xsub": (40_320, 16_560), "xview": (37_920, 18_960)}),
        (
            "ntu120",
            114_480,
            38_160,
            106,
            {"xsub": (63_360, 51_120), "xset": (54_720, 59_760)}
            | {"ntu60_xsub": (40_320, 16_560), "ntu60_xview": (37_920, 18_960), "xview": (37_920, 18_960)}
            | {"one_shot": (20, 10 * 948 + 10 * 960 - 20), "one_shot_auxiliary": (50 * 948 + 50 * 960, 0)},
        ),
    ],
)
def test_complete_ntu_has_the_published_counts(ntu_videos, name, videos, takes, subjects, splits):
    complete = ntu_videos[name]
    assert len({video.path for video in complete}) == videos
    views = Counter(video.take for video in complete)
    assert len(views) == takes
    assert set(views.values()) == {3}
    assert {video.subject for video in complete} == set(range(1, subjects + 1))
    for protocol, (train, test) in splits.items():
        found = Counter(catalog.get(name).split(protocol, video) for video in complete)
        assert (found["train"], found["test"]) == (train, test)


def test_protocols_of_ntu60_on_ntu120_are_those_of_ntu60(ntu_videos):
    both, old = catalog.get("ntu120"), catalog.get("ntu60")
    for video in ntu_videos["ntu120"]:
        for protocol in ("xsub", "xview"):
            expected = old.split(protocol, video) if video.label < 60 else None
            assert both.split(f"ntu60_{protocol}", video) == expected
    for protocol, labels in both.labels_of.items():
        found = {video.label for video in ntu_videos["ntu120"] if both.split(protocol, video)}
        assert tuple(sorted(found)) == labels, protocol


def test_the_exemplars_of_one_shot_recognition_are_the_authors(ntu_videos):
    names = catalog.get("ntu120")
    split = {video.path.removesuffix("_rgb.avi"): names.split("one_shot", video) for video in ntu_videos["ntu120"]}
    # The README of github.com/shahroudy/NTURGB-D lists these.
    exemplars = [f"S001C003P008R001A{action:03}" for action in (1, 7, 13, 19, 25, 31, 37, 43, 49, 55)]
    exemplars += [f"S018C003P008R001A{action:03}" for action in (61, 67, 73, 79, 85, 91, 97, 103, 109, 115)]
    assert [name for name, side in split.items() if side == "train"] == exemplars
    assert split["S001C001P008R001A001"] == "test" and split["S001C003P008R001A002"] is None


def test_ntu_classes_are_balanced(ntu_videos):
    assert set(Counter(video.label for video in ntu_videos["ntu60"]).values()) == {948}
    per_class = Counter(video.label for video in ntu_videos["ntu120"])
    assert {per_class[label] for label in range(60)} == {948}
    assert {per_class[label] for label in range(60, 120)} == {960}


def test_ntu60_is_the_part_of_ntu120_with_its_classes(ntu_videos):
    assert {v.path for v in ntu_videos["ntu60"]} == {v.path for v in ntu_videos["ntu120"] if v.label < 60}


@pytest.mark.parametrize("name", ["ntu60", "ntu120"])
def test_protocols_separate_what_they_say(ntu_videos, name):
    names = catalog.get(name)
    for protocol, kept_apart in {"xsub": "subject", "xview": "camera", "xset": "setup", "random": "take"}.items():
        if protocol in names.protocols and protocol not in names.labels_of:
            sides = {"train": set(), "test": set()}
            for video in ntu_videos[name]:
                sides[names.split(protocol, video)].add(getattr(video, kept_apart))
            assert sides["train"] and sides["test"] and not sides["train"] & sides["test"]


def test_random_protocol_holds_out_a_tenth(ntu_videos):
    tests = sum(catalog.get("ntu60").split("random", video) == "test" for video in ntu_videos["ntu60"])
    assert tests / len(ntu_videos["ntu60"]) == pytest.approx(0.1, abs=0.01)


def test_names_of_the_classes():
    names = catalog.get("ntu120").class_names
    assert (names[0], names[8], names[59], names[111]) == (
        "drink water",
        "standing up (from sitting position)",
        "walking apart from each other",
        "high-five",
    )
    assert len(names) == len(set(names)) == 120
    assert catalog.get("ntu60").class_names == names[:60]
    generated = catalog.get("synthetic").class_names
    assert len(generated) == len(set(generated)) >= 10


@given(st.data())
@pytest.mark.parametrize("name", NTU_LIKE)
def test_parse_inverts_format(name, data):
    names = catalog.get(name)
    if name == "synthetic":
        setup, subject = data.draw(st.integers(1, 999)), data.draw(st.integers(1, 999))
        label = data.draw(st.integers(0, len(names.class_names) - 1))
    else:
        setup = data.draw(st.sampled_from(names.setups))
        subject = data.draw(st.sampled_from(ntu.SUBJECTS_OF_SETUP[setup]))
        label = data.draw(st.sampled_from(names.actions(setup))) - 1
    camera, performance = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    video = catalog.Video(
        path=f"S{setup:03}C{camera:03}P{subject:03}R{performance:03}A{label + 1:03}_rgb.avi",
        take=f"S{setup:03}P{subject:03}R{performance:03}A{label + 1:03}",
        view=f"C{camera:03}",
        label=label,
        subject=subject,
        setup=setup,
        camera=camera,
        performance=performance,
    )
    assert names.format(video) == video.path
    assert names.parse(video.path) == video
    assert names.parse("a/b/" + video.path) == dataclasses.replace(video, path="a/b/" + video.path)


@given(st.one_of(st.text(), st.text(alphabet="SCPRA0123456789_rgb.avi", max_size=30)))
@pytest.mark.parametrize("name", NTU_LIKE)
def test_any_other_string_is_refused_with_a_reason(name, text):
    with pytest.raises(ValueError, match=r"SsssCcccPpppRrrrAaaa_rgb\.avi"):
        catalog.get(name).parse(text)


@given(position=st.integers(0, 27), character=st.characters())
def test_a_changed_character_is_another_name_or_refused(position, character):
    name = "S001C002P003R001A013_rgb.avi"
    changed = name[:position] + character + name[position + 1 :]
    names = catalog.get("ntu60")
    try:
        video = names.parse(changed)
    except ValueError as error:
        assert repr(changed) in str(error)  # the reason names the file
    else:
        assert names.format(video).lower() == changed.rpartition("/")[2].lower()


@pytest.mark.parametrize("name", NTU_LIKE)
@pytest.mark.parametrize("end", [".mp4", "_rgb.mp4", ".AVI", "_RGB.Mkv", ".webm", "_rgb.avi"])
def test_copies_in_other_containers_are_the_same_videos(name, end):
    setup, action = (18, 61) if name == "ntu120" else (1, 1)
    stem = f"S{setup:03}C002P008R001A{action:03}"
    names = catalog.get(name)
    video = names.parse(f"{stem}_rgb.avi")
    for path in (f"{stem}{end}", f"nturgb_960x540/{stem}{end}", f"x/{stem.lower()}{end}"):
        assert names.parse(path) == dataclasses.replace(video, path=path)
        assert names.format(names.parse(path)) == f"{stem}_rgb.avi"
    for path in (f"{stem}_ir{end}", f"{stem}_depth.avi", f"{stem}.png", f"{stem}.avi.txt", f"{stem}x.avi"):
        with pytest.raises(ValueError, match="not of the form"):
            names.parse(path)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_data_set_takes_every_container(name):
    assert {".avi", ".mp4", ".mkv", ".mov", ".webm"} <= set(catalog.get(name).extensions)


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("ntu60", "S018C001P008R001A061_rgb.avi", "setups 1 to 17, not 18"),
        ("ntu60", "S001C001P001R001A061_rgb.avi", "actions 1 to 60, not 61"),
        ("ntu120", "S018C001P008R001A001_rgb.avi", "actions 61 to 120, not 1"),
        ("ntu60", "S001C004P001R001A001_rgb.avi", "cameras are 1 to 3, not 4"),
        ("ntu60", "S001C001P001R003A001_rgb.avi", "performances are 1 to 2, not 3"),
        ("ntu60", "S001C001P009R001A001_rgb.avi", "performers 1, 2, 3, 4, 5, 6, 7, 8, not 9"),
        ("ntu60", "S001C001P001R001A000_rgb.avi", "not 0"),
        ("synthetic", "S000C001P001R001A001_rgb.avi", "count from 1"),
        ("synthetic", "S001C001P001R001A999_rgb.avi", "not 999"),
    ],
)
def test_impossible_numbers_are_refused(name, path, reason):
    with pytest.raises(ValueError, match=reason):
        catalog.get(name).parse(path)


def test_folder_numbers_labels_and_subjects_in_alphabetical_order():
    paths = ["walk/ann/01_left.mp4", "run/bob/01_left.mp4", "run/ann/01_left.mp4", "notes.mp4"]
    names = Folder("{label}/{subject}/{take}_{view}.mp4").with_names_from(paths)
    assert names.class_names == ("run", "walk")
    video = names.parse(paths[0])
    assert (video.label, video.subject, video.view, video.setup) == (1, 0, "left", -1)
    assert names.parse(paths[1]).subject == 1
    # The same name under another label or subject is another take.
    assert len({names.parse(path).take for path in paths[:3]}) == 3
    with pytest.raises(ValueError, match=r"'notes.mp4' does not match the pattern"):
        names.parse("notes.mp4")


def test_people_to_test_on_are_not_trained_on_in_a_folder_with_subjects():
    names = Folder("{subject}/{take}_{view}.mp4").with_names_from([f"p{i:02}/1_a.mp4" for i in range(12)])
    split = {i: names.split("xsub", names.parse(f"p{i:02}/1_a.mp4")) for i in range(12)}
    assert [i for i in range(12) if split[i] == "test"] == [0, 5, 10]
    assert set(split.values()) == {"train", "test"}
    assert Folder().split("xsub", Folder().parse("1_cam2.mp4")) is None, "no subject is known"


def test_folder_fields_take_as_much_as_they_can_and_no_slash():
    names = Folder("{take}_{view}.mp4")
    video = names.parse("kitchen_2024_left.mp4")
    assert (video.take, video.view) == ("kitchen_2024", "left")
    with pytest.raises(ValueError, match="does not match"):
        names.parse("kitchen/2024_left.mp4")


def test_folder_field_that_stands_twice_must_agree():
    names = Folder("{take}/{take}_{view}.mp4")
    assert names.parse("a/a_1.mp4").take == "a"
    with pytest.raises(ValueError, match="does not match"):
        names.parse("a/b_1.mp4")


def test_folder_pattern_without_extension_takes_every_video():
    names = Folder("{take}_cam{view}")
    assert [names.parse(f"t_cam1.{ending}").view for ending in ("mp4", "MOV", "webm")] == ["1"] * 3
    with pytest.raises(ValueError, match="does not match"):
        names.parse("t_cam1.txt")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{take}.mp4", r"lacks \{view\}"),
        ("video.mp4", r"lacks \{take\} and \{view\}"),
        ("{take}_{camera}.mp4", r"unknown field \{camera\}; fields are take, view, label, subject"),
        ("{take}_{view}}.mp4", "a brace without its partner"),
        ("{take_{view}.mp4", "a brace without its partner"),
        ("{take:03}_{view}.mp4", "more than a name between them"),
    ],
)
def test_folder_refuses_bad_patterns(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        Folder(pattern)


_NAME = st.text(alphabet=string.ascii_letters + string.digits + "- ", min_size=1, max_size=8)


@given(take=_NAME, view=_NAME, label=_NAME, subject=_NAME)
@pytest.mark.parametrize(
    "pattern", ["{take}_cam{view}.mp4", "{label}/{take}_{view}", "{subject}_{label}/{take}/{view}.avi", "{view}/{take}"]
)
def test_folder_parse_inverts_format(pattern, take, view, label, subject):
    path = pattern.format(take=take, view=view, label=label, subject=subject)
    path += "" if path.endswith((".mp4", ".avi")) else ".mkv"
    names = Folder(pattern).with_names_from([path])
    video = names.parse(path)
    assert video.view == view
    assert video.take.split("/")[-1] == take
    assert names.format(video) == path


def test_unknown_data_set_and_protocol_name_the_known_ones():
    with pytest.raises(ValueError, match="Did you mean ntu60"):
        catalog.get("NTU-60")
    with pytest.raises(ValueError, match="known are synthetic, ntu60"):
        catalog.get("imagenet")
    video = catalog.get("ntu60").parse("S001C002P003R001A013_rgb.avi")
    with pytest.raises(ValueError, match="ntu60 has no protocol 'xset'; it has random, xsub, xview"):
        catalog.get("ntu60").split("xset", video)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_data_set_says_whether_its_views_may_be_paired(name):
    names = catalog.get(name)
    assert bool(names.not_synchronised) == (name in ("nucla", "pkummd", "rocog"))
