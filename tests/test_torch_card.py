"""Model cards: their code runs as pasted, names cannot become markup, and no path of this machine appears."""

import functools
import json
import re
import sys
import types

import jax
import numpy as np
import pytest
import transformers

from mv2mae_jax.models import classifier, layers
from mv2mae_jax.objectives.pretrain import Pretrain
from mv2mae_jax.torch_export import exporter, model_card, mv2mae_torch, trained_run
from tests import tiny

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

HOSTILE_NAMES = (
    "$\\frac{$",
    "a|b",
    "<b>x</b>",
    "`tick``s`",
    "two\nlines\n# Title",
    "```\nfence",
    "*a* _b_ [c](d)",
    "=1+1",
)


def make_run(kind: str, **changes) -> trained_run.TrainedRun:
    """A run of random weights: 'cross_view', 'self_view', 'joint' or 'fine_tuned'."""
    facts = {"workdir": "run", "step": 7, "git_revision": "0123abc", "metrics": {"eval/x": 0.5}, "class_names": ()}
    if kind == "fine_tuned":
        config = tiny.make_finetune_config("init_from=/somewhere/secret/pretrained", "data.dir=/somewhere/secret/set")
        facts["class_names"] = HOSTILE_NAMES
        model = classifier.from_config(config, len(HOSTILE_NAMES))
        init = functools.partial(model.init, video=np.zeros((1, *model.clip_size, 3), np.uint8))
        params = layers.unstack_blocks(tiny.random_like(jax.eval_shape(init, jax.random.key(0))["params"]))
    else:
        config = tiny.make_config()
        config.data.dir = "/somewhere/secret/set"
        if kind == "self_view":
            config.model.cross_view, config.data.num_source_views = False, 0
        if kind == "joint":
            config.model.decoder = "joint"
        task = Pretrain.from_config(config)
        params = layers.unstack_blocks(tiny.random_like(jax.eval_shape(task.init, jax.random.key(0))))
        model = task.model
        if kind == "joint":
            params = {"encoder": params["encoder"]}
    return trained_run.TrainedRun(
        config=config, model=trained_run.for_comparison(model), params=params, **facts | changes
    )


def export(run, layout, folder, monkeypatch):
    monkeypatch.setattr(exporter, "verify", lambda *args: "Not compared: this is a test.")
    exporter.export(run, layout, folder, types.SimpleNamespace(describe=lambda text: None, advance=lambda: None))
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("layout", exporter.FORMATS)
@pytest.mark.parametrize("kind", ["cross_view", "self_view", "joint", "fine_tuned"])
def test_every_snippet_runs_as_pasted(kind, layout, tmp_path, monkeypatch, hub_modules):
    card = export(make_run(kind), layout, tmp_path / "out", monkeypatch)
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippets or (kind, layout) == ("joint", "videomae")
    assert "THIS_FOLDER" not in card and not re.search(r"\b[A-Z]{3,}_?[A-Z]*\b(?<!RGB)", "".join(snippets))
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.syspath_prepend(".")
    monkeypatch.setitem(sys.modules, "modeling_finetune", types.SimpleNamespace(VisionTransformer=vision_transformer))
    monkeypatch.delitem(sys.modules, "mv2mae_torch", raising=False)
    for snippet in snippets:
        exec(snippet, {"__name__": "__main__"})
    sys.modules.pop("mv2mae_torch", None)


def vision_transformer(*, img_size, patch_size, tubelet_size, all_frames, num_classes, **sizes):
    """Stands for VideoMAE's model, whose package is not installed here. Parameters have the same names and shapes."""
    assert sizes["qkv_bias"] and sizes["norm_layer"](4).eps == 1e-6
    return mv2mae_torch.Classifier(
        clip_size=(all_frames, *img_size),
        tubelet_size=(tubelet_size, *patch_size),
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        mlp_ratio=4,
        num_classes=num_classes,
    )


@pytest.mark.parametrize("kind", ["cross_view", "fine_tuned"])
def test_front_matter_and_paths(kind, tmp_path, monkeypatch):
    run = make_run(kind, workdir="/somewhere/secret/run")
    card = export(run, "hf", tmp_path / "out", monkeypatch)
    assert "secret" not in card and "`run`" in card and "dir = 'set'" in card
    lines = card.split("---")[1].strip().splitlines()
    entries = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in lines)}
    assert entries["pipeline_tag"] == ("video-classification" if kind == "fine_tuned" else "feature-extraction")
    assert entries["license_link"] == "LICENSE" and "Apache-2.0" in (tmp_path / "out/LICENSE").read_text()
    assert entries["datasets"] == ["set"] and entries["library_name"] == "transformers"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.get("problem_type") == ("single_label_classification" if kind == "fine_tuned" else None)


def test_the_data_set_is_named_where_it_is_there(tmp_path, monkeypatch):
    run = make_run("cross_view")
    run.config.data.dir = str(tmp_path)
    (tmp_path / "prepared.json").write_text('{"dataset": "ntu60"}')
    card = export(run, "port", tmp_path / "out", monkeypatch)
    assert 'datasets: ["ntu60"]' in card and "- Data: `ntu60`" in card


def test_names_are_no_markup(tmp_path, monkeypatch):
    """A Markdown parser finds every name as one inline code, and the card's headings, table and fence as intended."""
    markdown_it = pytest.importorskip("markdown_it")
    run = make_run("fine_tuned", git_revision="`$|<i>", metrics={"test/a|b`c": 0.5, "test/top_1": 0.25})
    run.config.data.protocol = "x`|y"
    run.config.data.dir = "/somewhere/```/` | <b>"
    card = export(run, "port", tmp_path / "out", monkeypatch)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    inline = [child for token in tokens for child in token.children or []]
    codes = [child.content for child in inline if child.type == "code_inline"]
    expected = [" ".join(name.split()) for name in HOSTILE_NAMES]
    first = codes.index(expected[0])
    assert [text.replace("\\|", "|") for text in codes[first : first + len(expected)]] == expected
    assert "test/a|b`c" in codes
    assert not [child for child in inline if child.type in ("html_inline", "em_open", "link_open")][2:]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Check", "Model", "Training", "Licence", "Config"]
    assert tokens[-1].type == "fence" and "test" in card and tokens[-1].content.count("data.dir = ") == 1


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "", "`", "``` `` `", " x "])
def test_inline_code(name):
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt().parse(f"a {model_card.code(name)} b")
    (paragraph,) = [token for token in tokens if token.type == "inline"]
    kinds = [child.type for child in paragraph.children]
    assert kinds == ["text", "code_inline", "text"] or not name.strip()
