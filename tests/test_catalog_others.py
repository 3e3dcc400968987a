"""The catalogues of ETRI, NUCLA, PKU-MMD and RoCoG: names both ways, labels, official splits."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import catalog


def _etri(draw):
    a, p, g, c = (draw(st.integers(1, most)) for most in (55, 100, 6, 8))
    numbers = dict(label=a - 1, subject=p, performance=g, camera=c)
    take = f"A{a:03}_P{p:03}_G{g:03}"
    return catalog.Video(path=f"{take}_C{c:03}.mp4", take=take, view=f"C{c:03}", **numbers)


def _nucla(draw):
    label, v, s, e = (
        draw(st.integers(0, 9)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 10)),
        draw(st.integers(0, 99)),
    )
    a = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)[label]
    return catalog.Video(
        path=f"a{a:02}/v{v:02}_s{s:02}_e{e:02}.avi",
        take=f"a{a:02}_s{s:02}_e{e:02}",
        view=f"v{v:02}",
        **dict(label=label, subject=s, performance=e, camera=v),
    )


def _pkummd(draw):
    a, n, camera = draw(st.integers(1, 26)), draw(st.integers(1, 13)), draw(st.integers(1, 3))
    recording, view = f"A{a:02}N{n:02}", "LMR"[camera - 1]
    return catalog.Video(
        path=f"{recording}-{view}.avi",
        take=recording,
        view=view,
        recording=recording,
        **dict(subject=n, performance=a, camera=camera),
    )


GESTURES = ("Advance", "Attention", "Rally", "MoveForward", "Halt", "FollowMe", "MoveInReverse")


def _rocog(draw):
    label, camera = draw(st.integers(0, 6)), draw(st.integers(1, 2))
    view = ("ground", "air")[camera - 1]
    start, number = draw(st.integers(0, 9999)), draw(st.integers(0, 99))
    if draw(st.booleans()):
        subject, setup, domain = draw(st.integers(0, 10)), draw(st.sampled_from((10, 15, 30))), "real"
        called = ("ground", "hover")[camera - 1]
        session, recording = draw(st.sampled_from(("", "b"))), draw(st.sampled_from(("", "_2", "_3")))
        stem = f"S{subject:02}{session}_{setup}m_{called}{recording}_label{label + 1}_start{start}"
    else:
        subject, setup, domain = -1, number, "syn"
        actor, motion = draw(st.sampled_from((("", ""), ("S01_", "_R01_02"), ("S02_", "_R04_01"))))
        stem = f"Scene{number}_{start}_{actor}{GESTURES[label]}{motion}_23_8_2022_8_3_39"
    take = f"{domain}/{view}/{GESTURES[label]}/{stem}"
    numbers = dict(label=label, subject=subject, setup=setup, camera=camera)
    return catalog.Video(path=f"{take}.mp4", take=take, view=view, **numbers)


@given(st.data())
@pytest.mark.parametrize(
    ("name", "videos"), [("etri", _etri), ("nucla", _nucla), ("pkummd", _pkummd), ("rocog", _rocog)]
)
def test_parse_inverts_format(name, videos, data):
    video, names = videos(data.draw), catalog.get(name)
    assert names.format(video) == video.path
    assert names.parse(video.path) == video
    assert names.parse("copy/of/it/" + video.path) == dataclasses.replace(video, path="copy/of/it/" + video.path)


@given(st.data())
@pytest.mark.parametrize(
    ("name", "videos"), [("etri", _etri), ("nucla", _nucla), ("pkummd", _pkummd), ("rocog", _rocog)]
)
def test_a_changed_character_is_another_name_or_refused(name, videos, data):
    path, names = videos(data.draw).path, catalog.get(name)
    position = data.draw(st.integers(0, len(path) - 1))
    changed = path[:position] + data.draw(st.characters()) + path[position + 1 :]
    try:
        video = names.parse(changed)
    except ValueError as error:
        assert repr(changed) in str(error)
    else:

        def told(path):
            """A name without what is ignored: case, container (.mpg is one, too), and `_` in place of `-`."""
            return path.rpartition(".")[0].lower().replace("_", "-")

        # RoCoG's folders may be missing, because the name repeats what they say.
        assert told(changed).endswith(told(names.format(video)).split("/", 2)[-1])


@given(st.one_of(st.text(), st.text(alphabet="aAvVsSeEPGCNLMR0123456789_-/.avimp4", max_size=30)))
@pytest.mark.parametrize("name", ["etri", "nucla", "pkummd", "rocog"])
def test_any_other_string_is_refused_with_a_reason(name, text):
    with pytest.raises(ValueError, match=r"of the form|does not end in"):
        catalog.get(name).parse(text)


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("etri", "A056_P001_G001_C001.mp4", "actions are 1 to 55, not 56"),
        ("etri", "A001_P101_G001_C001.mp4", "persons are 1 to 100, not 101"),
        ("etri", "A001_P201_G001_C001.mp4", "are those of ETRI-Activity3D-LivingLab, another data set"),
        ("etri", "A001_P230_G001_C009.mp4", "are those of ETRI-Activity3D-LivingLab, another data set"),
        ("etri", "A001_P001_G007_C001.mp4", "groups are 1 to 6, not 7"),
        ("etri", "A001_P001_G001_C009.mp4", "cameras are 1 to 8, not 9"),
        ("nucla", "a07/v01_s01_e00.avi", "actions are 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, not 7"),
        ("nucla", "a01/v04_s01_e00.avi", "views are 1 to 3, not 4"),
        ("nucla", "a01/v01_s11_e00.avi", "subjects are 1 to 10, not 11"),
        ("nucla", "v01_s01_e00.avi", "not of the form aAA/"),
        ("pkummd", "A27N01-L.avi", "sequences are 1 to 26, not 27"),
        ("pkummd", "A01N14-L.avi", "subjects are 1 to 13, not 14"),
        ("pkummd", "0001-L.avi", "phase 1"),
        ("pkummd", "0001-L_color.avi", "phase 1"),
        ("pkummd", "A01N01_color.avi", "does not say which view it is, L, M or R"),
        ("pkummd", "A01N01-L_depth.avi", "not of the form"),
        ("rocog", "real/air/Halt/S04b_15m_hover_label6_start2003.mp4", "label6 is FollowMe, in the folder Halt"),
        ("rocog", "real/air/Halt/S04b_10m_ground_label5_start2003.mp4", "called ground, in the folder air"),
        ("rocog", "real/ground/Halt/S11_10m_ground_label5_start2003.mp4", "subjects are 0 to 10, not 11"),
        ("rocog", "syn/ground/Halt/Scene15_0_Rally_23_8_2022_8_3_39.mp4", "a rendered video is called as"),
        ("rocog", "syn_air/Halt/S04b_15m_hover_label5_start2003.mp4", "a rendered video is called as"),
        ("rocog", "syn/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "does not end in syn/ground|air"),
        ("rocog", "syn_orbital.zip/air/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "orbital videos are in no official"),
        ("rocog", "syn/orbital/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "does not end in real|syn/ground|air"),
    ],
)
def test_impossible_names_are_refused(name, path, reason):
    with pytest.raises(ValueError, match=reason.replace("|", r"\|")):
        catalog.get(name).parse(path)


@pytest.mark.parametrize(
    ("name", "path", "same"),
    [
        ("etri", "A001_P001_G001_C001.mp4", "x/a001_p001_g001_c001.MKV"),
        ("nucla", "a01/v01_s01_e00.avi", "multiview/A01/V01_s01_e00.mp4"),
        ("pkummd", "A01N02-L.avi", "RGB_VIDEO_v2/A01N02-L_color.avi"),
        ("pkummd", "A01N02-L.avi", "A01N02L_color.avi"),
        ("pkummd", "A01N02-L.avi", "A01N02_L.mp4"),
        ("pkummd", "A01N02-R.avi", "a01n02-r_COLOR.AVI"),
        ("rocog", "real/ground/Halt/S04b_10m_ground_label5_start775.mp4", "real_ground.zip/ground/Halt/{}"),
        ("rocog", "real/ground/Halt/S04b_10m_ground_label5_start775.mp4", "ground/Halt/{}"),
        ("rocog", "real/air/Halt/S04b_15m_hover_label5_start775.mp4", "real_air/HALT/{}"),
        ("rocog", "syn/ground/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "syn_ground.zip/ground/Halt/{}"),
        ("rocog", "syn/air/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "syn_air.zip/Halt/{}"),
        ("rocog", "syn/air/Halt/Scene15_0_Halt_23_8_2022_8_3_39.mp4", "my_ground_truth/syn/air/Halt/{}"),
    ],
)
def test_names_of_other_copies_are_the_same_videos(name, path, same):
    names, other = catalog.get(name), same.format(path.rpartition("/")[2])
    assert names.parse(other) == dataclasses.replace(names.parse(path), path=other)


def splits_of(names, protocol, videos):
    return [names.split(protocol, video) for video in videos]


def test_etri_splits():
    names = catalog.get("etri")
    people = [names.parse(f"A001_P{person:03}_G001_C001.mp4") for person in range(1, 101)]
    for protocol, train_ages, test_ages in [
        ("xsub", range(1, 101), range(1, 101)),
        ("elderly", range(1, 51), range(1, 51)),
        ("adults", range(51, 101), range(51, 101)),
        ("elderly_to_adults", range(1, 51), range(51, 101)),
        ("adults_to_elderly", range(51, 101), range(1, 51)),
    ]:
        splits = dict(zip(range(1, 101), splits_of(names, protocol, people), strict=True))
        # The paper's test persons: 3, 6, ..., 99, of which 3 to 48 are elderly and 51 to 99 adults.
        assert [p for p in splits if splits[p] == "test"] == [p for p in test_ages if p in range(3, 100, 3)]
        assert [p for p in splits if splits[p] == "train"] == [p for p in train_ages if p not in range(3, 100, 3)]


def test_nucla_splits():
    names = catalog.get("nucla")
    assert names.class_names[6:] == ("donning", "doffing", "throw", "carry")  # a08, a09, a11, a12
    views = [names.parse(f"a08/v{view:02}_s01_e00.avi") for view in (1, 2, 3)]
    assert splits_of(names, "xview", views) == ["train", "train", "test"]
    assert splits_of(names, "xview_132", views) == ["train", "test", "train"]
    assert splits_of(names, "xview_231", views) == ["test", "train", "train"]
    people = [names.parse(f"a08/v01_s{subject:02}_e00.avi") for subject in (1, 9, 10)]
    assert splits_of(names, "xsub", people) == ["train", "train", "test"]


# The counts are those of the official split files, as listed in public loaders.
def test_complete_pkummd_has_the_published_counts():
    names = catalog.get("pkummd")
    videos = [names.parse(path) for path in names.names()]
    assert len({video.path for video in videos}) == 1_009
    assert Counter(video.view for video in videos) == {"L": 338, "M": 333, "R": 338}
    assert Counter(splits_of(names, "xsub", videos)) == {"train": 775, "test": 234}
    assert Counter(splits_of(names, "xview", videos)) == {"train": 671, "test": 338}


def cut_pkummd(text, num_classes=41):
    names = catalog.get("pkummd", num_classes=num_classes).with_annotations({"label/A01N02-M.txt": text})
    cut = names.cut(names.parse("A01N02-M.avi"))
    return names, cut.takes, [reason for _, reason in cut.refused]


def test_pkummd_is_cut_by_its_labels():
    names, takes, problems = cut_pkummd("13,10,40,2\n 51, 100 ,130,1\n\n1,35,60,2\n")
    assert [take.interval for take in takes] == [(10, 40), (100, 130), (35, 60)]
    assert [names.class_names[take.label] for take in takes] == ["hand waving", "writing", "bow"]
    assert [take.label for take in takes] == [11, 40, 0]  # 13, 51 and 1 without the ten classes that do not occur
    assert [take.take for take in takes] == ["A01N02/001-13", "A01N02/002-51", "A01N02/003-01"]
    assert {(take.path, take.view, take.subject) for take in takes} == {("A01N02-M.avi", "M", 2)}
    assert not problems
    _, takes, problems = cut_pkummd("12,10,40,2\n51,1,2,1\n", num_classes=51)
    assert [take.label for take in takes] == [11, 50] and not problems


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("12,10,40,2", "class 12 is not among the 41"),
        ("0,10,40,2", "class 0 is not"),
        ("52,10,40,2", "class 52 is not"),
        ("1,40,40,2", "starts at its end"),
        ("1,-5,40,2", "not of the form label,start,end,confidence"),
        ("1,10", "not of the form"),
        ("1,10,40,2,7", "not of the form"),
        ("1 10 40 2", "not of the form"),
        ("26,10,40,2", "class 26 is not among the 41 of phase 2; --num_classes=51 keeps it"),
        ("1,1e9,40,2", "not of the form"),
        ("1,10,99999999999999999999,2", "not of the form"),
        ("\x00" * 500, "not of the form"),
    ],
)
def test_absurd_labels_are_refused_alone(row, reason):
    _, takes, problems = cut_pkummd(f"1,0,5,1\n{row}\n2,5,9,1")
    assert [take.interval for take in takes] == [(0, 5), (5, 9)]
    assert len(problems) == 1 and reason in problems[0] and "A01N02-M.txt, row 2" in problems[0]
    assert len(problems[0]) < 500


def test_rows_that_public_readers_accept_are_accepted_and_reported():
    text = "1,10,40\n1,50,45,2\n2,60,70,1\n2,99,80\n3,5,5\n1,0,5,\n"
    names = catalog.get("pkummd").with_annotations({"LABEL/a01n02-m.TXT": "\r\n".join(text.splitlines())})
    cut = names.cut(names.parse("A01N02-M_color.avi"))
    assert [take.interval for take in cut.takes] == [(10, 40), (45, 50), (60, 70), (80, 99), (0, 5)]
    assert [(take, reason.partition(": ")[2]) for take, reason in cut.refused] == [
        ("A01N02/005", "starts at its end: no frame lies in between")
    ]
    told = [change.partition(", row ")[2] for change in cut.changed]
    assert [line.partition(",")[0] for line in told] == ["1", "2", "4", "4", "6"]
    assert sum("no confidence" in line for line in told) == 3
    assert sum("start and end swapped, to [45, 50)" in line or "to [80, 99)" in line for line in told) == 2
    assert len(cut.takes) + len(cut.refused) == 6, "every row is either taken or refused"


def test_too_many_labels_and_none_are_refused():
    _, takes, problems = cut_pkummd("1,0,5,1\n" * 1001)
    assert not takes and "1001 rows, above the limit of 1000" in problems[0]
    names = catalog.get("pkummd").with_annotations({})
    ((take, reason),) = names.cut(names.parse("A01N02-M.avi")).refused
    assert take == "A01N02" and "no label file label/A01N02-M.txt" in reason


def test_two_label_files_for_one_video_are_refused():
    with pytest.raises(ValueError, match=r"label/A01N02-M.txt and Label_v2/A01N02-M.txt are labels for the same video"):
        catalog.get("pkummd").with_annotations({"label/A01N02-M.txt": "", "Label_v2/A01N02-M.txt": ""})


def test_pkummd_labels_are_told_from_skeletons_by_their_folder():
    names = catalog.get("pkummd")
    for path in (
        "label/A01N01-L.txt",
        "PKUMMDv2/Label/A01N01-L.txt",
        "Label_v2.zip/A01N01-L.txt",
        "labels.zip/x/A01N01-L.txt",
    ):
        assert names.is_annotation(path)
    for path in ("skeleton/A01N01-L.txt", "A01N01-L.txt", "label/readme.txt", "label/0001-L.txt"):
        assert not names.is_annotation(path)


def test_rocog_splits():
    names = catalog.get("rocog")
    # Names from the authors' lists.
    rendered = "syn/ground/Halt/Scene15_360_Halt_26_8_2022_4_58_18"
    other = "syn/air/Advance/Scene15_637_S01_Advance_R02_01_23_8_2022_10_34_9"
    names = names.with_annotations(
        {"annotations/syn_ground_train.txt": f"{rendered}.mp4 4\n", "annotations/syn_air_val.txt": f"{other}.mp4 0\n"}
    )
    paths = (
        "real/ground/Halt/S04b_10m_ground_label5_start775.mp4",  # real_ground_test.txt
        "real/ground/MoveInReverse/S05_10m_ground_3_label7_start3589.mp4",  # real_ground_train.txt
        "real/air/Rally/S00_30m_hover_label3_start3962.mp4",  # real_air_test.txt
        "real/air/Rally/S10_15m_hover_label3_start6561.mp4",  # real_air_train.txt
        f"{rendered}.mp4",
        f"{other}.mp4",
    )
    videos = [names.parse(path) for path in paths]
    assert splits_of(names, "ground", videos) == ["test", "train", None, None, None, None]
    assert splits_of(names, "air", videos) == [None, None, "test", "train", None, None]
    assert splits_of(names, "synthetic", videos) == [None, None, None, None, "train", "test"]
    assert splits_of(names, "synthetic_to_ground", videos) == ["test", None, None, None, "train", None]
    assert splits_of(names, "synthetic_to_air", videos) == [None, None, "test", None, None, None]
    assert splits_of(names, "synthetic_ground_to_air", videos) == [None, None, "test", None, "train", None]
    assert splits_of(names, "ground_to_air", videos) == [None, "train", "test", None, None, None]
    assert splits_of(names, "ground_tsonly", videos) == ["test", "train", None, None, None, None]
    assert splits_of(names, "air_tsonly", videos) == [None, None, "test", None, None, None]
    assert splits_of(names, "air_tsonly_val", videos) == [None, None, None, "test", None, None]
    with pytest.raises(ValueError, match="in none of the authors' lists"):
        names.parse("syn/air/Halt/Scene15_1_Halt_26_8_2022_4_58_18.mp4")
    with pytest.raises(ValueError, match=r"syn_air_val\.txt, line 2: 'nonsense' is not"):
        names.with_annotations({"syn_air_val.txt": f"{other}.mp4 0\nnonsense\n"})


# Subjects in the authors' lists real_*.txt (github.com/reddyav1/RoCoG-v2, annotations).
REAL_LISTS = {
    "ground": {"train_tsonly": {1, 3, 5, 7, 8}, "val_tsonly": {2, 10}, "test": {0, 4, 6, 9}},
    "air": {"train_tsonly": {5, 7, 8}, "val_tsonly": {10}, "test": {0, 4, 6, 9}},
}


@pytest.mark.parametrize(
    ("protocol", "trained", "tested"),  # the lists of each, by annotations/README.md
    [
        ("ground_to_air", "ground_train_tsonly", "air_test"),
        ("ground_tsonly", "ground_train_tsonly", "ground_test"),
        ("ground_tsonly_val", "ground_train_tsonly", "ground_val_tsonly"),
        ("air_tsonly", "air_train_tsonly", "air_test"),
        ("air_tsonly_val", "air_train_tsonly", "air_val_tsonly"),
    ],
)
def test_rocog_experiments_follow_the_authors_lists(protocol, trained, tested):
    names, expected, found = catalog.get("rocog"), {}, {}
    for perspective, lists in REAL_LISTS.items():
        called = "10m_ground" if perspective == "ground" else "15m_hover"
        for name, subjects in lists.items():
            for subject in subjects:
                path = f"real/{perspective}/Halt/S{subject:02}_{called}_label5_start9.mp4"
                expected[path] = {trained: "train", tested: "test"}.get(f"{perspective}_{name}")
                found[path] = names.split(protocol, names.parse(path))
    assert found == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("syn/air/Halt/Scene1_0_Halt_1.mp4 3", "3 is MoveForward, not Halt"),
        ("syn/air/Halt/Scene2_0_Halt_1.mp4 4", "in a list for training and in one for validation"),
        ("real/air/Halt/Scene2_0_Halt_1.mp4 4", "is not `syn/"),
    ],
)
def test_rocog_lists_that_contradict_are_refused(line, reason):
    lists = {"syn_air_train.txt": "syn/air/Halt/Scene2_0_Halt_1.mp4 4\n\n", "syn_air_val.txt": f"{line}\n"}
    with pytest.raises(ValueError, match=reason):
        catalog.get("rocog").with_annotations(lists)


def test_cropped_videos_of_rocog_are_preferred_to_uncropped_ones():
    stem = "Halt/S04b_10m_ground_label5_start775.mp4"
    cropped, uncropped = f"real_ground.zip/real/ground/{stem}", f"real_uncropped.zip/real/ground/{stem}"
    both = catalog.get("rocog").with_names_from([cropped, uncropped])
    assert both.parse(cropped).take == catalog.get("rocog").with_names_from([uncropped]).parse(uncropped).take
    with pytest.raises(ValueError, match="cropped real videos are there, too"):
        both.parse(uncropped)


def test_livinglab_is_etri_in_other_persons():
    names = catalog.get("etri_livinglab")
    video = names.parse("P201-P210/P203/A010_P203_G002_C004.mp4")
    assert (video.take, video.view, names.class_names[video.label]) == ("A010_P203_G002", "C004", "brushing teeth")
    assert names.format(video) == "A010_P203_G002_C004.mp4" and names.sync == "frames"
    for path, reason in {
        "A010_P003_G002_C004.mp4": "another data set .--dataset=etri.",
        "A056_P203_G002_C004.mp4": "actions are 1 to 55",
        "A001_P203_G000_C004.mp4": "count from 1",
    }.items():
        with pytest.raises(ValueError, match=reason):
            names.parse(path)
