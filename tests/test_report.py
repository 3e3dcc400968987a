"""The report's numbers, charts and pictures are those of the run's files. test_report_in_browser.py renders it."""

import functools
import html
import itertools
import json
import math
import os
import re
import signal
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from mv2mae_jax import config as configs
from mv2mae_jax import report
from mv2mae_jax.objectives import losses
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.report import __main__ as command
from mv2mae_jax.report import (
    attention,
    collect,
    curves,
    examine,
    neighbours,
    page,
    pictures,
    poses,
    samples,
    tables,
)
from tests import faults, tiny


def write_run(workdir, *, task="pretrain", overrides=(), rows=(), results=None):
    """Writes the files that a run leaves in its workdir."""
    workdir.mkdir(parents=True)
    config = json.loads(configs.load(f"configs/{task}_base.py", overrides).to_json())
    (workdir / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "starts.jsonl").write_text(json.dumps(START | {"config": config}) + "\n")
    if results is not None:
        (workdir / "metrics.json").write_text(json.dumps({"config": config, "step": 5, **results}))
    return str(workdir)


START = {
    "time": "2026-01-01T00:00:00+00:00",
    "first_step": 0,
    "command": "python run.py --config=configs/demo.py",
    "git_revision": "0123456789ab",
    "versions": {"python": "3.11.0", "jax": "0.10.2"},
    "machine": "Linux x86_64, 2 CPU cores",
    "facts": {"devices": "1 x cpu"},
}


# Curves


def test_a_single_spike_among_many_points_is_drawn_where_it_was():
    steps, values = np.arange(1, 100_001), np.full(100_000, 0.5)
    values[61_234] = 40.0
    values[70_001] = 0.001
    thinned = dict(zip(*curves.thin(steps, values), strict=True))
    assert len(thinned) <= curves.MOST_POINTS
    assert thinned[61_235] == 40.0 and thinned[70_002] == 0.001


def test_the_trend_is_the_median_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=400)
    steps, trend = curves.smooth(np.arange(400), values, most=400)
    expected = [sorted(values[i - 5 : i + 6])[5] for i in range(5, 395)]
    np.testing.assert_array_equal(trend[5:395], expected)
    assert len(steps) == 400


def test_few_points_are_drawn_as_they_are():
    steps, values = np.arange(30), np.random.default_rng(1).normal(size=30)
    for chosen in (curves.thin(steps, values), curves.smooth(steps, values)):
        np.testing.assert_array_equal(chosen, (steps, values))


def test_the_page_of_the_present_folder_has_the_name_of_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_run(tmp_path / "run", rows=[{"step": 1, "train/loss": 1.0}]))
    assert command.main(["--workdir=.", "--samples=0", "--max_clips=0"]) == 0
    assert "<title>run</title>" in Path("report.html").read_text()


def test_values_that_are_not_finite_are_left_out_of_a_curve(tmp_path):
    rows = [{"step": step, "train/loss": value} for step, value in ((1, 2.0), (2, float("nan")), (3, 1.0))]
    run = collect.read(write_run(tmp_path / "run", rows=rows))
    steps, values = run.series("train/loss")
    assert steps.tolist() == [1, 3] and values.tolist() == [2.0, 1.0]


# Tables


def test_settings_say_what_differs_and_where_each_value_is_from(tmp_path):
    run = collect.read(write_run(tmp_path / "run", overrides=["masking.target_mask_ratio=0.9", "seed=0"]))
    rows = {row.key: row for row in tables.settings(run)}
    assert set(rows) == dict(configs.flatten(run.config)).keys()
    changed = rows["masking.target_mask_ratio"]
    assert (changed.value, changed.base, changed.origin) == ("0.9", "0.7", "this run")
    assert changed.reason == "share of the target view's tokens hidden from the encoder"
    assert rows["data.num_frames"].origin == "paper" and rows["optimizer.b2"].origin == "ours"
    assert [row.key for row in rows.values() if row.origin == "this run"] == ["masking.target_mask_ratio"]


def test_a_comparison_names_the_keys_that_differ(tmp_path):
    first = write_run(tmp_path / "a", overrides=["seed=1", "data.crop_size=(64,64)"])
    second = write_run(tmp_path / "b", overrides=["seed=2", "data.crop_size=(64,64)"])
    runs = collect.read_all([first, second])
    assert tables.config_differences(runs) == [("seed", ["1", "2"])]
    assert [run.name for run in runs] == ["a", "b"]
    assert command.main([f"--workdir={first}", f"--workdir={second}", f"--output={tmp_path / 'c.html'}"]) == 0
    assert "Comparison of a, b" in (tmp_path / "c.html").read_text()


def test_a_comparison_tells_whose_pose_is_whose(tmp_path, monkeypatch, capsys):
    workdirs = [write_run(tmp_path / name) for name in ("a", "b")]
    sheet = np.zeros((4, 4, 3), np.uint8)
    pose = poses.Poses(about="", rows=[("this run", 0.5, 9.0)], mean_error_cm=18.0, films=[], sheet=sheet)
    monkeypatch.setattr(examine, "examine", lambda *_, **__: examine.Examined(poses=pose))
    assert command.main([*(f"--workdir={workdir}" for workdir in workdirs), f"--output={tmp_path / 'c.html'}"]) == 0
    said = capsys.readouterr().out
    assert all(f" {name}: 3D pose read from frozen tokens: this run R² 0.50" in said for name in ("a", "b"))
    assert command.main([f"--workdir={workdirs[0]}"]) == 0
    assert "s). 3D pose read" in capsys.readouterr().out


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    workdirs = [write_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert [run.name for run in collect.read_all(workdirs)] == ["a/run", "b/run"]
    with pytest.raises(ValueError, match="twice"):
        collect.read_all([workdirs[0], workdirs[0] + "/"])


def test_more_runs_than_colours_are_refused(tmp_path):
    workdirs = [write_run(tmp_path / str(number)) for number in range(collect.MOST_RUNS + 1)]
    assert len(collect.read_all(workdirs[1:])) == collect.MOST_RUNS
    with pytest.raises(ValueError, match="Compare fewer"):
        collect.read_all(workdirs)


def test_results_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(tmp_path):
    results = {"metrics": {"eval/loss_self": 0.25}}  # measured at step 5
    rows = [{"step": 5, "eval/loss_self": 0.25}, {"step": 8, "train/loss": 1.0}]
    ended = collect.read(write_run(tmp_path / "ended", rows=rows[:1], results=results))
    going_on = collect.read(write_run(tmp_path / "going_on", rows=rows, results=results))
    assert ended.results is not None and going_on.results is None
    assert going_on.metrics == {"eval/loss_self": 0.25}, "the values measured so far"


def test_accuracies_and_mistakes_of_probes_are_those_in_the_file(tmp_path):
    confusion = [[3, 1, 0], [0, 4, 0], [2, 0, 2]]
    results = {
        "metrics": {"knn/top_1": 0.75, "knn/mean_class": 0.75, "knn/top_1/C001": 0.5, "retrieval/recall_1": 0.25},
        "class_names": ["wave", "sit", "clap"],
        "knn": {"confusion_matrix": confusion},
    }
    run = collect.read(write_run(tmp_path / "run", task="probe", results=results))
    columns, rows = tables.accuracies(run)
    assert columns == ["top-1", "mean class", "top-1, C001"]
    assert rows == [("knn", ["75.0 %", "75.0 %", "50.0 %"])]
    assert "Chance is 33.3 % for 3 classes" in page.render([run], [examine.Examined()], "python")
    ((chart, pairs),) = tables.confusions(run, "confusion")
    assert pairs == [("clap", "wave", 2, 4), ("wave", "sit", 1, 4)]
    assert "9 of 12 right" in chart.svg


# Attention


def decode_by_hand(params, model, target, visible, decoded, source, source_visible):
    """The cross-view decoder for one sample in plain NumPy: (attention [depth, heads, Md, Ns], prediction [Md, P])."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attend(query, key, value):
        heads, width = model.decoder_heads, query.shape[-1] // model.decoder_heads
        mixed, weights = [], []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            score = np.exp(query[:, part] @ key[:, part].T / math.sqrt(width))
            weights.append(score / score.sum(-1, keepdims=True))
            mixed.append(weights[-1] @ value[:, part])
        return np.concatenate(mixed, -1), np.stack(weights)

    def dense(x, p):
        return x @ p["kernel"] + p.get("bias", 0)

    width = model.decoder_width
    angle = np.arange(model.num_tokens)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    table = np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))
    project = params["encoder_to_decoder"]["kernel"]
    x = np.concatenate([target @ project + table[visible], params["mask_token"][0] + table[decoded]])
    source, attentions = source @ project + table[source_visible], []
    for layer in range(model.decoder_depth):
        p = params["blocks"][str(layer)] if "0" in params["blocks"] else None
        p = p or jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        query, key, value = np.split(norm(x, p["norm1"]) @ p["attn"]["qkv"]["kernel"], 3, -1)
        mixed, _ = attend(query + p["attn"]["q_bias"], key, value + p["attn"]["v_bias"])
        x = x + dense(mixed, p["attn"]["proj"])
        cross, other = p["cross_attn"], norm(source, p["norm_y"])
        mixed, weights = attend(
            dense(norm(x, p["norm2"]), cross["projq"]), dense(other, cross["projk"]), dense(other, cross["projv"])
        )
        attentions.append(weights[:, len(visible) :])
        x = x + dense(mixed, cross["proj"])
        hidden = dense(norm(x, p["norm3"]), p["mlp"]["fc1"])
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + dense(hidden, p["mlp"]["fc2"])
    return np.stack(attentions), dense(norm(x[len(visible) :], params["norm"]), params["head"])


@pytest.mark.parametrize("form", [{"scan_layers": True}, {"scan_layers": False, "norm_affine": "folded"}])
def test_attention_is_that_of_a_decoder_written_out_in_numpy(form):
    config = tiny.make_config(data={"num_source_views": 2}, model=form, global_batch_size=2)
    task = Pretrain.from_config(config)
    params = tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)))
    inputs = task.make_inputs(tiny.make_batch(config, 0), jax.random.key(1))
    mask, sources = inputs["target_mask"], inputs["source_mask"]

    @functools.partial(jax.jit, compiler_options=tiny.QUICK)
    def compute(params):
        model = task.model.bind({"params": params})
        latents, source_latents = model.encode_views(inputs["patches"], mask, sources)
        arguments = (latents, mask.visible, mask.masked, source_latents, sources.visible)
        found = attention.cross_attention(task.model, params, *arguments)
        return latents, source_latents, found, model.decode_cross(*arguments)

    latents, source_latents, found, predicted = compute(params)

    assert found.shape == (2, 2, 3, mask.masked.shape[1], sources.visible[0].size)
    in_double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["cross_decoder"])
    for sample in range(2):
        by_hand, prediction = decode_by_hand(
            in_double,
            task.model,
            np.asarray(latents[sample], np.float64),
            mask.visible[sample],
            mask.masked[sample],
            np.asarray(source_latents[sample], np.float64).reshape(sources.visible[0].size, -1),
            np.asarray(sources.visible[sample]).reshape(-1),
        )
        np.testing.assert_allclose(prediction, predicted[sample], atol=2e-4)  # so that both are the same decoder
        np.testing.assert_allclose(found[sample], by_hand, atol=2e-5)


def test_chosen_tokens_are_hidden_lie_apart_and_move_most():
    grid, rng = (3, 5, 5), np.random.default_rng(0)
    motion, hidden = rng.random(75), np.sort(rng.permutation(75)[:50])
    *moving, still = attention.choose_tokens(motion, hidden, grid)
    assert set(moving) | {still} <= set(hidden.tolist())
    assert moving[0] == hidden[motion[hidden].argmax()] and still == hidden[motion[hidden].argmin()]
    places = [(token // 5 % 5, token % 5) for token in moving]
    apart = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.combinations(places, 2)]
    assert len(moving) == 4 and min(apart) > 1


def test_the_picture_is_warm_where_the_attention_is_and_pale_where_hidden():
    grid, video = (2, 2, 2), np.full((4, 16, 16, 3), 60, np.uint8)
    video[..., 2] = 200  # blue
    picture = attention.attended(video, grid, np.array([1.0, 0.0]), np.array([4, 7]), at=1).astype(int)
    red, blue = picture[..., 0], picture[..., 2]
    half = len(picture) // 2
    assert (red[:half, :half] > 200).all() and (blue[:half, :half] < 60).all(), "all attention"
    assert (picture[half:, half:] == (60, 60, 200)).all(), "visible, without attention"
    assert (red[:half, half:] == blue[:half, half:]).all(), "hidden: without colour"


# Motion weights and pictures


@pytest.mark.parametrize("ess_fraction", [0.1, 0.6, 0.95])
def test_the_temperature_is_found_from_the_weights(ess_fraction):
    motion = np.random.default_rng(0).gamma(1.0, 300.0, 64).astype(np.float32)
    weights = np.asarray(losses.motion_weights(motion, ess_fraction=ess_fraction))
    again = losses.motion_weights(motion, temperature=samples.temperature_of(motion, weights))
    np.testing.assert_allclose(again, weights, rtol=1e-3)
    assert samples.temperature_of(motion, np.ones(64)) == math.inf


def test_an_animation_is_its_frames_side_by_side():
    video = np.stack([np.full((32, 48, 3), 40 * frame, np.uint8) for frame in range(5)])
    film = pictures.film(video, "label", "alt")
    strip = pictures.decode(film.uri)
    assert (film.frames, film.height, film.width) == (5, 32, 48) and strip.shape == (32, 240, 3)
    for frame in range(5):
        assert abs(int(strip[:, 48 * frame : 48 * frame + 48].mean()) - 40 * frame) <= 3


def test_long_and_large_clips_become_small_animations():
    film = pictures.film(np.zeros((40, 320, 240, 3), np.uint8), "label", "alt")
    assert film.frames == pictures.MOST_FRAMES and min(film.height, film.width) == pictures.MOST_PIXELS
    assert pictures.decode(film.uri).shape == (film.height, film.frames * film.width, 3)


# Neighbours


def test_neighbours_are_of_other_cameras_and_in_order():
    rng = np.random.default_rng(0)
    pooled, view = rng.normal(size=(30, 8)), np.array(["a", "b", "c"] * 10)
    found = neighbours.nearest(pooled, view, 4, 5)
    cosine = {
        i: pooled[i] @ pooled[4] / np.linalg.norm(pooled[i]) / np.linalg.norm(pooled[4])
        for i in range(30)
        if view[i] != "b"
    }
    assert found.tolist() == sorted(cosine, key=cosine.get, reverse=True)[:5]
    assert len(neighbours.nearest(pooled[:4], view[:4], 1, 5)) == 3


def test_principal_axes_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    values = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + 7
    coordinates, shares = neighbours.principal_axes(values)
    reference = PCA(2).fit(values)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(reference.transform(values)), atol=1e-6)


def test_agreement_of_neighbours_leaves_the_own_take_out():
    pooled = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]])
    take = np.array(["s", "s", "t", "u"])
    share, chance = neighbours.nearest_agree(pooled, take, np.array(["x", "x", "x", "y"]))
    # Both clips of s are nearest to u (class y). t and u are nearest to each other (classes y and x).
    assert share == 0 and chance == pytest.approx(np.mean([1 / 2, 1 / 2, 2 / 3, 0]))


# The command


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    for workdir, said in ((tmp_path, "holds none of"), (tmp_path / "nothing", "does not exist")):
        assert command.main([f"--workdir={workdir}"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_page_at_the_end_of_a_run_is_the_one_that_the_command_writes(tmp_path, monkeypatch):
    """Its read-outs depend on the number of clips, so the same run would else be told with two results."""
    asked = []

    def run(arguments, **_):
        asked.append(arguments)
        return types.SimpleNamespace(returncode=0, stdout="Report", stderr="")

    monkeypatch.setattr(report.subprocess, "run", run)
    report.write_at_end(str(tmp_path))
    (arguments,), parser = asked, command.make_parser()
    assert arguments[1:3] == ["-m", "mv2mae_jax.report"]
    assert parser.parse_args(arguments[3:]) == parser.parse_args([f"--workdir={tmp_path}"])


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    (workdir := tmp_path / "no run").mkdir()
    report.write_at_end(str(workdir))
    said = capsys.readouterr().out
    assert said.startswith("No report was written: ") and said.count("\n") == 1
    assert said.endswith(f"To try again: python -m mv2mae_jax.report --workdir='{workdir}'\n")


def test_numbers_below_0_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([f"--workdir={tmp_path}", "--max_clips=-1"])
    assert "--samples and --max_clips are 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_the_process_of_a_report_ends_with_the_run(tmp_path, name):
    """A report that outlived its run would write to a workdir that another run may have locked."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, time\nfrom mv2mae_jax import report\n"
        "report.end_with_parent()\nopen('pid.tmp', 'w').write(str(os.getpid()))\n"
        "os.rename('pid.tmp', 'pid')\ntime.sleep(600)\n"
    )
    stand_in.chmod(0o755)
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # the tests may run under nohup
    code += "from mv2mae_jax import report; sys.executable = sys.argv[1]; os.chdir(sys.argv[2]); "
    run = faults.start("-c", code + "report.write_at_end('run')", stand_in, tmp_path)
    while not (tmp_path / "pid").exists():
        time.sleep(0.05)
        assert run.poll() is None, run.stderr.read()
    child = int((tmp_path / "pid").read_text())
    run.send_signal(getattr(signal, name))
    run.communicate()  # the child holds the same pipes, so this waits for it, too
    while (
        os.path.exists(f"/proc/{child}")
        and Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):
        time.sleep(0.05)


def test_a_run_that_has_just_started_has_a_report(tmp_path):
    workdir = write_run(tmp_path / "run")
    assert command.main([f"--workdir={workdir}"]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "the run has not ended" in text and START["command"] in text and START["git_revision"] in text


def test_text_from_files_cannot_become_markup(tmp_path):
    run = collect.read(write_run(tmp_path / "run", overrides=["data.dir=<script>alert(1)</script>"]))
    assert "<script" not in page.render([run], [examine.Examined()], "python")


NAMES = (
    r"$\frac{$",
    "$x$",
    "<b>&amp;",
    "_hidden",
    '#a00000 id="x"',
    "url(#y)",
    "font-family: x",
    "font: 9px y",
    "<!-- -->",
    "",
)


def texts(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_names_are_no_markup_in_charts_and_pages(tmp_path):
    counts = (np.eye(len(NAMES), dtype=int) + 1).tolist()
    results = {"metrics": {"test/top_1": 0.5}, "class_names": list(NAMES), "confusion_matrix": counts, "step": 6}
    run = collect.read(write_run(tmp_path / "$run_<i>", task="finetune", results=results))
    ((chart, _),) = tables.confusions(run, "key")
    assert sorted(texts(chart.svg)) == sorted([*NAMES[:-1] * 2, "predicted class", "true class"])
    take, label = np.arange(40).astype(str), np.arange(40) % len(NAMES)
    view = np.array(["_v$", "C|<2>"])[label % 2]
    pooled = np.random.default_rng(0).normal(size=(40, 6))
    maps = neighbours._maps(pooled, take, view, label, NAMES, "key")
    assert set(NAMES[:-1]) <= set(texts(maps[0].svg)) and {"_v$", "C|<2>"} <= set(texts(maps[1].svg))
    seen = examine.Examined(neighbours=neighbours.Neighbours(about=NAMES[2], queries=[], maps=maps))
    text = page.render([run], [seen], "python")
    assert "<b>" not in text and "<i>" not in text and text.count(html.escape(NAMES[2])) > 4


@pytest.mark.parametrize("digest", ["of the run", "of another"])
def test_another_data_set_is_not_shown_as_the_runs(monkeypatch, digest):
    monkeypatch.setattr(examine.run_record, "read_record", lambda workdir: (1, {"manifest_sha256": "of the run"}, None))
    monkeypatch.setattr(examine, "open_sets", lambda named: types.SimpleNamespace(content_digest=lambda: digest))
    monkeypatch.setattr(examine.samples, "examine", lambda run, count: (1, ["sample"]))
    config = types.SimpleNamespace(task="pretrain", data=types.SimpleNamespace(dir="prepared/other"))
    seen = examine.examine(types.SimpleNamespace(workdir="run", config=config), num_samples=1, max_clips=0, key="run")
    assert seen.samples == (["sample"] if digest == "of the run" else [])
    assert seen.left_out == [] or "prepared/other holds another set than the one" in seen.left_out[0]
    assert bool(seen.left_out) == (digest == "of another")


@pytest.mark.parametrize(("init_from", "told"), [("", 0.0), ("random", 0.0), ("gone", None)])
def test_pictures_are_left_out_where_nothing_says_how_they_are_to_be_blurred(tmp_path, monkeypatch, init_from, told):
    """A fine-tuned run follows the run that it began with, which may have been moved since."""
    monkeypatch.chdir(tmp_path)
    config = config_dict.ConfigDict({"task": "finetune", "eval": {}, "init_from": init_from})
    if told is not None:
        assert examine.blur_sigma(config) == told
        return
    monkeypatch.setattr(examine, "_other_data", lambda run: "")
    monkeypatch.setattr(examine.neighbours, "open_run", lambda run: None)
    config.data = {"dir": str(tmp_path)}
    seen = examine.examine(types.SimpleNamespace(workdir="run", config=config), num_samples=1, max_clips=9, key="run")
    assert seen.neighbours is None and seen.poses is None
    assert len(seen.left_out) == 2 and all("began with, gone, is not there" in line for line in seen.left_out)
