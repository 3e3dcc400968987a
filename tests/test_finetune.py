"""Fine-tuning: mixing, the loss, initial parameters, the evaluation, and whole runs."""

import dataclasses
import functools
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from data import pipeline
from data.labelled import LabelledDataset
from data.store import takes
from mv2mae_jax import initial_state, optim, train
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import classification, while_training
from mv2mae_jax.models import layers
from mv2mae_jax.monitoring import metrics
from mv2mae_jax.objectives import finetune
from mv2mae_jax.objectives.finetune import Finetune
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.runs import checkpoint, metrics_file
from mv2mae_jax.state import TrainState
from mv2mae_jax.torch_weights import names
from tests import test_datasets, tiny
from tests.test_datasets import pkummd, pkummd_prepared  # noqa: F401, fixtures


def make_task(directory, *overrides: str):
    """(config, data set, task) of the tiny run on a prepared set."""
    config = tiny.make_finetune_config(f"data.dir={directory}", *overrides)
    dataset = LabelledDataset.from_config(config)
    return config, dataset, Finetune.from_config(config, dataset)


def run(workdir, directory, *overrides: str) -> dict[str, float]:
    config = tiny.make_finetune_config(f"data.dir={directory}", *overrides)
    return train.train(config, LabelledDataset.from_config(config), sharding.make_mesh(), str(workdir))


def start(directory, workdir, *overrides: str) -> TrainState:
    """The state that a run with these settings begins with."""
    config, _, task = make_task(directory, *overrides)
    optimizer = optim.make_optimizer(config.optimizer, optim.Schedule.from_config(config, steps_per_epoch=1.0))
    checkpointer = checkpoint.Checkpointer(str(workdir))
    state, _ = initial_state.init_state(
        config, task, optimizer, sharding.make_mesh(), jax.random.key(0), checkpointer, ()
    )
    checkpointer.close()
    return state


def final_state(workdir) -> TrainState:
    with checkpoint.ocp.CheckpointManager(str(workdir / "checkpoints")) as manager:
        args = checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.StandardRestore())
        return manager.restore(manager.latest_step(), args=args)["state"]


def history(workdir) -> list[dict[str, float]]:
    """Everything that was reported, without durations."""
    rows = [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("perf/", "data/"))} for row in rows]


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def random_batch(task, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (size, *task.model.clip_size, 3)).astype(np.uint8)
    return {"video": video, "label": rng.permutation(task.dataset.num_classes)[:size].astype(np.int32)}


# Mixing


SAMPLES, DRAWS = 6, 4000
BOTH = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=0.7, cutmix_probability=0.5)
ALWAYS = BOTH | {"mix_probability": 1.0}
MIXUP, CUTMIX = ALWAYS | {"cutmix_alpha": 0.0}, ALWAYS | {"mixup_alpha": 0.0}


@functools.cache
def mixed(**options: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(clips, their mixtures [DRAWS, ...], targets [DRAWS, ...]) of samples of six different classes."""
    video = np.random.default_rng(0).integers(0, 256, (SAMPLES, 2, 8, 8, 3)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draw = jax.jit(jax.vmap(functools.partial(finetune.mix, video=video, target=jnp.eye(SAMPLES), **options)))
    clips, targets = draw(keys)
    return video, np.asarray(clips), np.asarray(targets)


def own_shares(targets: np.ndarray) -> np.ndarray:
    """float[DRAWS]: the samples' share of their own class. Checks that the mixed-in sample's class has the rest."""
    shares = targets[:, 0, 0]
    expected = shares[:, None, None] * np.eye(SAMPLES) + (1 - shares)[:, None, None] * np.eye(SAMPLES)[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    return shares


@pytest.mark.parametrize("options", [BOTH, MIXUP, CUTMIX], ids=["both", "mixup", "cutmix"])
def test_mixed_targets_sum_to_one(options):
    _, _, targets = mixed(**options)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    assert (targets >= 0).all()


def test_mixup_blends_pixels_by_the_share_of_the_target():
    video, clips, targets = mixed(**MIXUP)
    for clip, share in zip(clips[:20], own_shares(targets).astype(np.float64)[:20], strict=True):
        blended = share * video + (1 - share) * video[::-1]
        # Pixels are rounded to the nearest. Near a half, float32 may round either way.
        assert np.abs(clip - blended).max() <= 0.5 + 1e-3


def test_cutmix_targets_follow_the_area_that_is_really_covered():
    """All clips and frames of a batch share one box. Some boxes are cut by the frame's border."""
    video, clips, targets = mixed(**CUTMIX)
    cut_by_the_border = 0
    for clip, share in zip(clips[:60], own_shares(targets)[:60], strict=True):
        changed = (clip != video).any(axis=(0, 1, 4))  # (H, W)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = np.zeros_like(changed)
        if len(rows):
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
            cut_by_the_border += 0 in (rows[0], columns[0]) and len(rows) != len(columns)
        np.testing.assert_array_equal(clip, np.where(box[:, :, None], video[::-1], video))
        assert share == pytest.approx(1 - box.mean(), abs=1e-6)
    assert cut_by_the_border > 5


def test_shares_follow_their_distributions():
    _, _, targets = mixed(**MIXUP)
    shares = own_shares(targets)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)
    # The border cuts boxes, so their mean area is compared with that of boxes drawn by NumPy.
    _, _, targets = mixed(**CUTMIX)
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(1, 1, DRAWS))
    centre = rng.random((2, DRAWS))
    covered = np.clip(centre + side / 2, 0, 1) - np.clip(centre - side / 2, 0, 1)
    assert 1 - own_shares(targets).mean() == pytest.approx(covered.prod(axis=0).mean(), abs=0.02)


@pytest.mark.parametrize(("mix_probability", "cutmix_probability"), [(0.7, 0.5), (1.0, 0.2)])
def test_mixup_and_cutmix_occur_with_their_probabilities(mix_probability, cutmix_probability):
    options = BOTH | {"mix_probability": mix_probability, "cutmix_probability": cutmix_probability}
    video, clips, _ = mixed(**options)
    unchanged = (clips == video).all(axis=(1, 2, 3, 4, 5))
    # CutMix takes every pixel from one of the two samples.
    either = ((clips == video) | (clips == video[::-1])).all(axis=(1, 2, 3, 4, 5)) & ~unchanged
    blended = ~either & ~unchanged
    assert blended.mean() == pytest.approx(mix_probability * (1 - cutmix_probability), abs=0.04)
    # The smallest boxes cover no pixel, so that CutMix changes nothing in a few steps.
    assert 0.85 * mix_probability * cutmix_probability < either.mean() + 0.03
    assert either.mean() < mix_probability * cutmix_probability + 0.03


@pytest.mark.parametrize(
    "off", [dict(mix_probability=0.0), dict(mixup_alpha=0.0, cutmix_alpha=0.0)], ids=["probability", "alphas"]
)
def test_nothing_is_mixed_when_it_is_off(off):
    video, clips, targets = mixed(**BOTH | off)
    np.testing.assert_array_equal(clips, np.broadcast_to(video, clips.shape))
    np.testing.assert_array_equal(targets, np.broadcast_to(np.eye(SAMPLES), targets.shape))


def test_label_smoothing_agrees_with_optax():
    label = np.array([0, 3, 3, 1])
    for smoothing in (0.0, 0.1, 0.5):
        expected = optax.smooth_labels(jax.nn.one_hot(label, 5), smoothing)
        smoothed = finetune.smoothed_one_hot(label, 5, smoothing)
        np.testing.assert_allclose(smoothed, expected, atol=1e-7)
        by_hand = np.where(np.arange(5) == np.asarray(label)[:, None], 1 - 0.8 * smoothing, 0.2 * smoothing)
        np.testing.assert_allclose(smoothed, by_hand, atol=1e-7)


# The loss and its gradients


@pytest.fixture(scope="module")
def make_inputs(synthetic_set):
    """The mixed inputs of a loss, by key, of one batch of eight clips."""
    _, _, task = make_task(synthetic_set)
    return functools.partial(jax.jit(task.make_inputs), random_batch(task, 8))


def random_params(task, seed=0):
    return tiny.random_like(jax.eval_shape(task.init, jax.random.key(0)), seed)


def test_randomness_is_a_function_of_the_key(make_inputs):
    first, same, other = (make_inputs(jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_allclose(first["target"].sum(-1), 1, atol=1e-6)
    assert first["video"].dtype == jnp.uint8
    np.testing.assert_array_equal(first["video"], same["video"])
    keys = {name: jax.random.key_data(drawn["drop_path_key"]) for name, drawn in (("a", first), ("b", other))}
    assert not np.array_equal(first["target"], other["target"])
    assert not np.array_equal(keys["a"], keys["b"])
    assert len(np.unique(keys["a"], axis=0)) == 8


def test_the_loss_is_the_cross_entropy_with_the_mixed_targets(synthetic_set, make_inputs):
    _, _, task = make_task(synthetic_set, "model.drop_path=0.0")
    params, inputs = random_params(task), make_inputs(jax.random.key(1))
    logits = np.asarray(jax.jit(task.model.apply)({"params": params}, inputs["video"]), np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.asarray(inputs["target"], np.float64)
    loss, measured = jax.jit(task.loss)(params, inputs)
    assert float(loss) == pytest.approx(-(target * log_probability).sum() / 8, rel=1e-5)
    assert float(measured["accuracy"]) == np.mean(logits.argmax(-1) == target.argmax(-1))


def test_parts_of_a_mixed_batch_equal_the_whole_without_drop_path(synthetic_set, make_inputs):
    _, _, task = make_task(synthetic_set, "model.drop_path=0.0")
    params, inputs = random_params(task), make_inputs(jax.random.key(1))
    accumulate = jax.jit(train.accumulate_gradients, static_argnums=(0, 3))
    whole, in_parts = (accumulate(task.loss, params, inputs, parts) for parts in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole, in_parts)


def test_every_part_drops_paths_anew(synthetic_set, make_inputs):
    """Accumulation over two parts gives the mean of two gradients, each with the key of its own first row."""
    _, _, task = make_task(synthetic_set, "model.drop_path=0.5")
    params, inputs = random_params(task), make_inputs(jax.random.key(1))
    gradient = jax.jit(jax.grad(task.loss, has_aux=True))
    rows = [jax.tree.map(lambda array, part=part: array[part::2], inputs) for part in range(2)]
    by_hand = jax.tree.map(lambda a, b: (a + b) / 2, *(gradient(params, part) for part in rows))
    accumulated = jax.jit(train.accumulate_gradients, static_argnums=(0, 3))(task.loss, params, inputs, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), accumulated, by_hand)
    one_key = {**rows[1], "drop_path_key": rows[0]["drop_path_key"]}
    assert float(gradient(params, one_key)[1]["loss"]) != float(gradient(params, rows[1])[1]["loss"])


# Where a run starts


@functools.cache
def pretrained_params():
    """Random parameters of a pre-training run with scanned layers, drawn by NumPy to avoid compiling."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(Pretrain.from_config(tiny.make_config()).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype), shapes)


def save_pretrained(workdir, *, scan_layers: bool, with_ema: bool):
    """Saves a pre-training run whose average differs from its last parameters. Returns the encoder to start from."""
    params = pretrained_params() if scan_layers else layers.unstack_blocks(pretrained_params())
    average = jax.tree.map(lambda leaf: 0.5 * leaf, params) if with_ema else None
    state = tiny.save_run(workdir, params, ema_params=average)
    encoder = dict(state.eval_params["encoder"])
    del encoder["norm"]  # a classifier has its own
    return encoder


def says_what_was_taken(output: str, params, source) -> bool:
    unrolled = params if "0" in params["encoder"]["blocks"] else layers.unstack_blocks(params)
    taken, all_of_them = len(jax.tree.leaves(unrolled["encoder"])), len(jax.tree.leaves(unrolled))
    said = f"{taken} of {all_of_them} parameters taken from {source}. Initialised afresh: fc_norm, head.\n"
    return said in output


@pytest.mark.parametrize(
    ("saved_scanned", "scanned", "with_ema"),
    [(True, True, True), (True, False, False), (False, True, True), (False, False, False)],
)
def test_the_encoder_begins_as_pre_trained(synthetic_set, tmp_path, saved_scanned, scanned, with_ema, capsys):
    """Clips may have another size than in pre-training. Only the encoder is taken, of the average if there is one."""
    encoder = save_pretrained(tmp_path / "pretrained", scan_layers=saved_scanned, with_ema=with_ema)
    other = (f"model.scan_layers={scanned}", "data.num_frames=8", "data.crop_size=(40,24)", "optimizer.ema_decay=0.9")
    state = start(synthetic_set, tmp_path / "run", *other, f"init_from={tmp_path / 'pretrained'}")
    assert says_what_was_taken(capsys.readouterr().out, state.params, tmp_path / "pretrained")
    scratch = start(synthetic_set, tmp_path / "scratch", *other)
    if saved_scanned != scanned:
        encoder = layers.stack_blocks(encoder) if scanned else layers.unstack_blocks(encoder)
    assert_identical(state.params["encoder"], encoder)
    assert_identical(state.ema_params, state.params)
    for part in ("fc_norm", "head"):
        assert_identical(state.params[part], scratch.params[part])
    kernels = [tree["encoder"]["patch_embed"]["proj"]["kernel"] for tree in (state.params, scratch.params)]
    assert not np.array_equal(*kernels)
    assert int(state.step) == 0


@pytest.mark.parametrize("scanned", [True, False])
def test_the_encoder_of_a_hugging_face_folder_begins_as_it_is_there(synthetic_set, tmp_path, scanned, capsys):
    unrolled = layers.unstack_blocks(pretrained_params())
    tubelet_size = tuple(tiny.make_config().model.tubelet_size)
    state = names.to_hugging_face(names.to_videomae(jax.device_get(unrolled), tubelet_size))
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3}')

    config, _, task = make_task(synthetic_set, f"init_from={tmp_path}", f"model.scan_layers={scanned}")
    params = jax.jit(task.init)(jax.random.key(0))
    loaded = initial_state.load_params(config, params, params, task.model)
    assert says_what_was_taken(capsys.readouterr().out, params, tmp_path)
    expected = (pretrained_params() if scanned else unrolled)["encoder"]
    jax.tree.map(np.testing.assert_array_equal, loaded["encoder"], {k: expected[k] for k in loaded["encoder"]})
    jax.tree.map(np.testing.assert_array_equal, loaded["head"], params["head"])
    if scanned:
        return
    config.init_from_step = 3
    with pytest.raises(ValueError, match=f"init_from_step = 3, but init_from = '{tmp_path}' is no run"):
        initial_state.load_params(config, params, params, task.model)
    config, _, task = make_task(synthetic_set, f"init_from={tmp_path}", "model.depth=1")
    params = jax.jit(task.init)(jax.random.key(0))
    with pytest.raises(ValueError, match=r"does not fit.*\n  encoder/blocks/1: in the file, beyond the 1 here"):
        initial_state.load_params(config, params, params, task.model)


def test_a_start_that_means_something_else_is_refused(synthetic_set, tmp_path):
    save_pretrained(tmp_path / "run", scan_layers=True, with_ema=False)
    (tmp_path / "metrics.json").write_text('{"metrics": {}}')
    for overrides, told in (
        ((f"init_from={tmp_path / 'run'}", "model.num_heads=2"), "trained with model.num_heads = 3, this model has 2"),
        (
            (f"init_from={tmp_path / 'run'}", "model.tubelet_size=(4,8,4)"),
            r"tubelet_size = \(2, 8, 8\), this model has",
        ),
        (
            (f"init_from={tmp_path / 'metrics.json'}",),
            "metrics.json is a file, and no PyTorch checkpoint. Name a run's",
        ),
        (("init_from_step=3",), "init_from_step = 3, but init_from = '' is no run"),
    ):
        with pytest.raises(ValueError, match=told):
            start(synthetic_set, tmp_path / "new", *overrides)


def test_an_encoder_that_does_not_fit_is_refused(synthetic_set, tmp_path):
    save_pretrained(tmp_path / "pretrained", scan_layers=True, with_ema=False)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*patch_embed/proj/kernel: saved \(384, 24\), wanted"):
        start(synthetic_set, tmp_path / "run", "model.width=48", f"init_from={tmp_path / 'pretrained'}")


# Whole runs


@pytest.fixture(scope="module")
def finished(synthetic_set, tmp_path_factory):
    """A run with every part of the recipe on."""
    workdir = tmp_path_factory.mktemp("finished")
    options = ("optimizer.ema_decay=0.9", "optimizer.accumulation_steps=2", "model.head_init_scale=1.0")
    options += ("eval.clips_per_view=1", "data.holdout_fraction=0.2")
    return workdir, options, run(workdir, synthetic_set, *options)


def test_a_test_averages_the_probabilities_of_all_clips_and_crops(synthetic_set, tmp_path):
    """The evaluation agrees with softmax, the mean over a view's clips, and counting, computed clip by clip here."""
    config, dataset, task = make_task(synthetic_set, "model.head_init_scale=100.0", "eval.batch_size=50")
    views, num_classes = dataset.prepared.views, dataset.num_classes
    params = jax.jit(task.init)(jax.random.key(0))
    clips = pipeline.clip_batches(
        dataset.prepared, dataset.spec, dataset.test, global_batch_size=6, clips_per_view=2, crops_per_clip=3
    )
    rows, videos = zip(*[(batch["row"], batch["video"]) for batch in clips], strict=True)
    rows, videos = np.concatenate(rows), np.concatenate(videos)
    # The clips' common part would make a random head predict one class for all. It is subtracted.
    kernel = params["head"]["kernel"]
    apply = jax.jit(task.model.apply)
    shared = np.linalg.lstsq(kernel.T, np.asarray(apply({"params": params}, videos)).mean(axis=0), rcond=None)[0]
    params["fc_norm"]["bias"] = jnp.asarray(-shared, jnp.float32)
    logits = np.asarray(apply({"params": params}, videos))

    hits, top_5_hits, confusion = {}, [], np.zeros((num_classes, num_classes), int)
    for row in dataset.test.tolist():
        odds = [[math.exp(logit) for logit in clip] for clip in logits[rows == row].tolist()]
        assert len(odds) == 6  # two clips in three crops
        mean = [sum(clip[k] / sum(clip) for clip in odds) / 6 for k in range(num_classes)]
        ranked, label = sorted(range(num_classes), key=lambda k: -mean[k]), int(views["label"][row])
        hits[row] = ranked[0] == label
        top_5_hits.append(label in ranked[:5])
        confusion[label, ranked[0]] += 1
    assert np.count_nonzero(confusion.sum(axis=0)) > 3  # the classifier does tell clips apart
    labels = {row: views["label"][row] for row in hits}
    by_class = [np.mean([hits[row] for row in hits if labels[row] == k]) for k in set(labels.values())]
    expected = {"top_1": np.mean([*hits.values()]), "top_5": np.mean(top_5_hits), "mean_class": np.mean(by_class)}
    for camera in ("C001", "C002", "C003"):
        expected[f"top_1/{camera}"] = np.mean([hits[row] for row in hits if views["view"][row] == camera])

    untrained = jax.tree.map(jnp.zeros_like, params)
    state = TrainState(step=jnp.int32(1), params=untrained, opt_state=(), ema_params=params)  # the average is tested
    evaluate = while_training.make_evaluation(config, task, sharding.make_mesh(), jax.random.key(0), str(tmp_path))
    reporter = metrics.Reporter(str(tmp_path), first_step=0, total_steps=1, tensorboard=False)
    results, tables = evaluate(state, 1, reporter)
    assert results == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    assert tables == {"class_names": list(dataset.class_names), "confusion_matrix": confusion.tolist()}


def test_the_record_of_a_run_says_what_was_run(finished):
    workdir, _, results = finished
    record = json.loads((workdir / "metrics.json").read_text())
    assert record["metrics"] == results
    facts = {key: record[key] for key in ("step", "seed", "protocol")}
    assert facts == {"step": 6, "seed": 0, "protocol": "xsub"}
    assert record["git_revision"] == metrics_file.git_revision()
    assert record["config"]["optimizer"]["ema_decay"] == 0.9


def test_a_run_stopped_before_its_results_were_written_writes_them(finished, synthetic_set):
    workdir, options, _ = finished
    path = workdir / "metrics.json"
    before = json.loads(path.read_text())
    path.unlink()
    run(workdir, synthetic_set, *options)
    assert json.loads(path.read_text())["metrics"] == before["metrics"]


def test_held_out_takes_are_measured_where_asked(synthetic_set):
    options = ("data.holdout_fraction=0.2", "eval.split=held_out", "eval.clips_per_view=1", "eval.crops_per_clip=1")
    config, dataset, task = make_task(synthetic_set, *options)
    assert classification.area(task, config) == "held_out"
    batches = list(classification.batches(task, config))
    rows, valid = (np.concatenate([batch[key] for batch in batches]) for key in ("row", "valid"))
    np.testing.assert_array_equal(rows[valid], dataset.held_out)
    assert 0 < len(dataset.held_out) < len(rows)  # the last batch is padded


def test_an_interrupted_run_equals_an_uninterrupted_one(finished, synthetic_set, tmp_path, monkeypatch):
    """Both end equal bit for bit, with mixing, drop path, augmentation, accumulation and averaged parameters."""
    whole, options, results = finished
    labelled_batches = pipeline.labelled_batches

    class Interrupted(Exception):
        pass

    def failing(*args, **kwargs):
        for number, batch in enumerate(labelled_batches(*args, **kwargs)):
            if number == 3:
                while not (tmp_path / "checkpoints" / "2").is_dir():
                    time.sleep(0.05)  # saves are asynchronous
                raise Interrupted
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "labelled_batches", failing)
        with pytest.raises(Interrupted):
            run(tmp_path, synthetic_set, *options)
    checkpointer = checkpoint.Checkpointer(str(tmp_path))
    assert checkpointer.latest_step() == 2
    checkpointer.close()
    assert run(tmp_path, synthetic_set, *options) == results
    assert_identical(final_state(tmp_path), final_state(whole))
    assert history(tmp_path) == history(whole)
    assert [row["step"] for row in history(whole)] == [2, 4, 6, 6]


def test_a_workdir_with_another_head_is_refused(finished, synthetic_set):
    workdir, options, _ = finished
    config = tiny.make_finetune_config(f"data.dir={synthetic_set}", *options)
    dataset = LabelledDataset.from_config(config)
    names = (*dataset.class_names[:-1], "something else")
    other = dataclasses.replace(dataset.prepared, name="another_set", class_names=names)
    dataset = dataclasses.replace(dataset, prepared=other, class_names=names)
    with pytest.raises(ValueError, match=r"head for the 16 classes of synthetic \(.* and 13 more\).*16 .* another_set"):
        train.train(config, dataset, sharding.make_mesh(), str(workdir))
    other = dataclasses.replace(other, class_names=("sit", "wave"))
    with pytest.raises(ValueError, match=r"holds the 2 classes of another_set \(sit, wave\)\. Choose"):
        train.train(config, dataclasses.replace(dataset, prepared=other), sharding.make_mesh(), str(workdir))


def test_a_workdir_of_another_task_is_refused(synthetic_set, tmp_path):
    save_pretrained(tmp_path, scan_layers=True, with_ema=False)
    with pytest.raises(ValueError, match=r"holds a run of task 'pretrain', not 'finetune'.*init_from"):
        start(synthetic_set, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.labels_per_class=50", "has only . take"),
        ("data.protocol=xset", "synthetic has no protocol 'xset'"),  # only NTU RGB+D 120 has it
        ("data.train_views=('C004',)", "views of the training split are C001, C002, C003"),
        ("augment.flip=0.5", "a mirror image changes the class"),
        ("eval.split=held_out", "hold out no labelled view"),
    ],
)
def test_what_the_data_cannot_give_is_refused(synthetic_set, override, message):
    with pytest.raises(ValueError, match=message):
        make_task(synthetic_set, override)


def test_a_few_clips_are_learnt_by_heart(synthetic_set):
    """150 steps without augmentation and regularisation fit nearly all of twelve clips of one camera."""
    off = ("augment.randaugment_num_ops=0", "augment.random_erasing=0.0", "mix.mix_probability=0.0")
    off += ("loss.label_smoothing=0.0", "model.drop_path=0.0", "optimizer.layer_decay=1.0", "data.repeats=1")
    _, _, task = make_task(synthetic_set, *off, "data.train_views=('C001',)")
    batch = next(task.train_batches(seed=0, start_step=0, global_batch_size=12))
    assert len(np.unique(batch["row"])) == 12
    schedule = optim.Schedule(peak_learning_rate=0.01, final_learning_rate=0.0, warmup_steps=10, total_steps=150)
    optimizer = optim.make_optimizer(tiny.make_finetune_config(*off).optimizer, schedule)
    state = TrainState.create(jax.jit(task.init)(jax.random.key(0)), optimizer, with_ema=False)
    train_step = jax.jit(train.make_train_step(task, optimizer, schedule, jax.random.key(1)))
    accuracies = []
    for _ in range(150):
        state, measured = train_step(state, {key: batch[key] for key in ("video", "label")})
        accuracies.append(float(measured["accuracy"]))
    assert accuracies[0] < 0.5 and accuracies[-1] > 0.9


# Every data set


@pytest.fixture
def miniature(request, tmp_path):
    """(prepared folder, protocol) of a data set with its real file names."""
    name = request.param
    if name == "pkummd":
        return request.getfixturevalue("pkummd_prepared"), "xsub"
    paths, codec, splits, _ = test_datasets.MINIATURES[name]
    raw = test_datasets.write(tmp_path / "raw", paths, codec)
    if name == "rocog":
        (raw / "annotations").mkdir()
        for list_name, text in test_datasets.ROCOG_LISTS.items():
            (raw / "annotations" / list_name).write_text(text)
    assert test_datasets.run(name, raw, tmp_path / "prepared") == 0
    return tmp_path / "prepared", next(iter(splits))


@pytest.mark.parametrize(
    "miniature",
    [
        "ntu60",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("nucla", "ntu120", "etri", "rocog", "pkummd")),
    ],
    indirect=True,
)
def test_every_data_set_can_be_fine_tuned_on(miniature, tmp_path):
    """Two steps from a pre-trained encoder: the head has the set's classes, and every test view is counted."""
    directory, protocol = miniature
    save_pretrained(tmp_path / "pretrained", scan_layers=True, with_ema=False)
    options = (f"data.protocol={protocol}", "data.frame_stride=2", f"init_from={tmp_path / 'pretrained'}")
    results = run(tmp_path / "run", directory, *options, "total_steps=2", "eval.clips_per_view=1")
    prepared = takes.open_prepared(directory)
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    confusion, tested = np.array(record["confusion_matrix"]), prepared.splits(protocol) == "test"
    assert confusion.shape == (len(prepared.class_names),) * 2
    np.testing.assert_array_equal(
        confusion.sum(axis=1), np.bincount(prepared.views["label"][tested], minlength=len(confusion))
    )
    assert results["test/top_1"] == np.trace(confusion) / tested.sum()
    cameras = {key.removeprefix("test/top_1/") for key in results if key.startswith("test/top_1/")}
    assert cameras == set(prepared.views["view"][tested].tolist())
    assert record["protocol"] == protocol
