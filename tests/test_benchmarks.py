"""The statistics behind the benchmarks' tables, and how incomplete results are recognised."""

import collections
import dataclasses
import importlib
import json
import pathlib
import time

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks import ablations, experiment, method, method_results, method_rows, train_step
from configs.ablations import ABLATIONS
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_intervals_are_those_of_student(n):
    values = np.random.default_rng(n).normal(0.6, 0.05, n)
    mean, half = experiment.interval(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-4)


def test_an_ordering_holds_only_by_separated_intervals():
    low, high, between = [0.50, 0.51, 0.49], [0.70, 0.71, 0.69], [0.50, 0.70, 0.60]
    assert experiment.compare(low, high) == "holds"
    assert experiment.compare(high, low) == "reversed"
    assert experiment.compare(low, between) == experiment.compare(between, high) == "null"
    assert experiment.compare(low, low) == "null"
    assert experiment.compare([0.5], [0.9]) == "null", "one seed has no interval"


def write_results(folder, preset):
    """Results that grow by 1 per row and 0.1 per seed."""
    for number, row in enumerate(method_rows.ROWS):
        for seed in preset.seeds_of(row):
            columns = {column: number + 0.1 * seed for column in method_results.COLUMNS}
            curve = {} if method_rows.ROWS[row] is None else {"1000": columns, "2000": columns}
            method_results.result_file(folder, row, seed).write_text(
                json.dumps({"preset": preset.name, "row": row, "seed": seed, "columns": columns, "curve": curve})
            )


def test_check_says_what_is_missing(tmp_path, capsys):
    preset = method_rows.PRESETS["cpu"]
    write_results(tmp_path, preset)
    assert method_results.check(tmp_path, preset) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and f"random < two_views holds in {', '.join(method_results.COLUMNS)} |" in line
    assert "MISSING" not in line

    with pytest.raises(
        ValueError, match=r"is no result of the row random of the preset normalized: it says preset=cpu"
    ):
        method_results.check(tmp_path, method_rows.PRESETS["normalized"])

    method_results.result_file(tmp_path, "cross_view", preset.seeds[-1]).unlink()
    assert method_results.check(tmp_path, preset) == 1
    assert f"MISSING: cross_view seed {preset.seeds[-1]}" in capsys.readouterr().out

    rate = method_rows.PRESETS["rate_half"]
    (tmp_path / "rate").mkdir()
    write_results(tmp_path / "rate", rate)
    assert method_results.check(tmp_path / "rate", rate) == 0
    assert "random" not in capsys.readouterr().out, "a preset says nothing of rows that it does not have"


def test_a_result_is_read_only_as_what_it_is(tmp_path, capsys):
    preset = method_rows.PRESETS["rate_half"]
    write_results(tmp_path, preset)
    path = method_results.result_file(tmp_path, "cross_view", 0)
    whole = path.read_text()
    more = method_results.result_file(tmp_path, "cross_view", 7)
    more.write_text(whole.replace('"seed": 0', '"seed": 7'))
    assert list(method_results.read(tmp_path, preset)[0]["cross_view"]) == [0, 7], "also seeds beyond the preset's"
    for changed, reason in {
        whole[:40]: "cannot be read: .* Remove it, and it is measured again",
        whole.replace("6.0", "NaN", 1): "cannot be read: it holds NaN",
        whole.replace('"row": "cross_view"', '"row": "joint"'): "it says preset=rate_half, row=joint, seed=0",
        whole.replace('"seed": 0', '"seed": 1'): r"seed=1\. Give another --output",
        whole.replace("columns", "column"): "is no result",
    }.items():
        assert changed != whole
        path.write_text(changed)
        with pytest.raises(ValueError, match=reason):
            method_results.read(tmp_path, preset)
        # Nor is a rehearsal, or a further seed, written beside it.
        with pytest.raises(ValueError, match=reason):
            method.main(["--preset=rate_half", f"--output={tmp_path}", f"--folder={tmp_path / 'data'}"])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seeds=0"], "'0' is no whole number above 0"),
        (["--workers=-1"], "'-1' is no whole number above 0"),
        (["--preset=long", "--rows=pixels"], "there is no pixels among random"),
        (["--check", "--rows=random"], "--check reads all rows and seeds"),
        (["--check", "--output=/nonexistent"], "of a folder that exists"),
        (["--rates=0.1,fast"], "'0.1,fast' holds something else than numbers above 0"),
        (["--rates=0.1,nan"], "'0.1,nan' holds something else"),
        (["--rates=0.1", "--seeds=2"], "--rates tries the first seed of a whole preset"),
    ],
)
def test_options_that_would_measure_something_else_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        method.main(arguments)
    assert ended.value.code == 2 and reason in capsys.readouterr().err


def test_a_row_that_is_named_twice_is_measured_once():
    parser = method.make_parser()
    assert experiment.chosen(parser, "random, cross_view,random", method_rows.ROWS) == ["random", "cross_view"]


def test_ablations_are_read_only_with_the_settings_of_today(tmp_path):
    (variant, overrides), *_ = ABLATIONS["target"].variants.items()
    path = ablations.result_file(tmp_path, "target", variant, 0)
    assert ablations.read(tmp_path, "target", variant, 0) is None
    path.write_text(json.dumps({"overrides": overrides, "columns": {}}))
    assert ablations.read(tmp_path, "target", variant, 0)["columns"] == {}
    path.write_text(json.dumps({"overrides": {"model.depth": 99}, "columns": {}}))
    with pytest.raises(ValueError, match=r"was measured with .*99"):
        ablations.check(tmp_path, 1)


def test_an_ablation_that_is_a_row_of_the_comparison_is_read_from_there(tmp_path):
    rows = {
        f"{name}={variant}": (found := ablations.row_of(name, variant)) and (found[0].name, found[1])
        for name, variant, _ in ablations.planned(ablations.NAMES, 1)
    }
    assert rows["ess_fraction=0.3"] == ("cpu", "cross_view_ess30") and rows["temperature=60"][1] == "cross_view_t60"
    own = "cpu", "cross_view_ess50"
    assert rows["ess_fraction=0.5"] == rows["decoder_depth=2"] == own, "the benchmark's own config"
    assert rows["mask_ratio=0.7"] == ("masks_70", "cross_view_ess50"), "another preset on the same data"
    assert rows["mask_ratio=0.5"] is None
    preset, folder = method_rows.PRESETS["cpu"], tmp_path / "method_cpu"
    folder.mkdir()
    assert ablations.read(tmp_path / "ablations", "ess_fraction", "0.3", 1) is None
    write_results(folder, preset)
    record = ablations.read(tmp_path / "ablations", "ess_fraction", "0.3", 1)
    assert (
        record["row"] == "cross_view_ess30"
        and record["seed"] == 1
        and ablations.COLUMNS.keys() <= record["columns"].keys()
    )
    (tmp_path / "ablations").mkdir()
    ablations.write_table(tmp_path / "ablations", 2)
    table = (tmp_path / "ablations/README.md").read_text().split("## ess_fraction")[1].split("## ")[0]
    number = list(method_rows.ROWS).index("cross_view_ess30")
    assert f"| 0.3 | {number + 0.05:.3f} ± " in table and "| 2 |" in table
    more = number - list(method_rows.ROWS).index("cross_view_ess50")
    assert f" | {more:+.3f}, {more:+.3f} | " in table, "each seed against the same seed of the benchmark's own config"


def test_side_rows_have_fewer_seeds(monkeypatch, tmp_path):
    planned = {}
    monkeypatch.setattr(
        experiment, "run_jobs", lambda _, jobs, *__: planned.update({(job.row, job.seed): None for job in jobs}) or []
    )
    method.benchmark("cpu", list(method_rows.ROWS), None, tmp_path, tmp_path, 1)
    assert list(planned)[:5] == [*((row, 0) for row in method_rows.MAIN), (method_rows.MAIN[0], 1)], "main rows first"
    assert {seed for row, seed in planned if row == "joint"} == {0, 1}
    assert {seed for row, seed in planned if row == "cross_view"} == {0, 1, 2, 3}
    assert ("pixels", 1) not in planned
    planned.clear()
    method.benchmark("cpu", ["joint", "pixels"], 3, tmp_path, tmp_path, 1)
    assert list(planned) == [("pixels", 0), ("joint", 0), ("joint", 1), ("joint", 2)]


def test_a_rehearsal_differs_from_its_preset_in_amounts_alone():
    amounts = {"data", "clips", "curve_from", "seeds", "finetune_steps", "labels_per_class"}
    for name in ("cpu", "gpu"):
        preset, quick = method_rows.PRESETS[name], method_rows.PRESETS[f"{name}_quick"]
        assert {key for key, value in vars(preset).items() if value != getattr(quick, key)} == amounts | {"name"}
        changed = {option.partition("=")[0] for option in set(quick.data.options) - set(preset.data.options)}
        assert changed == {"--takes", "--setups", "--subjects"}
        assert quick.data.short_side == preset.data.short_side
        assert quick.clips * 100 == preset.clips
        assert quick.marks, "the read-outs on the way are rehearsed, too"


def test_the_curve_doubles_from_its_first_point():
    clips = [step * method_rows.CLIPS_PER_STEP for step in method_rows.PRESETS["long"].marks]
    np.testing.assert_allclose(
        clips, [12_500, 25_000, 50_000, 100_000, 200_000, 400_000], atol=method_rows.CLIPS_PER_STEP
    )


def test_presets_share_a_folder_only_where_they_share_the_data():
    data = [preset.data for preset in method_rows.PRESETS.values()]
    assert len({of.name for of in data}) == len({(*of.options, of.short_side) for of in data}) > 1
    for row, folders in (("cross_view", len(data)), ("random", len({of.name for of in data}))):
        jobs = [method.Job(row=row, seed=0, preset=name, folder=pathlib.Path("f")) for name in method_rows.PRESETS]
        assert len({job.run_folder for job in jobs}) == folders


def test_orders_are_judged_by_differences_of_the_same_seed(tmp_path):
    """Seeds differ by more than rows do, but all agree on the difference. An unpaired test would find nothing."""
    for row, better in (("two_views", 0.0), ("cross_view", 0.1)):
        for seed in range(4):
            columns = {"pose": 10.0 * (seed % 3) + better + 0.001 * seed}
            record = {"preset": "cpu", "row": row, "seed": seed, "columns": columns, "curve": {}}
            method_results.result_file(tmp_path, row, seed).write_text(json.dumps(record))
    method_results.result_file(tmp_path, "two_views", 1).unlink()  # the other three seeds still form pairs
    records, _ = method_results.read(tmp_path, method_rows.PRESETS["cpu"])
    found = method_results.verdicts(records)
    assert found["two_views", "cross_view"]["holds"] == ["pose"]
    assert not any(found["cross_view", "cross_view_t60"].values())


def test_the_table_and_the_curve_hold_every_measured_row(tmp_path):
    preset = method_rows.PRESETS["cpu"]
    write_results(tmp_path, preset)
    method_results.write_table(tmp_path, preset)
    method_results.plot(tmp_path, preset)
    table = (tmp_path / "README.md").read_text()
    assert table.count(" ± ") == (len(method_rows.ROWS) - 1) * len(method_results.COLUMNS)
    assert all(description in table for description in method_results.DESCRIPTIONS.values())
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_rates_of_fine_tuning_are_chosen_without_the_test_takes(tmp_path, monkeypatch):
    seen = []

    def record(name, overrides, workdir):
        config = configs.load(str(experiment.CONFIGS / f"{name}.py"), [f"{k}={v}" for k, v in overrides.items()])
        seen.append(
            (workdir.name, config.eval.split, config.data.holdout_fraction, config.optimizer.base_learning_rate)
        )
        return {"metrics": {f"{config.eval.split}/top_1": config.optimizer.base_learning_rate}}

    monkeypatch.setattr(experiment, "run", record)
    job = method.Job(row="random", seed=0, preset="cpu", folder=tmp_path)
    found = method.try_rates((0.04, 0.3), job)
    assert list(found.values()) == 2 * [{"0.04": 0.04, "0.3": 0.3}]
    assert len(set(seen)) == 4
    assert all(split == "held_out" and share > 0 for _, split, share, _ in seen)
    for preset in ("cpu", "long"):
        for row, rates in (
            ("random", method_rows.SCRATCH_RATE),
            ("two_views", method_rows.PRESETS[preset].finetune_rate),
        ):
            for column, rate in zip(found, rates, strict=True):
                method.finetune(dataclasses.replace(job, preset=preset, row=row), column)
                assert seen[-1] == (column, "test", 0.0, rate)

    preset, column = method_rows.PRESETS["cpu"], "fine_tuned_muon"
    write_results(tmp_path, preset)
    method_results.add_rates(tmp_path, preset, "random", {column: {"0.04": 0.5}})
    method_results.add_rates(tmp_path, preset, "random", {column: {"0.32": 0.25}})
    method_results.write_table(tmp_path, preset)
    *_, head, _, line = (tmp_path / "README.md").read_text().splitlines()
    assert head.endswith("| 0.04 | 0.32 |") and line.endswith(f"| {method_results.COLUMNS[column]} | 50.0 | 25.0 |")
    path = method_results.rates_file(tmp_path, "random")
    path.write_text(path.read_text().replace('"cpu"', '"long"'))
    with pytest.raises(ValueError, match="no result of the row random of the preset cpu: it says preset=long"):
        method_results.write_table(tmp_path, preset)


def test_only_the_first_seed_is_fine_tuned_by_adamw(tmp_path, monkeypatch):
    monkeypatch.setattr(method, "frozen", lambda job, step=None: {})
    monkeypatch.setattr(method, "probe", lambda job, protocol, kinds: collections.defaultdict(float))
    monkeypatch.setattr(method, "finetune", lambda job, column: 0.0)
    first, second = (
        method.measure(method.Job(row="random", seed=seed, preset="cpu", folder=tmp_path))["columns"] for seed in (0, 1)
    )
    assert first.keys() - second.keys() == {"fine_tuned", "fine_tuned_fifth"} and second.keys() < first.keys()


def test_what_survives_is_told_seed_by_seed(tmp_path):
    """Rows of write_results differ by 1 for each row between them. Presets without results have no line."""
    for name in ("cpu", "furnished"):
        folder = tmp_path / f"method_{name}"
        folder.mkdir()
        write_results(folder, method_rows.PRESETS[name])
    method_results.result_file(folder, "cross_view", 1).unlink()
    method_results.write_steps(tmp_path)
    page = (tmp_path / "method_steps.md").read_text()
    line, whole = (line for line in page.splitlines() if line.startswith("| furnished"))
    between = [list(method_rows.ROWS).index(row) for row in method_rows.MAIN]
    self_view, cross, motion = np.diff(between)
    assert line.split(" | ")[1:4] == [f"{self_view:+.3f}, {self_view:+.3f}", f"{cross:+.3f}", f"{motion:+.3f}"]
    assert whole.split(" | ")[1] == f"{cross + motion:+.3f} ± 0.000 (2)"
    assert "cpu" in page and "turned" not in page


@pytest.mark.parametrize("preset", method_rows.PRESETS)
def test_rows_are_valid_configs_that_differ(preset, tmp_path, monkeypatch):
    """By the very overrides that the benchmark gives to a run."""
    seen = []

    def record(name, overrides, workdir):
        config = configs.load(str(experiment.CONFIGS / f"{name}.py"), [f"{k}={v}" for k, v in overrides.items()])
        config_checks.validate(config)
        seen.append(config)

    monkeypatch.setattr(experiment, "run", record)
    settings = method_rows.PRESETS[preset]
    settings.data.prepared(tmp_path).mkdir(parents=True)
    (settings.data.prepared(tmp_path) / "prepared.json").write_text("{}")
    pretrained = [row for row in settings.rows if method_rows.ROWS[row] is not None]
    for row in pretrained:
        method.pretrain(method.Job(row=row, seed=1, preset=preset, folder=tmp_path))
    assert len({config.to_json() for config in seen}) == len(pretrained)
    for config in seen:
        assert config.global_batch_size * (1 + config.data.num_source_views) == method_rows.CLIPS_PER_STEP


@pytest.mark.parametrize("name", ablations.NAMES)
def test_variants_of_an_ablation_are_valid_and_differ(name, tmp_path):
    (tmp_path / "prepared.json").write_text("{}")
    seen = set()
    for variant, changes in ABLATIONS[name].variants.items():
        config = configs.load(f"configs/ablations.py:{name}={variant}", [f"data.dir={tmp_path}"])
        config_checks.validate(config)
        assert changes.items() <= dict(configs.flatten(config)).items()
        seen.add(config.to_json())
    assert len(seen) == len(ABLATIONS[name].variants) >= 2


@pytest.mark.parametrize("name", ["benchmark", "probe", "finetune_demo", "ablations:mask_ratio=0.95_0.5"])
def test_a_part_of_an_experiment_runs_the_config_that_it_names(name, tmp_path, monkeypatch):
    calls = 0

    def program(arguments):
        nonlocal calls
        calls += 1
        config = configs.load(arguments.config, arguments.overrides)
        record = {"seed": config.seed, "metrics": {}, "config": json.loads(config.to_json())}
        (tmp_path / "part/metrics.json").write_text(json.dumps(record))

    monkeypatch.setattr("run.run", program)
    assert experiment.run(name, {"seed": 5}, tmp_path / "part")["seed"] == 5
    assert experiment.run(name, {"seed": 5}, tmp_path / "part")["seed"] == 5
    assert calls == 1
    with pytest.raises(
        ValueError, match=r"holds a run of other settings \(seed: 5 there, 6 now\). Give another --folder"
    ):
        experiment.run(name, {"seed": 6}, tmp_path / "part")
    path = tmp_path / "part/metrics.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}))
    assert experiment.run(name, {"seed": 5}, tmp_path / "part")["seconds"] >= 0, "it was killed before it was complete"
    assert calls == 2


def test_read_outs_of_an_encoder_that_was_trained_again_are_repeated(tmp_path, monkeypatch):
    calls = []

    def program(arguments):
        config = configs.load(arguments.config, arguments.overrides)
        calls.append(arguments.workdir)
        record = {"metrics": {}, "config": json.loads(config.to_json())}
        (pathlib.Path(arguments.workdir) / "metrics.json").write_text(json.dumps(record))

    monkeypatch.setattr("run.run", program)
    encoder = tmp_path / "pretraining"
    encoder.mkdir()
    for content, number in (("{}", 1), ("{}", 1), ('{"step": 5}', 2)):
        (encoder / "metrics.json").write_text(content)
        experiment.run("probe", {"init_from": encoder}, tmp_path / "part")
        assert len(calls) == number


def test_a_failing_job_stops_those_that_have_not_begun(tmp_path):
    jobs = [tmp_path / str(number) for number in range(20)]
    (tmp_path / "0").mkdir()  # cannot be written as a file
    with pytest.raises(IsADirectoryError):
        list(experiment.run_jobs(write_slowly, jobs, workers=1, cache=tmp_path / "cache"))
    assert len(list(tmp_path.iterdir())) < len(jobs)


def write_slowly(path):
    path.write_text("done")
    time.sleep(0.2)


@pytest.mark.parametrize("name", ["train_step", "soak", "faults", "method", "ablations", "input_pipeline", "topology"])
def test_committed_results_are_written_only_where_output_says_so(name):
    parser = importlib.import_module(
        "mv2mae_jax.topology.__main__" if name == "topology" else f"benchmarks.{name}"
    ).make_parser()
    default = parser.get_default("output")
    assert default is None or pathlib.Path(default).parts[0] == "benchmark_output"
    assert "--output" in parser.format_help()


def test_a_comparison_leaves_the_committed_results_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in experiment.RESULTS.rglob("*")}
    monkeypatch.setattr(experiment.Generated, "prepare", lambda *_: None)
    monkeypatch.setattr(
        experiment,
        "run_jobs",
        lambda _, jobs, *__: [(job, {"overrides": job.overrides, "columns": {}}) for job in jobs],
    )
    monkeypatch.setattr(ablations, "write_table", lambda results, _: (results / "README.md").touch())
    for options, folder in (
        (["--only=target"], "benchmark_output/results/ablations"),
        (["--only=target", "--output=chosen"], "chosen"),
    ):
        assert ablations.main(options) == 1, "the other ablations are missing"
        assert {path.name for path in (tmp_path / folder).glob("target*")}
    assert before == {path: path.stat().st_mtime_ns for path in experiment.RESULTS.rglob("*")}
    assert ablations.main(["--check", "--output=chosen"]) == 1


@pytest.mark.parametrize("finetune", [False, True])
def test_the_peer_of_a_training_step_has_as_many_parameters(finetune):
    case = train_step.Case(model="Ti", clip=(4, 32, 32), batch=2, precision="float32", finetune=finetune)
    objective = train_step.make_objective(train_step.our_config(case, whole=False))
    parameters = jax.tree.leaves(jax.eval_shape(objective.init, jax.random.key(0)))
    peer = train_step.Implementation(name=train_step.PEER, peer="eager")
    _, _, facts = train_step.make_peer_step(case, train_step.model_sizes(case), peer)
    assert facts["parameters"] == sum(leaf.size for leaf in parameters)
