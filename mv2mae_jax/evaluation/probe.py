"""Probes of a frozen encoder: features are extracted once, then read by classes, across cameras, and for 3D pose."""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

from console import progress
from console.command import did_you_mean, nearest
from console.errors import UserError
from data import pipeline
from data.labelled import LabelledDataset
from mv2mae_jax import features, inference
from mv2mae_jax.distributed import sharding
from mv2mae_jax.evaluation import accuracy, attentive, geometry, probes, regression, retrieval
from mv2mae_jax.features import Features
from mv2mae_jax.models import frozen_encoder, mv2mae, variants
from mv2mae_jax.monitoring import event_files, log_files, metrics
from mv2mae_jax.runs import checkpoint, metrics_file, run_record, side_files, starts_file
from mv2mae_jax.torch_weights import importer

CLASSIFIERS: tuple[str, ...] = ("knn", "linear", "ridge", "attentive")
BASELINES: tuple[str, ...] = ("random", "pixels")  # values of `init_from` that are no run and no file


def run(
    config: config_dict.ConfigDict, dataset: LabelledDataset, mesh: jax.sharding.Mesh, workdir: str
) -> dict[str, float]:
    """Measures the encoder `config.init_from` by each of `config.probe.kinds` and writes WORKDIR/metrics.json.

    Probes train on `dataset.train` and are tested on `dataset.test`; held-out takes are not used. Retrieval trains
    nothing, so it searches all views of the tested takes, even those that a cross-view protocol trains on. Pooled
    features of several clips of a view are averaged; the attentive probe trains on every clip and averages
    probabilities. Features are kept in WORKDIR/features.

    Returns:
      `<kind>/<metric>`: see accuracy.py and retrieval.py; for trained probes also the chosen setting.

    Raises:
      ValueError: the encoder does not fit, the data cannot answer what is asked, or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError(f"Probes run in one process (with all its devices), not in {jax.process_count()}.")
    kinds = config.probe.kinds
    searched = _searched_rows(dataset) if "retrieval" in kinds else np.array([], np.int64)
    model, params, step = load_encoder(config, mesh)
    if is_run(config.init_from):
        run_record.compare_data(config.init_from, step, dataset)
    with log_files.optional(os.path.join(workdir, starts_file.STARTS_FILE)):
        starts_file.record_start(workdir, config, _facts(config, dataset, mesh))
    extract = functools.partial(_extract, config, dataset, mesh, workdir, model, params)
    with_tokens = bool({"ridge", "attentive", "geometry", "motion"} & set(kinds))

    results: dict[str, float] = {}
    tables: dict[str, Any] = {"class_names": list(dataset.class_names)}
    test = extract(dataset.test, with_tokens)
    if set(kinds) != {"retrieval"}:
        _warn_of_few_labels(config, dataset)
        train_features = extract(dataset.train, with_tokens)
        results |= _geometry(config, dataset, model, train_features, test)
        for kind in (kind for kind in CLASSIFIERS if kind in kinds):
            scores, chosen, validation = _classify(kind, config, dataset, model, train_features, test)
            label, view = (dataset.prepared.views[name][dataset.test] for name in ("label", "view"))
            measured = accuracy.summarize(scores, label, view) | chosen
            results |= {f"{kind}/{name}": value for name, value in measured.items()}
            confusion = accuracy.confusion_matrix(scores.argmax(axis=1), label, dataset.num_classes)
            tables[kind] = {"confusion_matrix": confusion.tolist(), **validation}
    if len(searched):
        others = np.setdiff1d(searched, dataset.test)
        parts = [test.per_row()] + ([extract(others, False).per_row()] if len(others) else [])
        rows = np.concatenate([part.row for part in parts])
        pooled = np.concatenate([part.pooled(config.probe.pooling) for part in parts])
        if config.probe.standardize:
            mean, std = probes.statistics(pooled)
            pooled = (pooled - mean) / std
        found = retrieval.measure(pooled, *(dataset.prepared.views[name][rows] for name in ("take", "view", "label")))
        results |= {f"retrieval/{name}": value for name, value in found.items()}
    for name, value in results.items():
        progress.say(f"{name:<32} {value:.4g}")
    metrics_file.keep_others(workdir, config, step)
    metrics_file.write(workdir, config, step, results, tables)
    with log_files.optional(folder := os.path.join(workdir, "tensorboard")):
        event_files.write_config(folder, config, finished=True)
        event_files.write_results(folder, step, results)
    return results


def _facts(config: config_dict.ConfigDict, dataset: LabelledDataset, mesh: jax.sharding.Mesh) -> dict[str, str]:
    device, prepared = mesh.devices.flat[0], dataset.prepared
    return {
        "devices": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "encoder": config.init_from,
        "data": f"{prepared.name} in {prepared.directory}, {dataset.num_classes} classes: {len(dataset.train)} views "
        f"to train on, {len(dataset.test)} to test on by {dataset.clips_per_view} clip(s)",
    }


def check_workdir(config: config_dict.ConfigDict, workdir: str) -> None:
    """Raises ValueError if this probe would replace results in `workdir`: a training run's, or another encoder's."""
    replaced = f"A probe would replace its {metrics_file.RESULTS_FILE} and report.html: give another --workdir."
    if os.path.isdir(os.path.join(workdir, "checkpoints")):
        raise UserError(f"{workdir} holds a run that trains. {replaced}")
    before = side_files.read(os.path.join(workdir, metrics_file.RESULTS_FILE), metrics_file.is_whole)
    for key in ("init_from", "init_from_step"):
        there, here = (before or {"config": config})["config"].get(key), config.get(key)
        if there != here:
            raise UserError(f"{workdir} holds the probe of {key} = {there}, this one has {here}. {replaced}")


def is_run(init_from: str) -> bool:
    """Whether it names a run: no baseline and no PyTorch checkpoint."""
    return init_from not in BASELINES and not importer.is_torch_checkpoint(init_from)


def load_encoder(config: config_dict.ConfigDict, mesh: jax.sharding.Mesh) -> tuple[mv2mae.MV2MAE, Any, int]:
    """(model, parameters of its encoder, the step of the run that they come from), as `init_from` says.

    `init_from` is a pre-trained or fine-tuned run (the latter has no last norm), a PyTorch checkpoint, `random` or
    `pixels`.

    Raises:
      ValueError: there is no such encoder, it does not fit the model, or it has no steps but `init_from_step` is set.
    """
    model = variants.from_config(config)
    if is_run(config.init_from):
        near = [] if os.path.exists(config.init_from) else nearest(config.init_from, BASELINES)
        if near:
            raise UserError(f"init_from = {config.init_from} is no run or checkpoint.{did_you_mean(near)}")
        step, _, trained = run_record.read_record(config.init_from, config.get("init_from_step"))
        model, params = inference.restore(config.init_from, step, trained.task, model, mesh)
        importer.check_run(config.init_from, trained, model)
        shapes = jax.tree.map(jax.typeof, params)
        metrics.say(checkpoint.taken(config.init_from, {"encoder": shapes}, {"encoder": params}))
        return model, params, step
    importer.refuse_step(config)
    if config.init_from == "pixels":
        return frozen_encoder.RawPixels(clip_size=model.clip_size, tubelet_size=model.tubelet_size), {}, 0
    create = functools.partial(frozen_encoder.init_encoder, model)
    params = sharding.create(mesh, create, jax.random.key(config.seed))
    if config.init_from != "random":
        fresh = {"encoder": params}
        loaded = importer.load_videomae(config.init_from, fresh, model)
        metrics.say(checkpoint.taken(config.init_from, fresh, loaded))
        params = loaded["encoder"]
    return model, params, 0


def _searched_rows(dataset: LabelledDataset) -> np.ndarray:
    """All views of the tested takes, labelled or not: int64[...], ascending."""
    prepared = dataset.prepared
    if prepared.not_synchronised:
        raise UserError(
            f"Retrieval of the same take is not defined on {prepared.name}: {prepared.not_synchronised}. Leave "
            "'retrieval' out of probe.kinds."
        )
    take, view = prepared.views["take"], prepared.views["view"]
    rows = np.flatnonzero(np.isin(take, take[dataset.test]))
    if not retrieval.camera_pairs(take[rows], view[rows]):
        raise UserError(
            f"Retrieval needs takes that two cameras have seen; {prepared.directory} holds one view of each of the "
            f"{len(np.unique(take[rows]))} tested takes. Leave 'retrieval' out of probe.kinds."
        )
    return rows


def _extract(
    config: config_dict.ConfigDict,
    dataset: LabelledDataset,
    mesh: jax.sharding.Mesh,
    workdir: str,
    model: mv2mae.MV2MAE,
    params: Any,
    rows: np.ndarray,
    with_tokens: bool,
) -> Features:
    clips_per_view = dataset.clips_per_view
    num_clips = len(rows) * clips_per_view
    most = max(len(dataset.train), len(dataset.test)) * clips_per_view  # a larger batch would only be filled up

    def make(folder: str) -> Features:
        logging.info("Extracting features of %d clips into %s.", num_clips, folder)
        batches = pipeline.clip_batches(
            dataset.prepared,
            dataset.spec,
            rows,
            global_batch_size=min(config.global_batch_size, -(-most // mesh.size) * mesh.size),
            clips_per_view=clips_per_view,
            num_workers=config.data.num_workers,
        )
        tokens = features.map_tokens(folder, num_clips, model) if with_tokens else None
        batches = progress.track(batches, "extracting features", "batches", leave=True)
        return features.extract(model, params, batches, mesh, tokens=tokens)

    facts = features.facts_of(
        model, params, dataset.prepared, dataset.spec, rows, clips_per_view=clips_per_view, with_tokens=with_tokens
    )
    found = features.cached(os.path.join(workdir, "features"), facts, make)
    features.check_finite(found, f"the encoder init_from={config.init_from}")
    # Of the same features, other `data.classes` number the labels otherwise.
    return dataclasses.replace(found, label=dataset.prepared.views["label"][found.row].astype(found.label.dtype))


def _classify(
    kind: str,
    config: config_dict.ConfigDict,
    dataset: LabelledDataset,
    model: mv2mae.MV2MAE,
    train_features: Features,
    test: Features,
) -> tuple[np.ndarray, dict[str, float], dict[str, Any]]:
    """(scores float[M, K] of `dataset.test`, the chosen setting, the validation table)."""
    probe, num_classes = config.probe, dataset.num_classes
    if kind == "ridge":
        (found,) = regression.ridges(
            geometry.whole_clips(train_features, model),
            [np.eye(num_classes)[train_features.label]],
            geometry.whole_clips(test, model),
            **_choosing(config, dataset, train_features.row),
        )
        scores, _ = accuracy.average_clips(found.prediction, test.row)
        validation = [float(r2) if np.isfinite(r2) else None for r2 in found.validation_r2]
        return scores, {"penalty": found.penalty}, {"validation_r2": validation}
    if kind == "attentive":
        train, train_x, test_x = train_features, train_features.tokens, test.tokens
    else:
        train = train_features.per_row()
        train_x, test_x = (part.pooled(probe.pooling) for part in (train, test.per_row()))
    if kind == "knn":
        return probes.knn_scores(train_x, train.label, test_x, num_classes, k=probe.knn_k), {}, {}
    fit = attentive.attentive_probe if kind == "attentive" else probes.linear_probe
    settings = _choosing(config, dataset, train.row) | _head(probe)
    probed = fit(train_x, train.label, test_x, num_classes, **settings)
    scores = probed.scores
    if kind == "attentive":
        scores, rows = accuracy.average_clips(scores, test.row)
        assert np.array_equal(rows, dataset.test), "one row of scores per tested view"
    chosen = {"learning_rate": probed.learning_rate, "weight_decay": probed.weight_decay}
    return scores, chosen, {"validation_accuracy": probed.validation_score.tolist()}


def _geometry(
    config: config_dict.ConfigDict, dataset: LabelledDataset, model: mv2mae.MV2MAE, train: Features, test: Features
) -> dict[str, float]:
    """`geometry/*` and `motion/*`, if they are asked for."""
    probe, results = config.probe, {}
    if not {"geometry", "motion"} & set(probe.kinds):
        return {}
    true = [
        geometry.targets(dataset.prepared, dataset.spec, rows, dataset.clips_per_view)
        for rows in (dataset.train, dataset.test)
    ]
    attention = _head(probe) if "attentive" in probe.kinds else None
    choosing = _choosing(config, dataset, train.row)
    read_outs = geometry.ReadOuts(model, train, test, *true, attention=attention, **choosing)
    if "geometry" in probe.kinds:
        measured, _ = read_outs.pose()
        results |= {f"geometry/{name}": value for name, value in measured.items()}
    if "motion" in probe.kinds:
        results |= {f"motion/{name}": value for name, value in read_outs.motion().items()}
    return results


def _warn_of_few_labels(config: config_dict.ConfigDict, dataset: LabelledDataset) -> None:
    """Says where so few views train that neighbours, or the choice of a setting, tell little."""
    probe, label = config.probe, dataset.prepared.views["label"][dataset.train]
    if "knn" in probe.kinds and len(label) <= probe.knn_k:
        progress.say(
            f"warning: probe.knn_k = {probe.knn_k}, and {len(label)} views train: all of them vote on every test view, "
            "so it gets the same class as the others. Lower probe.knn_k."
        )
    if set(probe.kinds) & set(CLASSIFIERS) - {"knn"}:
        kept, held_out = probes.split_groups(validation_groups(dataset), probe.validation_fraction, config.seed)
        if unknown := np.sum(~np.isin(label[held_out], label[kept])):
            progress.say(
                f"warning: settings of probes are chosen on {len(held_out)} views cut off the training split, and "
                f"{unknown} of them are of classes that no view left there shows: they count as errors for every "
                "setting. With more data.labels_per_class, or another seed, the choice tells more."
            )


def _head(probe: config_dict.ConfigDict) -> dict[str, Any]:
    """How a linear or an attentive head is trained."""
    return {name: probe[name] for name in ("learning_rates", "weight_decays", "epochs", "batch_size")}


def _choosing(config: config_dict.ConfigDict, dataset: LabelledDataset, rows: np.ndarray) -> dict[str, Any]:
    """How validation clips are cut off training clips, whose views are `rows` of the training split."""
    group = validation_groups(dataset)[np.searchsorted(dataset.train, rows)]
    return {"group": group, "validation_fraction": config.probe.validation_fraction, "seed": config.seed}


def validation_groups(dataset: LabelledDataset) -> np.ndarray:
    """The groups that validation keeps together, one name per row of `dataset.train`.

    The groups are subjects if the test is on other subjects and three or more subjects train. Settings are then chosen
    for the task that is tested. Otherwise the groups are takes. These can mislead where every subject performs every
    action equally often: cutting off a take makes its class the rarest of its subject, so a probe that recognises
    subjects avoids the right class and scores below chance.
    """
    views = dataset.prepared.views
    subject = views["subject"][dataset.train]
    other_subjects = not np.isin(subject, views["subject"][dataset.test]).any()
    if (subject >= 0).all() and other_subjects and len(np.unique(subject)) >= 3:
        return subject
    return views["take"][dataset.train]
