"""The generated data set: its design, its geometry, its actions, its files."""

import collections
import dataclasses
import itertools
import json
import shutil

import av
import numpy as np
import pytest

import data.catalog
from console import progress
from console.command import ExitCode
from data.catalog.synthetic import CLASS_NAMES
from data.store.whole_files import only_one
from data.synthetic import actors, renderer, rooms, writer
from data.synthetic.__main__ import main
from data.synthetic.actions import ACTIONS, JOINT_ANGLES, phases, pose
from data.synthetic.design import Take, plan_takes, subjects_by_setup
from data.synthetic.generate import DESCRIPTION, description, generate

SEED = 3
WIDTH, HEIGHT = 64, 36
SMALL = rooms.Style(width=WIDTH, height=HEIGHT)


def action_named(name):
    return ACTIONS[CLASS_NAMES.index(name)]


def still_body(subject, action, phase=0.5):
    return actors.pose_body(subject, pose(action, np.array([phase])), np.zeros(2), 0.0)


# --- The design -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_takes", [1, 7, 16, 48, 160, 500])
def test_takes_are_distinct_and_named_as_in_ntu(num_takes):
    takes = plan_takes(num_takes, SEED)
    assert len(set(takes)) == len(takes) == num_takes
    catalog = data.catalog.get("synthetic")
    for take in takes:
        for camera in (1, 2, 3):
            video = catalog.parse(take.file_name(camera))
            numbers = (video.setup, video.camera, video.subject, video.performance, video.label + 1)
            assert numbers == (take.setup, camera, take.subject, take.performance, take.action)


@pytest.mark.parametrize("num_takes", [64, 160, 200, 1000])
def test_no_group_of_takes_prefers_a_class(num_takes):
    takes = plan_takes(num_takes, SEED)
    groups = {
        "all": lambda take: 0,
        "setup": lambda take: take.setup,
        "subject": lambda take: take.subject,
        "performance": lambda take: take.performance,
        "setup and performance": lambda take: (take.setup, take.performance),
    }
    for name, group in groups.items():
        counts = collections.defaultdict(lambda: np.zeros(len(ACTIONS), int))
        for take in takes:
            counts[group(take)][take.action - 1] += 1
        for key, histogram in counts.items():
            assert histogram.max() - histogram.min() <= (3 if name == "subject" else 2), (name, key, histogram)


def test_setup_and_class_are_independent():
    takes = plan_takes(320, SEED)
    for attribute in ("setup", "subject", "performance"):
        values = sorted({getattr(take, attribute) for take in takes})
        table = np.zeros((len(values), len(ACTIONS)))
        for take in takes:
            table[values.index(getattr(take, attribute)), take.action - 1] += 1
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        chi_squared = ((table - expected) ** 2 / expected).sum()
        freedom = (len(values) - 1) * (len(ACTIONS) - 1)
        assert chi_squared < freedom / 2, (attribute, chi_squared)  # A random assignment would give about `freedom`.


@pytest.mark.parametrize("num_takes", [100, 160, 200])
def test_each_room_has_several_people_doing_several_things(num_takes):
    cells = collections.defaultdict(set)
    for take in plan_takes(num_takes, SEED):
        cells[take.setup, take.subject, take.performance].add(take.action)
    people = collections.Counter((setup, performance) for setup, _, performance in cells)
    assert min(people.values()) >= 2
    assert min(len(actions) for actions in cells.values()) >= 2


def test_people_act_in_several_rooms_and_rooms_differ_in_people():
    cast = subjects_by_setup(2000)
    assert len({tuple(subjects) for subjects in cast.values()}) == len(cast) == 10
    rooms_of = collections.Counter(subject for subjects in cast.values() for subject in subjects)
    assert min(rooms_of.values()) >= 2


def test_fewer_setups_hold_more_people():
    takes = plan_takes(1000, SEED, num_setups=2)
    assert len(takes) == 1000 and {take.setup for take in takes} == {1, 2}
    people = collections.Counter((take.setup, take.subject) for take in takes)
    assert len(people) == 50 and set(people.values()) == {20}
    actions = collections.Counter(take.action for take in takes)
    assert max(actions.values()) - min(actions.values()) <= 4
    with pytest.raises(ValueError, match="number of setups"):
        plan_takes(1000, SEED, num_setups=0)


def test_more_takes_than_there_are_different_ones_are_refused():
    takes = plan_takes(128, SEED, num_setups=1, num_subjects=4)
    assert len(set(takes)) == 128 and {take.subject for take in takes} == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="129 takes are more than the 128 different ones of 1 setups, 4 subjects"):
        plan_takes(129, SEED, num_setups=1, num_subjects=4)


@pytest.mark.parametrize("num_takes", [0, -1, 10**9])
def test_impossible_numbers_of_takes_are_refused(num_takes):
    with pytest.raises(ValueError, match="number of takes"):
        plan_takes(num_takes, SEED)


# --- The actions ------------------------------------------------------------------------------------------------------

PHASE = np.linspace(0, 1, 23)


@pytest.mark.parametrize("limb", ["wave with the {} hand", "punch with the {} hand", "kick with the {} leg"])
def test_left_and_right_are_mirror_images_in_space(limb):
    subject = actors.make_subject(SEED, 1)
    left, right = (
        actors.pose_body(subject, pose(action_named(limb.format(side)), PHASE), np.zeros(2), 0.0).joints
        for side in ("left", "right")
    )
    for name, points in left.items():
        twin = name.replace("left", "right") if "left" in name else name.replace("right", "left")
        np.testing.assert_allclose(points, right[twin] * [1, -1, 1], atol=1e-9)
    moved = np.ptp(left["left_wrist"], axis=0).max(), np.ptp(left["left_ankle"], axis=0).max()
    assert max(moved) > 0.3  # The named side is the one that moves.


@pytest.mark.parametrize(
    ("forwards", "backwards"),
    [
        ("sit down", "stand up"),
        ("raise both arms", "lower both arms"),
        ("circle the arms backwards", "circle the arms forwards"),
    ],
)
def test_reversed_classes_are_the_same_path_in_reverse(forwards, backwards):
    there, back = pose(action_named(forwards), PHASE), pose(action_named(backwards), PHASE)
    np.testing.assert_allclose(there, back[::-1], atol=1e-12)
    assert np.abs(there - back).max() > 0.5


@pytest.mark.parametrize("name", ["clap", "march"])
def test_slow_and_fast_are_one_path_at_two_speeds(name):
    slow, fast = action_named(f"{name} slowly"), action_named(f"{name} fast")
    np.testing.assert_array_equal(pose(slow, PHASE), pose(fast, PHASE))
    cycles = [np.ptp(phases(action, 61, 30, 1.0, np.random.default_rng(0))) for action in (slow, fast)]
    # Subjects' speeds differ by less than a factor 1.5 (0.88 * 0.95 to 1.14 * 1.05): they cannot turn slow into fast.
    assert cycles[1] / cycles[0] > 2


def test_actions_that_repeat_close_their_cycle():
    for action in ACTIONS:
        difference = pose(action, np.array([0.0])) - pose(action, np.array([1.0]))
        closed = np.abs(np.sin(difference / 2)).max() < 1e-9  # Equal up to whole turns.
        assert closed == action.repeats, action.name


def test_every_two_seconds_of_every_class_show_movement():
    for action in range(1, len(ACTIONS) + 1):
        for subject in (1, 2, 3):
            take = Take(setup=1, subject=subject, performance=1, action=action)
            joints = np.stack(list(writer.take_body(SEED, take).joints.values()), axis=1)  # (T, J, 3)
            assert writer.MIN_FRAMES <= len(joints) <= writer.MAX_FRAMES
            for start in range(0, len(joints) - 59, 5):
                assert np.ptp(joints[start : start + 60], axis=0).max() > 0.2, (CLASS_NAMES[action - 1], subject, start)


def test_when_an_action_begins_does_not_tell_the_class():
    sit, rise = (
        [np.argmax(phases(action_named(name), 80, 30, 1.0, np.random.default_rng(seed)) > 0) for seed in range(20)]
        for name in ("sit down", "stand up")
    )
    assert sit == rise and len(set(sit)) > 5


# --- The geometry -----------------------------------------------------------------------------------------------------


def test_round_cones_are_hit_where_a_swept_sphere_is():
    rng = np.random.default_rng(SEED)
    for _ in range(30):
        r0, r1 = rng.uniform(0.03, 0.2, 2)
        length = rng.uniform(abs(r0 - r1) + 0.02, 0.5)
        origin = rng.normal(size=3) * 0.5 + [2.0, 0.0, 0.0]
        targets = rng.normal(size=(64, 3)) * 0.15 + [0.0, 0.0, length / 2]
        rays = targets - origin  # (64, 3)
        hit = renderer._intersect_round_cone(
            np.float32(origin)[None],
            [np.float32(rays[:, k])[None, None] for k in range(3)],
            np.float32(length),
            np.float32(r0),
            np.float32(r1),
        )[0, 0]
        share = np.linspace(0, 1, 2001)[:, None]  # Spheres close together along the axis, intersected one by one.
        to_origin = origin - share * [0.0, 0.0, length]
        a, b = (rays**2).sum(1), to_origin @ rays.T
        root = b**2 - a * ((to_origin**2).sum(1, keepdims=True) - (r0 + share * (r1 - r0)) ** 2)
        with np.errstate(invalid="ignore"):
            swept = np.where(root >= 0, (-b - np.sqrt(root)) / a, np.inf).min(axis=0)
        grazing = np.abs(root).min(axis=0) < 1e-3 * a  # Rays that touch the outline may fall on either side.
        both = np.isfinite(hit) & np.isfinite(swept)
        assert np.all((np.isfinite(hit) == np.isfinite(swept)) | grazing)
        np.testing.assert_allclose(hit[both & ~grazing], swept[both & ~grazing], atol=2e-3)
        assert both.any() or not np.isfinite(swept).any()


def test_normals_point_away_from_the_sphere_that_touches_the_surface():
    rng = np.random.default_rng(SEED)
    for r0, r1, length in ((0.1, 0.1, 0.3), (0.12, 0.05, 0.25), (0.05, 0.12, 0.25)):
        share, turn = rng.uniform(0, 1, 50), rng.uniform(0, 2 * np.pi, 50)
        lift = (r0 - r1) / length  # The common tangent of the spheres leans by this, so the normals do.
        flat = np.sqrt(1 - lift**2)
        normal = np.stack([flat * np.cos(turn), flat * np.sin(turn), np.full(50, lift)], axis=1)
        surface = share[:, None] * [0, 0, length] + (r0 + share * (r1 - r0))[:, None] * normal
        np.testing.assert_allclose(renderer._along(surface, length, r0, r1), share, atol=1e-6)
    # Beyond the ends, the sphere at the end touches.
    np.testing.assert_array_equal(renderer._along(np.array([[0, 0, -0.1], [0, 0, 0.4]]), 0.3, 0.1, 0.1), [0, 1])


@pytest.mark.parametrize("part", ["head", "left_hand", "right_foot"])
def test_a_body_part_appears_where_the_published_calibration_puts_it(part):
    width, height, setup = 240, 136, 2
    style = rooms.Style(width=width, height=height)
    published = json.loads(json.dumps(description(160, SEED, style=style)))["setups"][f"S{setup:03}"]["cameras"]
    room, subject = rooms.make_room(SEED, setup), actors.make_subject(SEED, 1)
    body = still_body(subject, action_named("raise both arms"), 1.0)
    index = body.names.index(part)
    middle = body.start[0, index] + 0.5 * body.length[index] * body.axes[0, index, 2]
    alone = dataclasses.replace(
        body,
        names=(part,),
        start=body.start[:, [index]],
        axes=body.axes[:, [index]],
        length=body.length[[index]],
        radii=body.radii[[index]],
        flatness=body.flatness[[index]],
    )
    for number in (1, 2, 3):
        still = renderer.still_picture(SEED, setup, 1, number, style)
        still = dataclasses.replace(still, image=np.zeros_like(still.image))
        (video,) = renderer.render_views(room, [still], subject, alone)
        image = video[0].max(axis=-1) > 20
        seen = np.argwhere(image).mean(axis=0)[::-1]  # (x, y)
        K, R, t = (np.array(published[f"C{number:03}"][key]) for key in ("K", "R", "t"))
        x, y, z = K @ (R @ middle + t)
        assert image.sum() > 10
        np.testing.assert_allclose(seen, [x / z, y / z], atol=1.0)


def test_nearer_parts_hide_farther_ones():
    room, subject = rooms.make_room(SEED, 1), actors.make_subject(SEED, 1)
    body = still_body(subject, ACTIONS[0])
    still = renderer.still_picture(SEED, 1, 1, 1, rooms.Style(width=96, height=96))
    order = np.random.default_rng(0).permutation(len(body.names))
    shuffled = dataclasses.replace(
        body,
        names=tuple(body.names[i] for i in order),
        start=body.start[:, order],
        axes=body.axes[:, order],
        length=body.length[order],
        radii=body.radii[order],
        flatness=body.flatness[order],
    )
    pictures = [renderer.render_views(room, [still], subject, b)[0] for b in (body, shuffled)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("setup", [1, 2, 3, 4, 5])
def test_the_rig_is_that_of_ntu(setup):
    room = rooms.make_room(SEED, setup)
    positions = {number: rooms.make_camera(room, number, 320, 180).centre for number in (1, 2, 3)}
    for performance, (front, side) in {1: (3, 2), 2: (2, 3)}.items():
        heading = rooms.facing(room, performance)
        angles = {
            number: np.rad2deg(np.abs((np.arctan2(p[1], p[0]) - heading + np.pi) % (2 * np.pi) - np.pi))
            for number, p in positions.items()
        }
        assert angles[front] < 10 and 30 < angles[1] < 60 and 75 < angles[side] < 105


ALL_AROUND = rooms.Style(rooms="plain", facing_spread=180, fps=10)


@pytest.mark.parametrize("style", [rooms.STANDARD, ALL_AROUND])
def test_the_actor_is_large_and_inside_the_picture(style):
    for setup in range(1, 9):
        room, width, height = rooms.make_room(SEED, setup, style), 320, 180
        for action in range(1, len(ACTIONS) + 1):
            take = Take(setup=setup, subject=action, performance=1 + action % 2, action=action)
            body = writer.take_body(SEED, take, style)
            tip = body.start + body.axes[:, :, 2] * body.length[:, None]
            for number in (1, 2, 3):
                camera = rooms.make_camera(room, number, width, height)
                ends, depth = camera.project(np.stack([body.start, tip], axis=2))  # (T, P, 2, 2), (T, P, 2)
                size = (camera.intrinsics[0, 0] * body.radii / depth)[..., None]
                assert (ends - size).min() >= 0, (take, number)
                assert np.all((ends + size).max(axis=(0, 1, 2)) < (width, height)), (take, number)
        for subject in range(1, 20):
            person = actors.make_subject(SEED, subject)
            body = actors.pose_body(person, np.zeros((1, len(JOINT_ANGLES))), np.zeros(2), 0.0)
            ends = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, body.joints["neck"][0, 2] + 0.30 * person.height / 1.75]])
            share = np.ptp(camera.project(ends)[0][:, 1]) / height
            assert 0.5 < share < 0.75


def test_facings_leave_no_gap_where_a_wide_spread_is_asked():
    def facings(style):
        found = []
        for number in range(160):
            take = Take(setup=1, subject=1 + number, performance=1 + number % 2, action=1)
            joints = writer.take_body(SEED, take, style).joints
            left = joints["left_hip"][0] - joints["right_hip"][0]
            found.append(np.rad2deg(np.arctan2(-left[0], left[1])))
        return np.sort(found)

    faced = [np.rad2deg(rooms.facing(rooms.make_room(SEED, 1), performance)) for performance in (1, 2)]
    narrow, wide = facings(rooms.STANDARD), facings(rooms.Style(rooms="plain", facing_spread=45))
    assert np.abs(narrow[:, None] - faced).min(axis=1).max() <= 7 and np.diff(narrow).max() > 60
    assert wide[0] < -80 and wide[-1] > 80 and np.diff(wide).max() < 12
    around = facings(ALL_AROUND)
    assert np.diff([*around, around[0] + 360]).max() < 20


def test_plain_rooms_have_one_colour_per_surface_and_nothing_in_them():
    colours = set()
    for setup in (1, 2, 3):
        room = rooms.make_room(SEED, setup, ALL_AROUND)
        assert room.boxes == () and room.seat is None
        places = np.random.default_rng(0).uniform(-4, 4, (2, 50))
        for surface in room.surfaces:
            assert len(np.unique(surface(*places), axis=0)) == 1
        colours |= {tuple(surface(0.0, 0.0)) for surface in room.surfaces}
    assert len(colours) == 6  # floor and walls of each


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_standing_actor_takes_the_share_that_is_asked(share):
    room = rooms.make_room(SEED, 1, rooms.Style(actor_share=share))
    for width, height in ((48, 48), (320, 180)):
        camera = rooms.make_camera(room, 1, width, height)
        pixels, _ = camera.project(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.75]]))
        assert abs(np.ptp(pixels[:, 1]) / height - share) < 0.1 * share


def test_someone_always_stands_on_the_floor():
    for action in range(1, len(ACTIONS) + 1):
        body = writer.take_body(SEED, Take(setup=1, subject=2, performance=1, action=action))
        feet = [i for i, name in enumerate(body.names) if "foot" in name]
        ends = np.stack([body.start, body.start + body.axes[:, :, 2] * body.length[:, None]], axis=2)[:, feet]
        thickness = (body.radii * body.flatness[:, :1])[feet]
        soles = (ends[..., 2] - thickness).min(axis=(1, 2))  # (T,)
        assert np.all(np.abs(soles) < 0.06), (CLASS_NAMES[action - 1], soles.min(), soles.max())


# --- Appearance -------------------------------------------------------------------------------------------------------


def test_the_background_does_not_depend_on_the_class():
    width, height, setup = 96, 54, 2
    room = rooms.make_room(SEED, setup)
    takes = [Take(setup=setup, subject=3, performance=1, action=action) for action in (1, 6, 9, 15)]
    style = rooms.Style(width=width, height=height)
    videos = [writer.render_take(SEED, take, (1, 2, 3), style) for take in takes]
    for number in (1, 2, 3):
        camera = rooms.make_camera(room, number, width, height)
        free = np.ones((height, width), bool)
        for take in takes:
            body = writer.take_body(SEED, take)
            points = np.concatenate([joint[:1] for joint in body.joints.values()])
            shadow = room.light + (points - room.light) * (room.light[2] / (room.light[2] - points[:, 2:]))
            for cloud, metres in ((points, 0.4), (shadow, 0.6)):  # Skin and shadow are nearer to a joint than this.
                low, high = cloud.min(axis=0) - metres, cloud.max(axis=0) + metres
                corners = np.array(list(itertools.product(*zip(low, high, strict=True))))  # (8, 3)
                pixels = camera.project(corners)[0]
                (x0, y0), (x1, y1) = np.floor(pixels.min(axis=0)), np.ceil(pixels.max(axis=0))
                free[max(0, int(y0)) : max(0, int(y1)), max(0, int(x0)) : max(0, int(x1))] = False
        assert free.mean() > 0.15
        for video in videos[1:]:
            np.testing.assert_array_equal(video[number][0][free], videos[0][number][0][free])


# --- The files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    generate(folder, 4, SEED, workers=1, style=SMALL)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_are_thirty_hertz_h264_and_views_have_one_length(generated):
    takes = plan_takes(4, SEED)
    assert {path.name for path in generated.glob("*.avi")} == {t.file_name(c) for t in takes for c in (1, 2, 3)}
    for take in takes:
        lengths = set()
        for camera in (1, 2, 3):
            with av.open(str(generated / take.file_name(camera))) as container:
                stream = container.streams.video[0]
                assert container.format.name == "avi" and stream.codec_context.name == "h264"
                assert stream.average_rate == 30 and stream.codec_context.pix_fmt == "yuv420p"
                assert (stream.width, stream.height) == (WIDTH, HEIGHT)
                lengths.add(sum(1 for _ in container.decode(video=0)))
        assert len(lengths) == 1 and 60 <= min(lengths) <= max(lengths) <= 90


def test_any_number_of_workers_gives_the_same_bytes(generated, tmp_path):
    generate(tmp_path / "raw", 4, SEED, workers=2, style=SMALL)
    assert contents(tmp_path / "raw") == contents(generated)


def test_another_seed_gives_another_data_set(generated, tmp_path):
    generate(tmp_path, 1, SEED + 1, workers=1, style=SMALL)
    there, other = contents(generated), contents(tmp_path)
    assert there.pop("truth/skeleton.json") == other.pop("truth/skeleton.json")  # all people have the same joints
    assert not set(there.values()) & set(other.values())


def test_a_second_call_completes_what_is_missing(tmp_path):
    generate(tmp_path, 1, SEED, workers=1, style=SMALL)
    before = contents(tmp_path)
    (tmp_path / "truth" / "joints.parquet").unlink()
    cameras = tmp_path / "truth" / "cameras.parquet"
    cameras.write_bytes(cameras.read_bytes()[:-1])
    generate(tmp_path, 1, SEED, workers=1, style=SMALL)
    assert contents(tmp_path) == before
    cameras.write_bytes(cameras.read_bytes()[:-1])
    victim = tmp_path / plan_takes(1, SEED)[0].file_name(2)
    victim.rename(victim.with_name(f".{victim.name}.host-1.tmp"))  # As if killed while writing.
    cut = victim.with_name(plan_takes(1, SEED)[0].file_name(3))
    cut.write_bytes(cut.read_bytes()[:-1])  # as a copy that was interrupted
    untouched = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.avi") if path != cut}
    generate(tmp_path, 1, SEED, workers=1, style=SMALL)
    assert contents(tmp_path) == before
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in untouched.items())


def test_the_sheet_shows_every_camera(tmp_path, capsys):
    arguments = [f"--output={tmp_path}", "--takes=2", "--seed=1", "--resolution=64x36", "--workers=1", "--sheet"]
    assert main(arguments) == 0
    sheet = tmp_path / "contact_sheet.png"
    assert sheet.exists() and str(sheet) in capsys.readouterr().out
    assert main(arguments) == 0  # The sheet counts as a file of the data set.


@pytest.mark.parametrize("text", ["321x180", "320x181", "16x16", "320", "axb", "-320x180"])
def test_nonsense_resolutions_are_refused(tmp_path, capsys, text):
    try:
        code = main([f"--output={tmp_path / 'raw'}", "--takes=1", f"--resolution={text}"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and "--resolution" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    "wrong", ["--facing_spread=20", "--facing_spread=181", "--actor_share=1.2", "--fps=2", "--subjects=1", "--setups=0"]
)
def test_nonsense_about_the_scenes_is_refused(tmp_path, capsys, wrong):
    arguments = [f"--output={tmp_path / 'raw'}", "--takes=1", "--workers=1", "--resolution=64x36", wrong]
    assert main(arguments) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_small_square_plain_videos_are_written_as_asked(tmp_path, capsys):
    style = ["--rooms=plain", "--actor_share=0.65", "--facing_spread=45", "--fps=10", "--subjects=2"]
    arguments = [f"--output={tmp_path}", "--takes=2", "--workers=1", "--resolution=40x40", "--sheet"]
    assert main([*arguments, *style]) == 0
    for path in tmp_path.glob("*.avi"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.width, stream.height) == (10, 40, 40)
            assert 20 <= sum(1 for _ in container.decode(video=0)) <= 30
    told = json.loads((tmp_path / "synthetic.json").read_text())
    wanted = {"rooms": "plain", "actor_share": 0.65, "facing_spread": 45, "fps": 10, "num_subjects": 2}
    assert {key: told[key] for key in wanted} == wanted
    assert main([*arguments, *style[1:2], *style[3:], "--rooms=furnished", "--facing_spread=7"]) == 2
    assert "rooms plain there, furnished asked" in capsys.readouterr().err


def test_ctrl_c_leaves_the_other_takes_to_the_next_call(tmp_path, monkeypatch):
    def interrupt(bar, parts=1):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bar, "advance", interrupt)
    small = ["--rooms=plain", "--fps=10", "--subjects=2", "--resolution=32x32"]
    assert main([f"--output={tmp_path}", "--takes=40", "--workers=2", *small]) == ExitCode.INTERRUPTED
    assert 1 <= len(list(tmp_path.glob("*.avi"))) < 60, "of 120"


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "S001C001P001R001A001_rgb.avi").write_bytes(b"someone else's")
    (tmp_path / "holiday.mp4").write_bytes(b"")
    arguments = [f"--output={tmp_path}", "--takes=1", "--workers=1", "--resolution=64x36"]
    assert main(arguments) == 2
    assert "not of this data set" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["S001C001P001R001A001_rgb.avi", "holiday.mp4"]


def test_videos_of_unknown_arguments_are_not_mixed_with_others(generated, tmp_path, capsys):
    shutil.copytree(generated, tmp_path, dirs_exist_ok=True)
    arguments = [f"--output={tmp_path}", "--takes=4", f"--seed={SEED}", f"--resolution={WIDTH}x{2 * HEIGHT}"]
    (tmp_path / "synthetic.json").write_text('{"seed": 0')
    assert main(arguments) == 2
    assert f"synthetic.json is damaged: delete {tmp_path} or use another" in capsys.readouterr().err
    (tmp_path / "synthetic.json").unlink()
    assert main(arguments) == 2
    assert f"{tmp_path} lacks synthetic.json, so nothing tells what its files show" in capsys.readouterr().err


def test_a_second_call_for_the_same_folder_is_refused_while_one_writes(generated, capsys):
    arguments = [f"--output={generated}", "--takes=4", f"--seed={SEED}", f"--resolution={WIDTH}x{HEIGHT}"]
    with only_one(generated / DESCRIPTION, "held by this test"):
        assert main(arguments) == 2
    assert f"another data.synthetic is at work in {generated}; wait for it" in capsys.readouterr().err


def test_other_arguments_for_the_same_folder_are_refused(generated, capsys):
    before = contents(generated)
    arguments = [f"--output={generated}", "--takes=5", f"--seed={SEED}", f"--resolution={WIDTH}x{HEIGHT}"]
    assert main(arguments) == 2
    assert "takes 4 there, 5 asked" in capsys.readouterr().err
    assert contents(generated) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main([f"--output={tmp_path / 'file' / 'raw'}", "--takes=1"]) == 2
    assert f"Not a directory: '{tmp_path / 'file' / 'raw'}'" in capsys.readouterr().err
