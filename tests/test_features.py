"""Features of a frozen encoder: their values, their cache, and the probe task from end to end."""

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import socket

import jax
import numpy as np
import pytest

import run as program
from configs import probe_base
from data import pipeline
from data.labelled import LabelledDataset
from data.motion import motion_energy
from mv2mae_jax import config as configs
from mv2mae_jax import features
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import online_probes, probe, retrieval
from mv2mae_jax.features import Features
from mv2mae_jax.models import frozen_encoder, mv2mae, variants
from mv2mae_jax.runs import checkpoint, metrics_file
from tests import faults, tiny

OVERRIDES = (
    "init_from=random",
    "global_batch_size=8",
    "compute_dtype=float32",
    "data.num_frames=4",
    "data.crop_size=(32,32)",
    "data.num_workers=0",
    "model.width=24",
    "model.depth=2",
    "model.num_heads=3",
    "model.tubelet_size=(2,8,8)",
    "probe.learning_rates=(1e-3,1e-2)",
    "probe.weight_decays=(0.0,)",
    "probe.epochs=3",
    "probe.batch_size=16",
    "probe.knn_k=5",
    "eval.clips_per_view=2",
)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def make_config(directory, *overrides):
    return configs.load(probe_base.__file__, (*OVERRIDES, f"data.dir={directory}", *overrides))


@pytest.fixture(scope="module")
def config(synthetic_set):
    return make_config(synthetic_set)


@pytest.fixture(scope="module")
def dataset(config):
    return LabelledDataset.from_config(config)


@pytest.fixture(scope="module")
def model(config):
    return variants.from_config(config)


@pytest.fixture(scope="module")
def params(model):
    return frozen_encoder.init_encoder(model, jax.random.key(0))


def batches_of(video, batch_size=4):
    """Batches of clips, the last one padded with invalid rows."""
    rows, padding = np.arange(100, 100 + len(video)), -len(video) % batch_size
    filled = np.concatenate([video, np.full_like(video[:padding], 99)])
    for start in range(0, len(filled), batch_size):
        part = np.arange(start, start + batch_size)
        yield {
            "video": filled[part],
            "row": rows[part % len(video)].astype(np.int32),
            "label": (part % 3).astype(np.int32),
            "valid": part < len(video),
        }


def random_video(num_clips):
    return np.random.default_rng(0).integers(0, 256, (num_clips, 4, 32, 32, 3)).astype(np.uint8)


def test_features_are_those_of_the_encoder_clip_by_clip(model, params, mesh):
    video = random_video(6)
    tokens = np.zeros((6, model.num_tokens, model.width), np.float16)
    before = jax.tree.map(np.array, params)
    extracted = features.extract(model, params, batches_of(video), mesh, tokens=tokens)
    assert extracted.row.tolist() == list(range(100, 106)) and extracted.label.tolist() == [0, 1, 2, 0, 1, 2]
    everything = np.arange(model.num_tokens)[None]
    for i, clip in enumerate(video):
        alone = np.asarray(model.apply({"params": {"encoder": params}}, clip[None], everything, method="encode"))[0]
        np.testing.assert_allclose(extracted.tokens[i], alone, atol=5e-3)  # float16
        by_time = alone.reshape(2, 16, 24)  # (nt, nh * nw, D)
        np.testing.assert_allclose(extracted.pooled("slices")[i], by_time.mean(1).ravel(), atol=1e-5)
        np.testing.assert_allclose(extracted.pooled("mean")[i], alone.mean(0), atol=1e-5)
        energy = motion_energy(clip, model.tubelet_size).reshape(2, 16)  # (nt, nh * nw)
        moving = [np.average(tokens, axis=0, weights=weights) for tokens, weights in zip(by_time, energy, strict=True)]
        np.testing.assert_allclose(extracted.pooled("motion")[i], np.ravel(moving), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_a_clip_in_which_nothing_moves_is_pooled_evenly(model, params, mesh):
    still = np.broadcast_to(random_video(1)[:, :1], (1, 4, 32, 32, 3))
    extracted = features.extract(model, params, batches_of(still, batch_size=1), mesh)
    np.testing.assert_allclose(extracted.pooled("motion"), extracted.pooled("slices"), atol=1e-5)


def test_pretrained_parameters_of_the_whole_model_hold_the_same_encoder(model):
    """The encoder initialised alone has the structure of the encoder inside the pre-trained model."""
    video, everything = np.zeros((1, 1, 4, 32, 32, 3), np.uint8), np.arange(model.num_tokens)[None]
    mask = mv2mae.Mask(visible=everything[:, :16], masked=everything[:, 16:])
    whole = jax.eval_shape(model.init, jax.random.key(0), video, mask)["params"]["encoder"]
    alone = jax.eval_shape(lambda key: frozen_encoder.init_encoder(model, key), jax.random.key(0))
    assert jax.tree.map(np.shape, whole) == jax.tree.map(np.shape, alone)


def test_the_encoder_is_traced_with_the_mesh(model, params, mesh, monkeypatch):
    """Without the mesh, weights that are sharded over `fsdp` would not be gathered where they are used."""
    seen, encode = [], frozen_encoder.encode

    def watched(*args):
        seen.append(jax.sharding.get_abstract_mesh().shape)
        return encode(*args)

    monkeypatch.setattr(frozen_encoder, "encode", watched)
    features.extract(model.clone(name="watched"), params, batches_of(random_video(4)), mesh)
    assert seen == [mesh.shape]


INTERLEAVED = """
import sys
import jax, numpy as np
from mv2mae_jax import features
from mv2mae_jax.distributed import sharding
from mv2mae_jax.models import frozen_encoder
from tests import test_features

port, process, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, process)
devices = [device for pair in zip(*(jax.local_devices(process_index=i) for i in range(2))) for device in pair]
assert [device.process_index for device in devices] == [0, 1, 0, 1]
mesh = jax.sharding.Mesh(np.array(devices).reshape(4, 1), sharding.BATCH_AXES)
model = test_features.small_model()
params = frozen_encoder.init_encoder(model, jax.random.key(0))
own = slice(4 * process, 4 * process + 4)
batches = test_features.batches_of(test_features.random_video(14), batch_size=8)
batches = ({name: values[own] for name, values in batch.items()} for batch in batches)
tokens = np.zeros((14, model.num_tokens, model.width), np.float16)
found = features.extract(model, jax.device_get(params), batches, mesh, tokens=tokens)
np.savez(f"{output}/{process}.npz", row=found.row, label=found.label, slices=found.slices, tokens=tokens)
"""


def small_model() -> mv2mae.MV2MAE:
    return variants.from_config(make_config("anywhere"))


@pytest.mark.long
def test_features_of_interleaved_processes_are_in_order(model, params, mesh, tmp_path):
    """On a v5e 4x4, JAX's mesh lists devices of one host, then of another, then of the first host again."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    flags = f"{tiny.QUICK_FLAGS} --xla_force_host_platform_device_count=2"
    started = [faults.start("-c", INTERLEAVED, port, process, tmp_path, XLA_FLAGS=flags) for process in range(2)]
    ended = [faults.finish(process) for process in started]
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    tokens = np.zeros((14, model.num_tokens, model.width), np.float16)
    alone = features.extract(model, params, batches_of(random_video(14), batch_size=7), mesh, tokens=tokens)
    for process in range(2):
        found = np.load(tmp_path / f"{process}.npz")
        assert found["row"].tolist() == alone.row.tolist() == list(range(100, 114))
        np.testing.assert_array_equal(found["label"], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
        np.testing.assert_allclose(found["slices"], alone.slices, atol=1e-5)
        np.testing.assert_allclose(found["tokens"], tokens, atol=5e-3)  # float16


def test_clips_of_a_row_are_averaged():
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(5, 2, 3)).astype(np.float32)
    row, label = np.array([4, 4, 2, 2, 4]), np.array([1, 1, 0, 0, 1])
    clips = Features(row=row, label=label, slices=slices, motion=2 * slices)
    per_row = clips.per_row()
    assert per_row.row.tolist() == [2, 4] and per_row.label.tolist() == [0, 1] and per_row.tokens is None
    np.testing.assert_allclose(per_row.slices, [slices[[2, 3]].mean(0), slices[[0, 1, 4]].mean(0)], rtol=1e-5)
    np.testing.assert_allclose(per_row.motion, 2 * per_row.slices, rtol=1e-5)


def test_extraction_refuses_another_number_of_clips(model, params, mesh):
    for room in (5, 7):
        tokens = np.zeros((room, model.num_tokens, model.width), np.float16)
        with pytest.raises(ValueError, match=f"{room} clips"):
            features.extract(model, params, batches_of(random_video(6)), mesh, tokens=tokens)
    with pytest.raises(ValueError, match="'max'"):
        empty = np.zeros((1, 2, 3))
        Features(row=np.zeros(1), label=np.zeros(1), slices=empty, motion=empty).pooled("max")


class Extraction:
    """Makes features and counts how often it is called."""

    def __init__(self):
        self.count = 0

    def __call__(self, folder: str) -> Features:
        self.count += 1
        rng = np.random.default_rng(self.count)
        tokens = np.lib.format.open_memmap(f"{folder}/tokens.npy", mode="w+", dtype=np.float16, shape=(3, 4, 5))
        tokens[:] = rng.normal(size=tokens.shape)
        slices = rng.normal(size=(3, 2, 5)).astype(np.float32)
        label = np.arange(3, dtype=np.int32)
        return Features(row=np.arange(3), label=label, slices=slices, motion=slices + 1, tokens=tokens)


def same(a: Features, b: Features) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("row", "label", "slices", "motion", "tokens")
    )


def test_cached_features_are_read_again(tmp_path):
    make = Extraction()
    first = features.cached(str(tmp_path), {"step": 1}, make)
    assert same(first, features.cached(str(tmp_path), {"step": 1}, make)) and make.count == 1
    assert isinstance(first.tokens, np.memmap)  # tokens stay on disk
    other = features.cached(str(tmp_path), {"step": 2}, make)
    assert make.count == 2 and not same(first, other)
    assert same(first, features.cached(str(tmp_path), {"step": 1}, make)) and make.count == 2


@pytest.mark.parametrize("name", ["slices.npy", "tokens.npy", "features.json"])
@pytest.mark.parametrize("damage", ["end", "bit"])
def test_damaged_caches_are_made_anew(tmp_path, name, damage):
    make = Extraction()
    features.cached(str(tmp_path), {}, make)
    (path,) = tmp_path.glob(f"*/{name}")
    content = path.read_bytes()
    path.write_bytes(content[:-7] if damage == "end" else content[:-1] + bytes([content[-1] ^ 1]))
    again = features.cached(str(tmp_path), {}, make)
    assert make.count == 2
    assert same(again, features.cached(str(tmp_path), {}, make)) and make.count == 2


def test_interrupted_extractions_leave_nothing_to_be_read(tmp_path):
    def broken(folder):
        Extraction()(folder)
        raise KeyboardInterrupt

    for facts in ({}, {"step": 1}):
        with pytest.raises(KeyboardInterrupt):
            features.cached(str(tmp_path), facts, broken)
    make = Extraction()
    features.cached(str(tmp_path), {}, make)
    assert make.count == 1 and len(list(tmp_path.iterdir())) == 1


def test_facts_identify_parameters_rows_and_settings(model, params, dataset):
    def facts(params=params, rows=dataset.test, **more):
        return features.facts_of(model, params, dataset.prepared, dataset.spec, rows, **more)

    assert facts() == facts(jax.tree.map(np.array, params))  # arrays on the device and on the host are equal
    trained = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    assert len({json.dumps(f, sort_keys=True) for f in (facts(), facts(trained), facts(rows=dataset.train))}) == 3
    assert facts(clips_per_view=1) != facts(clips_per_view=2)


def test_another_set_at_the_same_path_is_extracted_anew(shifted_sets, model, params, mesh, tmp_path):
    path, found = tmp_path / "set", []
    for prepared in shifted_sets:
        path.unlink(missing_ok=True)
        path.symlink_to(prepared)
        config = make_config(path, "data.protocol=xview")
        dataset = LabelledDataset.from_config(config)
        found.append(probe._extract(config, dataset, mesh, str(tmp_path), model, params, dataset.train, False))
    assert np.array_equal(found[0].row, found[1].row) and not np.allclose(found[0].slices, found[1].slices)


def test_another_encoder_of_the_same_parameters_is_extracted_anew(model, params, dataset, tmp_path, monkeypatch):
    class OtherEncoder(mv2mae.Encoder):
        pass

    models = tmp_path / "models"
    shutil.copytree(pathlib.Path(mv2mae.__file__).parent, models)
    monkeypatch.setattr(features, "__file__", str(tmp_path / "features" / "__init__.py"))
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "__init__.py").touch()

    def facts(model=model):
        return features.facts_of(model, params, dataset.prepared, dataset.spec, dataset.test)

    before = facts()
    assert facts() == before and facts(model.clone(backbone=OtherEncoder)) != before
    with open(models / "kernels" / "gelu.py", "a") as file:
        file.write("# changed")
    assert facts() != before


@pytest.fixture(scope="module")
def probed(config, dataset, mesh, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("probe"))
    return workdir, probe.run(config, dataset, mesh, workdir)


def test_every_probe_of_a_run_is_measured_and_written(probed, dataset):
    workdir, results = probed
    with open(os.path.join(workdir, "metrics.json")) as file:
        record = json.load(file)
    assert record["metrics"] == results and record["protocol"] == "xsub"
    label = dataset.prepared.views["label"][dataset.test]
    for kind in ("knn", "linear", "attentive"):
        confusion = np.array(record[kind]["confusion_matrix"])
        np.testing.assert_array_equal(confusion.sum(1), np.bincount(label, minlength=dataset.num_classes))
        assert results[f"{kind}/top_1"] == pytest.approx(np.trace(confusion) / len(label))
        for view in np.unique(dataset.prepared.views["view"][dataset.test]):
            assert f"{kind}/top_1/{view}" in results
    assert results["linear/learning_rate"] in (1e-3, 1e-2)
    assert 1 <= results["retrieval/mean_rank"] <= results["retrieval/gallery_size"]


def test_too_few_labels_for_neighbours_or_for_the_choice_of_settings_are_told(synthetic_set, capsys):
    config = make_config(synthetic_set, "data.labels_per_class=1", "data.train_views=('C002',)", "probe.knn_k=20")
    dataset = LabelledDataset.from_config(config)
    probe._warn_of_few_labels(config, dataset)
    said = capsys.readouterr().out
    views = {name: dataset.prepared.views[name][dataset.train].tolist() for name in ("subject", "label")}
    assert f"probe.knn_k = 20, and {len(views['label'])} views train" in said
    assert len(set(views["label"])) == len(views["label"])  # so no view is left of any class that is cut off
    cut_off = int(re.search(r"chosen on (\d+) views", said)[1])
    assert f"and {cut_off} of them are of classes that no view left there shows" in said
    config = make_config(synthetic_set, "probe.kinds=('geometry',)")
    probe._warn_of_few_labels(config, LabelledDataset.from_config(config))
    assert capsys.readouterr().out == ""


def test_a_probe_does_not_replace_the_files_of_another_run(synthetic_set, config, tmp_path):
    arguments = ["--config=configs/probe.py", f"--workdir={tmp_path}", "--config.init_from=random"]
    parsed = program.make_parser().parse_args([*arguments, f"--config.data.dir={synthetic_set}"])
    metrics_file.write(str(tmp_path), config, 0, {}, {})
    probe.check_workdir(config, str(tmp_path))  # its own
    for override, told in (
        ("init_from=runs/b", "holds the probe of init_from = .*, this one has runs/b"),
        ("init_from_step=4", "holds the probe of init_from_step = None, this one has 4"),
    ):
        with pytest.raises(ValueError, match=f"{told}.*give another --workdir"):
            probe.check_workdir(make_config(synthetic_set, override), str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"holds a run that trains.*give another --workdir"):
        program.run(parsed)


def test_a_second_run_reads_the_features_and_finds_the_same(probed, config, dataset, mesh, monkeypatch):
    workdir, results = probed
    monkeypatch.setattr(features, "extract", lambda *args, **kwargs: pytest.fail("extracted again"))
    assert probe.run(config, dataset, mesh, workdir) == results


def test_results_are_written_though_nobody_reads_them(synthetic_set, dataset, mesh, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    results = probe.run(make_config(synthetic_set, "probe.kinds=('knn',)"), dataset, mesh, str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == results


def test_another_encoder_is_extracted_anew(probed, synthetic_set, dataset, mesh, capsys):
    """The results that were there are kept, and a line says what differs."""
    workdir, results = probed
    other = probe.run(make_config(synthetic_set, "seed=1", "probe.kinds=('retrieval',)"), dataset, mesh, workdir)
    assert set(other) == {name for name in results if name.startswith("retrieval")}
    assert other["retrieval/mean_rank"] != results["retrieval/mean_rank"]
    assert "another probe.kinds, seed: renamed to metrics.json.earlier." in " ".join(capsys.readouterr().out.split())
    kept, now = (pathlib.Path(workdir, f"metrics.json{end}").read_text() for end in (".earlier", ""))
    assert (json.loads(kept)["metrics"], json.loads(now)["metrics"]) == (results, other)


def save(workdir, step, encoder, task):
    checkpointer, config = checkpoint.Checkpointer(str(workdir)), make_config("anywhere")
    config.task = task
    params = {"encoder": encoder, "decoder": {"bias": jax.numpy.ones(3)}}
    checkpointer.save(step, {"params": params}, {"config": config.to_json()})
    checkpointer.close()


def test_the_newest_checkpoint_of_a_run_is_probed(synthetic_set, dataset, params, mesh, tmp_path):
    config = make_config(synthetic_set, f"init_from={tmp_path}")
    facts = {}
    for step, scale in ((3, 1.0), (7, 2.0)):
        saved = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        save(tmp_path, step, saved, "pretrain")
        model, found, loaded_step = probe.load_encoder(config, mesh)
        assert loaded_step == step
        jax.tree.map(np.testing.assert_array_equal, found, saved)
        facts[step] = features.facts_of(model, found, dataset.prepared, dataset.spec, dataset.test)
    assert facts[3] != facts[7]  # so features are extracted anew


def test_a_fine_tuned_encoder_has_no_last_norm(synthetic_set, dataset, model, params, mesh, tmp_path):
    without_norm = {name: value for name, value in params.items() if name != "norm"}
    save(tmp_path, 5, without_norm, "finetune")
    tuned, found, _ = probe.load_encoder(make_config(synthetic_set, f"init_from={tmp_path}"), mesh)
    jax.tree.map(np.testing.assert_array_equal, found, without_norm)
    patches = model.patchify(np.zeros((1, *model.clip_size, 3), np.uint8))
    tokens, normed = frozen_encoder.encode(tuned, found, patches), frozen_encoder.encode(model, params, patches)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(centred / tokens.std(axis=-1, keepdims=True), normed, atol=1e-3)


def test_a_model_that_computes_something_else_with_the_same_parameters_is_refused(params, mesh, tmp_path):
    save(tmp_path, 5, params, "pretrain")
    for override, told in (
        ("model.num_heads=2", "num_heads = 3, this model has 2"),
        ("model.num_heads=None", "num_heads = 3, this model has 6"),  # the variant's
        ("model.tubelet_size=(4,4,8)", r"tubelet_size = \(2, 8, 8\), this model has \(4, 4, 8\)"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} was trained with model.{told}"):
            probe.load_encoder(make_config("anywhere", f"init_from={tmp_path}", override), mesh)


def test_a_step_of_what_has_none_and_a_mistyped_baseline_are_refused(mesh, tmp_path):
    (tmp_path / "encoder.pth").touch()
    for encoder in ("random", "pixels", str(tmp_path / "encoder.pth")):
        with pytest.raises(ValueError, match=f"init_from_step = 3, but init_from = '{encoder}' is no run"):
            probe.load_encoder(make_config("anywhere", f"init_from={encoder}", "init_from_step=3"), mesh)
    for encoder, meant in (("Random", "random"), ("pixel", "pixels")):
        with pytest.raises(ValueError, match=f"Did you mean {meant}"):
            probe.load_encoder(make_config("anywhere", f"init_from={encoder}"), mesh)


def test_features_that_are_not_finite_are_refused(synthetic_set, dataset, model, params, mesh, tmp_path, capsys):
    """Probes would rank NaN first, or call a classifier diverged."""
    nan = jax.tree.map(lambda leaf: leaf * np.nan, params)
    save(tmp_path / "run", 5, nan, "pretrain")
    config = make_config(synthetic_set, f"init_from={tmp_path / 'run'}", "probe.kinds=('retrieval',)")
    count, workdir = 2 * len(dataset.test), tmp_path / "probe"
    for _ in range(2):  # extracted, and from the cache
        with pytest.raises(
            ValueError, match=f"features of {count} of {count} clips are not finite.*init_from={tmp_path}"
        ):
            probe.run(config, dataset, mesh, str(workdir))
    assert not (workdir / "metrics.json").exists()
    rows = {"train_rows": dataset.train, "test_rows": dataset.test}
    found = online_probes.measure(model, nan, dataset.prepared, dataset.spec, mesh, global_batch_size=8, **rows)
    assert found == {} and "clips are not finite: the encoder in training" in capsys.readouterr().out
    few = np.zeros((3, 2, 4), np.float32)
    large = Features(row=np.arange(3), label=np.zeros(3), slices=few, motion=few, tokens=few.astype(np.float16))
    features.check_finite(large, "it")
    large.tokens[1, 1, 2] = np.inf  # as 1e5 is in float16
    with pytest.raises(ValueError, match="features of 1 of 3 clips"):
        features.check_finite(large, "it")


def extracted(config, dataset, mesh, workdir, model, params) -> Features:
    return probe._extract(config, dataset, mesh, str(workdir), model, params, dataset.test, False)


def test_cached_features_have_the_labels_of_today(config, dataset, model, params, mesh, tmp_path, monkeypatch):
    extracted(config, dataset, mesh, tmp_path, model, params)
    monkeypatch.setattr(features, "extract", lambda *args, **kwargs: pytest.fail("extracted again"))
    views = dict(dataset.prepared.views) | {"label": dataset.prepared.views["label"] + 1}
    renumbered = dataclasses.replace(dataset, prepared=dataclasses.replace(dataset.prepared, views=views))
    found = extracted(config, renumbered, mesh, tmp_path, model, params)
    np.testing.assert_array_equal(found.label, views["label"][found.row])


def test_a_batch_is_not_larger_than_what_is_extracted(
    synthetic_set, dataset, model, params, mesh, tmp_path, monkeypatch
):
    sizes, batches = [], pipeline.clip_batches

    def watched(*args, global_batch_size, **options):
        sizes.append(global_batch_size)
        return batches(*args, global_batch_size=global_batch_size, **options)

    monkeypatch.setattr(pipeline, "clip_batches", watched)
    for size in (8, 100_000):
        config = make_config(synthetic_set, f"global_batch_size={size}")
        extracted(config, dataset, mesh, tmp_path / str(size), model, params)
    most = 2 * max(len(dataset.train), len(dataset.test))
    assert sizes[0] == 8 and most <= sizes[1] < most + mesh.size and sizes[1] % mesh.size == 0


def test_retrieval_under_a_cross_view_protocol_searches_the_other_cameras(synthetic_set, mesh, tmp_path):
    config = make_config(synthetic_set, "data.protocol=xview", "probe.kinds=('retrieval',)", "eval.clips_per_view=1")
    dataset = LabelledDataset.from_config(config)
    views = dataset.prepared.views
    assert len(np.unique(views["view"][dataset.test])) == 1  # the protocol tests one camera
    results = probe.run(config, dataset, mesh, str(tmp_path))
    assert results["retrieval/gallery_size"] == len(np.unique(views["take"][dataset.test]))


def with_subjects(dataset, subject) -> LabelledDataset:
    views = dict(dataset.prepared.views) | {"subject": subject}
    return dataclasses.replace(dataset, prepared=dataclasses.replace(dataset.prepared, views=views))


def test_validation_groups_are_subjects_where_the_test_has_other_subjects_else_takes(dataset):
    views = dataset.prepared.views
    take = np.unique(views["take"], return_inverse=True)[1]
    is_test = np.isin(np.arange(len(take)), dataset.test)
    for num_subjects, by_subject in ((3, True), (2, False)):
        subject = take % num_subjects + np.where(is_test, 10, 0)  # no subject is in both splits
        groups = probe.validation_groups(with_subjects(dataset, subject))
        expected = subject if by_subject else views["take"]
        np.testing.assert_array_equal(groups, expected[dataset.train])
    for subject in (take % 3, np.full_like(take, -1)):  # subjects are in both splits, or unknown
        groups = probe.validation_groups(with_subjects(dataset, subject))
        np.testing.assert_array_equal(groups, views["take"][dataset.train])


def test_measures_during_pretraining(model, params, dataset, mesh, monkeypatch):
    """Measures are taken of a random encoder, and of planted features that hold the take and the class of a clip."""
    prepared, views = dataset.prepared, dataset.prepared.views
    rows = {"train_rows": dataset.train, "test_rows": dataset.test}
    measured = online_probes.measure(model, params, prepared, dataset.spec, mesh, global_batch_size=8, knn_k=3, **rows)
    assert set(measured) >= {"knn_top_1", "knn_mean_class", "retrieval_recall_1", "retrieval_mean_rank"}
    assert measured["geometry_error_cm"] > 0  # generated takes know their joints
    prepared = dataclasses.replace(prepared, truth=None)

    def planted(model, params, batches, mesh, *, tokens=None):
        row = np.concatenate([batch["row"][batch["valid"]] for batch in batches]).astype(np.int64)
        label = views["label"][row]
        take = np.unique(views["take"], return_inverse=True)[1][row]
        content = np.concatenate([5 * np.eye(200)[label], np.eye(200)[take]], axis=1)
        slices = content[:, None].astype(np.float32)
        return Features(row=row, label=label, slices=slices, motion=slices)

    monkeypatch.setattr(features, "extract", planted)
    measured = online_probes.measure(model, params, prepared, dataset.spec, mesh, global_batch_size=8, knn_k=1, **rows)
    known = np.isin(views["label"][dataset.test], views["label"][dataset.train])
    assert measured["knn_top_1"] >= known.mean() and measured["retrieval_recall_1"] == 1
    # Measures that need labels, or two cameras, are left out where there are none.
    without = dict(prepared.views) | {"label": np.full_like(views["label"], -1)}
    unlabelled = dataclasses.replace(prepared, views=without)
    measured = online_probes.measure(
        model, params, unlabelled, dataset.spec, mesh, global_batch_size=8, knn_k=1, **rows
    )
    assert set(measured) == {f"retrieval_{name}" for name in ("recall_1", "recall_5", "mean_rank", "gallery_size")}
    one_camera = {name: part[views["view"][part] == "C001"] for name, part in rows.items()}
    measured = online_probes.measure(
        model, params, prepared, dataset.spec, mesh, global_batch_size=8, knn_k=1, **one_camera
    )
    assert set(measured) == {"knn_top_1", "knn_mean_class"}
    assert not retrieval.camera_pairs(*(views[name][one_camera["test_rows"]] for name in ("take", "view")))


def test_a_probe_of_a_missing_run_is_refused(synthetic_set, dataset, mesh, tmp_path):
    missing = make_config(synthetic_set, "init_from=/nowhere/at/all")
    with pytest.raises(ValueError, match="nowhere/at/all holds no checkpoint"):
        probe.run(missing, dataset, mesh, str(tmp_path))
