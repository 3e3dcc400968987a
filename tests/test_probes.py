"""Accuracies, probes and retrieval find planted features, find nothing in noise, and agree with scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    r2_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mv2mae_jax.evaluation import accuracy, attentive, probes, regression, retrieval

SWEEP = dict(learning_rates=(1e-3, 1e-2), weight_decays=(0.0, 0.1))


def gaussian_classes(*, num_rows, num_classes=4, width=16, distance=1.0, seed=0):
    """Rows around one random centre per class, (x, y): `distance` is the centres' spread in standard deviations."""
    rng = np.random.default_rng(seed)
    centres = distance * rng.normal(size=(num_classes, width))
    y = rng.integers(0, num_classes, num_rows)
    return (centres[y] + rng.normal(size=(num_rows, width))).astype(np.float32), y


def within_chance(hits: float, num_rows: int, num_classes: int) -> bool:
    """Whether an accuracy lies within four standard deviations of guessing."""
    chance = 1 / num_classes
    return abs(hits - chance) < 4 * np.sqrt(chance * (1 - chance) / num_rows)


# Accuracies


def test_accuracies_equal_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 8, 200)
    scores = rng.normal(size=(200, 8)) + 1.5 * np.eye(8)[label]
    view = rng.choice(["C001", "C002"], 200)
    results = accuracy.summarize(scores, label, view)
    prediction = scores.argmax(1)
    assert results["top_1"] == pytest.approx(np.mean(prediction == label))
    assert results["top_5"] == pytest.approx(top_k_accuracy_score(label, scores, k=5))
    assert results["mean_class"] == pytest.approx(balanced_accuracy_score(label, prediction))
    for name in ("C001", "C002"):
        expected = np.mean(prediction[view == name] == label[view == name])
        assert results[f"top_1/{name}"] == pytest.approx(expected)
    np.testing.assert_array_equal(accuracy.confusion_matrix(prediction, label, 8), confusion_matrix(label, prediction))


def test_a_class_that_does_not_occur_does_not_count():
    results = accuracy.summarize(np.eye(3)[[0, 0, 0, 1]], np.array([0, 0, 1, 1]))
    assert results["mean_class"] == pytest.approx((1 + 0.5) / 2)
    assert "top_5" not in results  # there are but three classes


def test_equal_scores_give_the_accuracy_of_chance():
    results = accuracy.summarize(np.zeros((8, 8)), np.arange(8))
    assert results["top_1"] == 1 / 8 and results["top_5"] == 5 / 8


@pytest.mark.parametrize(
    ("scores", "label", "reason"),
    [
        (np.zeros((2, 3)), [0, 3], "classes"),
        (np.zeros((2, 3)), [0, -1], "no label"),
        (np.full((2, 3), np.nan), [0, 1], "diverged"),
        (np.zeros((2, 3)), [0], "one label per row"),
    ],
)
def test_accuracy_refuses(scores, label, reason):
    with pytest.raises(ValueError, match=reason):
        accuracy.summarize(scores, np.array(label))


def test_average_clips_equals_a_direct_computation():
    rng = np.random.default_rng(0)
    row = np.array([7, 3, 7, 9, 3, 7])
    logits = 100 * rng.normal(size=(6, 5))  # large: a softmax that is not shifted would overflow
    probabilities, rows = accuracy.average_clips(logits, row)
    assert rows.tolist() == [3, 7, 9]
    for i, name in enumerate(rows):
        clips = [np.exp(z - np.logaddexp.reduce(z)) for z in logits[row == name]]
        np.testing.assert_allclose(probabilities[i], sum(clips) / len(clips), atol=1e-12)


# Nearest neighbours


@pytest.mark.parametrize("k", [1, 20])
def test_knn_equals_scikit_learn(k):
    x, y = gaussian_classes(num_rows=500, distance=0.5)
    scores = probes.knn_scores(x[:300], y[:300], x[300:], 4, k=k)
    reference = KNeighborsClassifier(n_neighbors=k, metric="cosine").fit(x[:300], y[:300])
    np.testing.assert_array_equal(scores.argmax(1), reference.predict(x[300:]))
    np.testing.assert_allclose(scores, reference.predict_proba(x[300:]), atol=1e-6)


# Ridge regression, and regression by attention


@pytest.mark.parametrize("penalty", [1.0, 300.0])
@pytest.mark.parametrize("features", [20, 500])
def test_ridge_equals_scikit_learn(penalty, features):
    """With fewer features than rows, and with more."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(300, features)) * rng.uniform(0.1, 10, features) + rng.normal(size=features)).astype(
        np.float32
    )
    y = (x[:, :20] @ rng.normal(size=(20, 6)) + 5 * rng.normal(size=(300, 6)) + 3).astype(np.float32)
    found = regression.ridges(x[:200], [y[:200]], x[200:], group=np.arange(200), penalties=(penalty,))[0]
    reference = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(x[:200], y[:200]).predict(x[200:])
    np.testing.assert_allclose(found.prediction, reference, rtol=1e-3, atol=1e-3)
    assert found.penalty == penalty


def test_ridge_finds_what_is_planted_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 30)).astype(np.float32)
    planted, noise = (x @ rng.normal(size=(30, 9))).astype(np.float32), rng.normal(size=(2000, 9)).astype(np.float32)
    group = np.arange(1500) // 10
    found = regression.ridges(x[:1500], [planted[:1500]], x[1500:], group=group, penalties=(0.01, 1.0, 100.0))[0]
    assert regression.r2(found.prediction, planted[1500:]) > 0.9999
    assert found.penalty == 0.01
    found = regression.ridges(x[:1500], [noise[:1500]], x[1500:], group=group)[0]
    assert abs(regression.r2(found.prediction, noise[1500:])) < 0.01
    assert found.penalty >= 1e5  # in noise, the largest penalties validate best


def test_the_penalty_is_chosen_on_groups_that_are_held_out():
    """All rows of a group share one target. If a group were split, memorising it would validate best."""
    rng = np.random.default_rng(0)
    group = np.arange(1200) // 6
    x = (rng.normal(size=(200, 120))[group] + 0.01 * rng.normal(size=(1200, 120))).astype(np.float32)
    y = rng.normal(size=(200, 9))[group].astype(np.float32)
    found = regression.ridges(x, [y], x, group=group, penalties=(1e-3, 1e8))[0]
    assert found.penalty == 1e8


def test_measures_of_quantities_equal_scikit_learn():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + 7
    prediction = target + rng.normal(size=(50, 6))
    assert regression.r2(prediction, target) == pytest.approx(
        r2_score(target, prediction, multioutput="variance_weighted")
    )
    distances = [
        np.linalg.norm(prediction[:, :3] - target[:, :3], axis=1),
        np.linalg.norm(prediction[:, 3:] - target[:, 3:], axis=1),
    ]
    assert regression.joint_error(prediction, target) == pytest.approx(np.mean(distances))


def test_where_nothing_varies_r2_is_not_defined():
    same = np.full((7, 3), 0.1)
    assert regression.r2(same, same) == regression.r2(same + 1, same) == -np.inf


def test_penalties_that_leave_no_solution_are_skipped(monkeypatch):
    """Features of a collapsed encoder have one direction; a small penalty is lost in the rounding of their products."""
    rng = np.random.default_rng(0)
    alike = (rng.normal(size=(1000, 1)) @ rng.normal(size=(1, 200))).astype(np.float32)
    y, group = alike[:, :2] + rng.normal(size=(1000, 2)), np.arange(1000)
    (found,) = regression.ridges(alike, [y], alike[:5], group=group, penalties=(1e-6, 10.0))
    assert found.penalty == 10 and found.validation_r2[0] == -np.inf and np.isfinite(found.prediction).all()
    with pytest.raises(ValueError, match=r"1000 rows apart.*1e-06.*nearly\) alike"):
        regression.ridges(alike, [y], alike[:5], group=group, penalties=(1e-6,))
    # A penalty that is solved on the rows that choose it need not be so on all rows.
    x, predict = rng.normal(size=(1000, 20)).astype(np.float32), regression._Equations.predict
    y = x[:, :2]
    monkeypatch.setattr(
        regression._Equations,
        "predict",
        lambda self, x, penalty: None if len(x) == 5 and penalty == 1 else predict(self, x, penalty),
    )
    (found,) = regression.ridges(x, [y], x[:5], group=group, penalties=(1.0, 10.0))
    assert found.penalty == 10
    (expected,) = regression.ridges(x, [y], x[:5], group=group, penalties=(10.0,))
    np.testing.assert_array_equal(found.prediction, expected.prediction)


def test_attention_predicts_a_product_of_two_tokens_of_one_clip():
    """A product is no linear function of the tokens. Ridge regression fails, and a head with a hidden layer works."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3000, 2, 4)).astype(np.float32)
    tokens[..., 3] = [0, 1]  # which token it is
    y = (tokens[:, 0, 0] * tokens[:, 1, 0])[:, None]
    group, flat = np.arange(2500), tokens.reshape(3000, -1)
    linear = regression.ridges(flat[:2500], [y[:2500]], flat[2500:], group=group)[0]
    assert regression.r2(linear.prediction, y[2500:]) < 0.1
    found = attentive.attentive_regression(
        tokens[:2500], y[:2500], tokens[2500:], group=group, learning_rates=(1e-2,), weight_decays=(0.0,), epochs=60
    )
    assert regression.r2(found.scores, y[2500:]) > 0.8


# Trained probes


def planted_tokens(num_rows, *, num_classes=4, num_tokens=12, width=16, seed=0):
    """Tokens float16[M, N, D] and classes. One token at a random place carries the class; the others are noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, num_rows)
    tokens = rng.normal(size=(num_rows, num_tokens, width))
    codes = np.linalg.qr(rng.normal(size=(width, width)))[0][:num_classes] * 20
    tokens[np.arange(num_rows), rng.integers(0, num_tokens, num_rows)] += codes[y]
    return tokens.astype(np.float16), y


def run_linear(x, y, num_train, num_classes=4, **options):
    options = SWEEP | dict(group=np.arange(num_train) // 2, epochs=30, batch_size=64) | options
    return probes.linear_probe(x[:num_train], y[:num_train], x[num_train:], num_classes, **options)


def run_attentive(x, y, num_train, num_classes=4, **options):
    options = SWEEP | dict(group=np.arange(num_train) // 2, epochs=15, batch_size=64, num_heads=4) | options
    return attentive.attentive_probe(x[:num_train], y[:num_train], x[num_train:], num_classes, **options)


def test_planted_features_are_read_perfectly():
    x, y = gaussian_classes(num_rows=400, distance=5.0)
    assert accuracy.summarize(run_linear(x, y, 300).scores, y[300:])["top_1"] == 1
    assert accuracy.summarize(probes.knn_scores(x[:300], y[:300], x[300:], 4), y[300:])["top_1"] == 1


def test_attention_finds_the_token_that_carries_the_class():
    tokens, y = planted_tokens(400)
    assert accuracy.summarize(run_attentive(tokens, y, 300).scores, y[300:])["top_1"] == 1


def test_noise_stays_at_chance():
    rng = np.random.default_rng(1)
    tokens, y = rng.normal(size=(700, 6, 16)).astype(np.float16), rng.integers(0, 4, 700)
    pooled = tokens.astype(np.float32).mean(1)
    for scores in (
        probes.knn_scores(pooled[:300], y[:300], pooled[300:], 4),
        run_linear(pooled, y, 300).scores,
        run_attentive(tokens, y, 300, epochs=4).scores,
    ):
        assert within_chance(np.mean(scores.argmax(1) == y[300:]), 400, 4)


def test_linear_probe_is_as_good_as_scikit_learns_logistic_regression():
    x, y = gaussian_classes(num_rows=3000, width=20, distance=0.4)
    train, test = slice(0, 1000), slice(1000, 3000)
    mean, std = x[train].mean(0), x[train].std(0)
    reference = LogisticRegression(C=np.inf).fit((x[train] - mean) / std, y[train])
    expected = reference.score((x[test] - mean) / std, y[test])
    assert 0.5 < expected < 0.95  # a problem on which classifiers can differ
    probed = run_linear(x, y, 1000, learning_rates=(1e-2,), weight_decays=(0.0,))
    assert np.mean(probed.scores.argmax(1) == y[test]) == pytest.approx(expected, abs=0.015)
    units = np.logspace(-1, 1, 20)
    scaled = run_linear(units * x + 100, y, 1000, learning_rates=(1e-2,), weight_decays=(0.0,))
    np.testing.assert_allclose(scaled.scores, probed.scores, atol=2e-2)  # units and offsets do not matter


def test_predictions_do_not_depend_on_the_other_test_rows():
    """Neither a row's prediction nor the chosen setting depends on which other rows are tested."""
    x, y = gaussian_classes(num_rows=200)
    all_rows, few_rows = run_linear(x, y, 150), run_linear(x[:160], y[:160], 150)
    np.testing.assert_allclose(all_rows.scores[:10], few_rows.scores, atol=1e-4)
    assert all_rows.learning_rate == few_rows.learning_rate


def test_the_setting_with_the_best_validation_accuracy_is_chosen():
    x, y = gaussian_classes(num_rows=400, distance=1.0)
    # A rate of 1e-9 learns nothing, and a decay of 50 shrinks the weights to nothing.
    probed = run_linear(x, y, 300, learning_rates=(1e-9, 1e-2), weight_decays=(0.0, 50.0))
    assert probed.learning_rate == 1e-2
    assert probed.validation_score.shape == (2, 2)
    chosen = probed.validation_score[1, (0.0, 50.0).index(probed.weight_decay)]
    assert chosen == probed.validation_score.max()


def test_every_setting_trains_as_if_it_were_alone():
    tokens, y = planted_tokens(200)
    x = tokens.astype(np.float32).mean(1)
    for run, data in ((run_linear, x), (run_attentive, tokens)):
        together = run(data, y, 150).validation_score
        for i, lr in enumerate(SWEEP["learning_rates"]):
            for j, wd in enumerate(SWEEP["weight_decays"]):
                alone = run(data, y, 150, learning_rates=(lr,), weight_decays=(wd,)).validation_score
                assert abs(alone[0, 0] - together[i, j]) <= 1 / 30  # at most one of 30 rows by rounding


def test_attentive_probe_equals_multi_head_attention_written_out():
    """Keys folded into the queries, and values after pooling, equal cross-attention with a learned query per head."""
    rng = np.random.default_rng(0)
    heads, width, size, num_tokens = 2, 8, 4, 5
    x = rng.normal(size=(3, num_tokens, width)).astype(np.float32)
    query = rng.normal(size=(heads, size))
    key, value = rng.normal(size=(2, heads, width, size))
    kernel, bias = rng.normal(size=(width, 6)), rng.normal(size=6)
    expected = []
    for clip in x:
        pooled = []
        for h in range(heads):
            logits = (clip @ key[h]) @ query[h] * size**-0.5
            weight = np.exp(logits - logits.max())
            pooled.append(weight / weight.sum() @ (clip @ value[h]))
        expected.append(np.concatenate(pooled) @ kernel + bias)
    folded = np.einsum("hde,he->hd", key, query) * (width / size) ** 0.5
    params = {"queries": folded, "values": value, "kernel": kernel, "bias": bias}
    actual = attentive._attend({k: v.astype(np.float32) for k, v in params.items()}, x, np.zeros(width), np.ones(width))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_groups_are_not_split():
    group = np.random.default_rng(0).permutation(np.repeat([f"S{i:03}" for i in range(10)], 3))
    kept, held_out = probes.split_groups(group, 0.2, seed=0)
    assert sorted([*kept, *held_out]) == list(range(30))
    assert set(group[kept]).isdisjoint(group[held_out])
    assert len(set(group[held_out])) == 2
    kept, held_out = probes.split_groups(group[:3] == group[0], 0.99, seed=0)
    assert len(kept) and len(held_out)


def test_channels_that_do_not_vary_do_no_harm():
    x, y = gaussian_classes(num_rows=300, distance=5.0)
    x = np.concatenate([x, np.zeros((300, 1), np.float32)], axis=1)
    x[250:, -1] = 1e-3  # in the test rows alone
    assert np.mean(run_linear(x, y, 250).scores.argmax(1) == y[250:]) == 1


@pytest.mark.parametrize(
    ("label", "group", "sweep", "reason"),
    [
        ([0, 1, -1, 2], [0, 1, 2, 3], {}, "no label"),
        ([0, 1, 4, 2], [0, 1, 2, 3], {}, "does not fit 4 classes"),
        ([0, 1, 2], [0, 1, 2, 3], {}, "one label per row"),
        ([0, 1, 2, 3], [5, 5, 5, 5], {}, "1 group"),
        ([0, 1, 2, 3], [0, 1, 2, 3], {"learning_rates": ()}, "sweep is empty"),
    ],
)
def test_probes_refuse(label, group, sweep, reason):
    x, options = np.zeros((4, 3, 8), np.float32), SWEEP | sweep | {"group": np.array(group)}
    for probe, data in ((probes.linear_probe, x[:, 0]), (attentive.attentive_probe, x)):
        with pytest.raises(ValueError, match=reason):
            probe(data, np.array(label), data, 4, **options)


def test_knn_and_attention_refuse():
    x = np.zeros((4, 3, 8), np.float32)
    with pytest.raises(ValueError, match="no label"):
        probes.knn_scores(x[:, 0], np.array([0, 1, -1, 2]), x[:, 0], 3)
    with pytest.raises(ValueError, match="num_heads=3"):
        run_attentive(x, np.zeros(4, int), 2, num_heads=3)


# Retrieval


def clips_of_takes(*, num_takes=20, num_views=3, num_classes=4, noise=1.0, seed=0):
    """(features, take, view, label), shuffled. Features are a take's vector, equal in all its views, plus noise."""
    rng = np.random.default_rng(seed)
    content, label = rng.normal(size=(num_takes, 8)), rng.integers(0, num_classes, num_takes)
    take, view = (a.ravel() for a in np.meshgrid(np.arange(num_takes), np.arange(num_views), indexing="ij"))
    order = rng.permutation(len(take))[:-4]  # some takes lack a view
    take, view = take[order], view[order]
    features = content[take] + noise * rng.normal(size=(len(take), 8))
    return features, np.array([f"T{t:03}" for t in take]), np.array([f"C{v:03}" for v in view]), label[take]


def test_planted_pairs_are_found():
    features, take, view, _ = clips_of_takes(noise=0.0)
    found = retrieval.measure(features, take, view)
    assert found["recall_1"] == found["recall_5"] == found["mean_rank"] == 1
    assert not any(name.startswith("class") for name in found)  # no labels, no classes


def test_retrieval_equals_brute_force():
    features, take, view, label = clips_of_takes()
    label[take == "T003"] = -1
    found = retrieval.measure(features, take, view, label)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    of_pairs = []
    for a in np.unique(view):
        for b in set(np.unique(view)) - {a}:
            ranks, nearest, precisions = [], [], []
            gallery = [i for i in range(len(take)) if view[i] == b]
            for q in (i for i in range(len(take)) if view[i] == a):
                ranked = sorted(gallery, key=lambda g, q=q: -(unit[g] @ unit[q]))
                ranks += [1 + r for r, g in enumerate(ranked) if take[g] == take[q]]
                others = [g for g in ranked if take[g] != take[q]]
                same = np.array([label[g] == label[q] and label[q] >= 0 for g in others])
                if same.any():
                    nearest.append(same[0])
                    precisions.append(average_precision_score(same, unit[others] @ unit[q]))
            ranks = np.array(ranks)
            means = [np.mean(ranks == 1), np.mean(ranks <= 5), ranks.mean(), len(gallery)]
            of_pairs.append([*means, np.mean(nearest), np.mean(precisions)])
    names = ("recall_1", "recall_5", "mean_rank", "gallery_size", "class_recall_1", "class_map")
    assert found == pytest.approx(dict(zip(names, np.mean(of_pairs, axis=0), strict=True)), rel=1e-5)
    assert 0.1 < found["recall_1"] < 0.9  # neither too easy nor too hard


def test_constant_features_find_nothing():
    _, take, view, label = clips_of_takes()
    found = retrieval.measure(np.ones((len(take), 4)), take, view, label)
    assert found["recall_1"] == found["class_recall_1"] == 0
    assert found["mean_rank"] == found["gallery_size"]


def test_unrelated_features_are_at_chance():
    _, take, view, _ = clips_of_takes(num_takes=200)
    features = np.random.default_rng(5).normal(size=(len(take), 8))
    found = retrieval.measure(features, take, view)
    assert found["mean_rank"] == pytest.approx((found["gallery_size"] + 1) / 2, rel=0.15)


def test_retrieval_refuses():
    features, take, view, _ = clips_of_takes()
    one = view == "C001"
    with pytest.raises(ValueError, match=r"two cameras.*C001 \("):
        retrieval.measure(features[one], take[one], view[one])
    with pytest.raises(ValueError, match="two cameras"):
        retrieval.measure(features, np.arange(len(take)), view)  # each take has one view
    twice = np.arange(len(take)).repeat(2)
    with pytest.raises(ValueError, match="twice"):
        retrieval.measure(features[twice], take[twice], view[twice])
