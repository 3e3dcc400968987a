"""The README.md of an export: what the weights are, where they come from, and what loads them."""

import re
from typing import Any

import jax

from mv2mae_jax.config import flatten
from mv2mae_jax.models import variants

_PRE_TRAINED = {
    "videomae": """\
`videomae.pth` holds `{"model": state_dict}`, tensors only, in the layout of
[MCG-NJU/VideoMAE](https://github.com/MCG-NJU/VideoMAE), for a `vit_*_patch16` model of the sizes below:
`run_class_finetuning.py --finetune videomae.pth --num_frames FRAMES`. Its loader reports the decoders as not used.
The script builds its models for 224 x 224 pixels; positions are computed, so the weights fit those too. For the
HEIGHT x WIDTH of pre-training, give its `create_model` an `img_size`.

The file holds no number of heads: encoder HEADS, decoder DECODER_HEADS. Any PyTorch since 1.6 reads it.""",
    "hf": """\
```python
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEImageProcessor, VideoMAEModel

processor = VideoMAEImageProcessor.from_pretrained("THIS_FOLDER")  # ImageNet's mean and deviation
encoder = VideoMAEModel.from_pretrained("THIS_FOLDER")             # the decoders are reported as unexpected keys
pretraining = VideoMAEForPreTraining.from_pretrained("THIS_FOLDER")  # only `cross_decoder.` is
classifier = VideoMAEForVideoClassification.from_pretrained("THIS_FOLDER", num_labels=60, use_mean_pooling=True)
```

`use_mean_pooling=True` belongs to fine-tuning: without it the classifier reads the first token alone. The encoder's
final norm is then left out and `fc_norm` starts fresh, as in VideoMAE.

VERSIONS

transformers' `decoder.norm` has an eps of 1e-5 whatever config.json says; the model was trained with 1e-6. For the same
reconstructions set `pretraining.decoder.norm.eps = 1e-6`.""",
    "port": """\
```python
import mv2mae_torch  # the file beside this one; needs nothing but torch

model = mv2mae_torch.load("THIS_FOLDER")
features = model.features(video)  # uint8[B, FRAMES, HEIGHT, WIDTH, 3] RGB -> float32[B, TOKENS, DIM]
```

`model(video, target_visible, source_visible)` runs both decoders, `model.loss(..., **config["loss"])` the
motion-weighted loss with the settings of `config.json`. The module takes PyTorch 2.0 or newer.""",
}

_ENCODER_ALONE = {
    "videomae": """\
`videomae.pth` holds `{"model": state_dict}`, tensors only, with the encoder in the layout of
[MCG-NJU/VideoMAE](https://github.com/MCG-NJU/VideoMAE), for a `vit_*_patch16` model of the sizes below:
`run_class_finetuning.py --finetune videomae.pth --num_frames FRAMES`. The script builds its models for 224 x 224
pixels; positions are computed, so the weights fit those too. For the HEIGHT x WIDTH of pre-training, give its
`create_model` an `img_size`.

The file holds no number of heads: HEADS. It holds no decoder. Any PyTorch since 1.6 reads it.""",
    "hf": """\
```python
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessor, VideoMAEModel

processor = VideoMAEImageProcessor.from_pretrained("THIS_FOLDER")  # ImageNet's mean and deviation
encoder = VideoMAEModel.from_pretrained("THIS_FOLDER")
classifier = VideoMAEForVideoClassification.from_pretrained("THIS_FOLDER", num_labels=60, use_mean_pooling=True)
```

There is no decoder in the folder. `use_mean_pooling=True` belongs to fine-tuning: without it the classifier reads the
first token alone. The encoder's final norm is then left out and `fc_norm` starts fresh, as in VideoMAE.

VERSIONS""",
    "port": """\
```python
import mv2mae_torch  # the file beside this one; needs nothing but torch

model = mv2mae_torch.load("THIS_FOLDER")
features = model.features(video)  # uint8[B, FRAMES, HEIGHT, WIDTH, 3] RGB -> float32[B, TOKENS, DIM]
```

There is no decoder and no loss in it. The module takes PyTorch 2.0 or newer.""",
}

_FINE_TUNED = {
    "videomae": """\
`videomae.pth` holds `{"model": state_dict}`, tensors only, in the layout of
[MCG-NJU/VideoMAE](https://github.com/MCG-NJU/VideoMAE)'s fine-tuned `vit_*_patch16` models (mean pooling), of the sizes
below. Its scripts build models for 224 x 224 pixels; this one was trained with HEIGHT x WIDTH:

```python
import modeling_finetune  # VideoMAE's

model = modeling_finetune.VisionTransformer(
    img_size=(HEIGHT, WIDTH), patch_size=PATCH, tubelet_size=TUBELET, all_frames=FRAMES, num_classes=CLASSES,
    embed_dim=DIM, depth=DEPTH, num_heads=HEADS, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
)
model.load_state_dict(torch.load("videomae.pth", weights_only=True)["model"])
```

Any PyTorch since 1.6 reads the file.""",
    "hf": """\
```python
from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessor

processor = VideoMAEImageProcessor.from_pretrained("THIS_FOLDER")  # ImageNet's mean and deviation
classifier = VideoMAEForVideoClassification.from_pretrained("THIS_FOLDER")
classifier.fc_norm.eps = 1e-6  # as trained; transformers sets 1e-5 whatever config.json says
inputs = processor(list(clip), return_tensors="pt")  # FRAMES frames of uint8[height, width, 3]
label = classifier.config.id2label[classifier(**inputs).logits.argmax(-1).item()]
```

VERSIONS""",
    "port": """\
```python
import mv2mae_torch  # the file beside this one; needs nothing but torch

model = mv2mae_torch.load("THIS_FOLDER")
logits = model(video)  # uint8[B, FRAMES, HEIGHT, WIDTH, 3] RGB -> float32[B, CLASSES]
features = model.features(video)  # float32[B, TOKENS, DIM]
```

`config.json` names the classes in the order of the logits. The module takes PyTorch 2.0 or newer.""",
}

_VERSIONS = """\
**Versions of transformers.** The biases of queries and values have their published names, `q_bias` and `v_bias`.
5.0.0 reads these; 5.22.0 and 5.23.0 rename them on loading; **5.12.0 does neither: it leaves these biases out.**
Look at what `from_pretrained(..., output_loading_info=True)` lists as missing: nothing should be."""


def text(run: Any, layout: str, verdict: str) -> str:
    """Markdown with the Hub's front matter.

    Args:
      run: exporter.Run.
      layout: one of exporter.FORMATS.
      verdict: how far the files were compared with JAX.
    """
    model, encoder, config = run.model, run.encoder, run.config
    frames, height, width = model.clip_size
    use = (_FINE_TUNED if run.fine_tuned else _ENCODER_ALONE if run.encoder_alone else _PRE_TRAINED)[layout]
    values = {
        "VERSIONS": _VERSIONS,
        "DECODER_HEADS": None if run.fine_tuned else model.decoder_heads,
        "CLASSES": len(run.class_names),
        "FRAMES": frames,
        "HEIGHT": height,
        "WIDTH": width,
        "TOKENS": model.num_tokens,
        "HEADS": encoder.num_heads,
        "DEPTH": encoder.depth,
        "PATCH": model.tubelet_size[1:],
        "TUBELET": model.tubelet_size[0],
        "DIM": encoder.width,
    }
    for name, value in values.items():
        use = use.replace(name, str(value))
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    metrics = "\n".join(f"| {_escaped(name)} | {value:.5g} |" for name, value in sorted(run.metrics.items()))
    settings = "\n".join(f"{key} = {value!r}" for key, value in flatten(config))
    fence = _backticks(settings, 3)
    return f"""\
---
license: other
license_name: see-readme
library_name: {"transformers" if layout == "hf" else "pytorch"}
tags: [video, multi-view, masked-autoencoder, mv2mae]
---
# MV2MAE {_name(run)}, {frames} x {height} x {width}

{_origin(run)}

{use}

## Check

{verdict}

## Model

{num_parameters:,} parameters: encoder {encoder.depth} blocks of width {encoder.width} with {encoder.num_heads} heads; \
{_head(run)}. Tubelets of {" x ".join(map(str, model.tubelet_size))} \
pixels (frames, height, width), {model.num_tokens} tokens. LayerNorm eps 1e-6, exact GELU, fixed sinusoidal positions.
{_target(run, layout)}

Input: RGB in [0, 1], normalised by ImageNet's mean and deviation{" (inside the module)" if layout == "port" else ""}; \
{frames} frames, {config.data.frame_stride} stored frames apart.

## Training

- Data: {_code(config.data.dir)}, protocol {_code(config.data.protocol)}
- Step: {run.step} of the run {_code(run.workdir)}, code revision {_code(run.git_revision)}

| metric at this step | |
|---|---|
{metrics or "| none was reported | |"}

## Licence

The code, `mv2mae_torch.py` included, is Apache-2.0. The weights were trained on the data named above and are subject to
the terms of that data set; many allow academic research only.

## Config

{fence}
{settings}
{fence}
"""


def _code(text: str) -> str:
    """A code span, in which nothing is markup."""
    text, ticks = " ".join(text.split()), _backticks(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _backticks(text: str, least: int) -> str:
    """More of them in a row than `text` has, so that they enclose it."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)


def _escaped(text: str) -> str:
    """A name among other text; cameras are a part of some metrics' names."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$&])", r"\\\1", " ".join(text.split()))


def _name(run: Any) -> str:
    """ViT-S and so on, unless the config overrides the sizes of its variant."""
    encoder, variant = run.encoder, variants.VARIANTS[run.config.model.variant]
    same = all(getattr(encoder, size) == getattr(variant, size) for size in ("width", "depth", "num_heads"))
    return f"ViT-{run.config.model.variant}" if same else f"ViT of width {encoder.width} and depth {encoder.depth}"


def _origin(run: Any) -> str:
    if not run.fine_tuned:
        return "Masked autoencoder pre-trained on synchronised multi-view video (arXiv 2401.15900) with mv2mae-jax."
    start = f"the encoder of {_code(run.config.init_from)}" if run.config.init_from else "an encoder as initialised"
    return f"Action classifier, fine-tuned from {start} with mv2mae-jax (MV2MAE, arXiv 2401.15900)."


def _target(run: Any, layout: str) -> str:
    """What the decoders predict, in the file at hand."""
    if run.fine_tuned:
        return ""
    if run.normalizes_patches:
        return (
            "\nThe decoders predict patches of which each channel has mean 0 and unit variance (`normalized_pixels`)."
        )
    if layout == "port":
        return "\nThe decoders predict pixels normalised by ImageNet's mean and deviation (`pixels`)."
    return (
        "\nThe decoders predict pixels in [0, 1], not normalised: what VideoMAE compares with under "
        "`--normlize_target False` and transformers under `norm_pix_loss=False`. In training they predicted pixels "
        "normalised by ImageNet's mean and deviation; the heads were rescaled on export."
    )


def _head(run: Any) -> str:
    model = run.model
    if run.fine_tuned:
        return f"a norm of the mean token and a linear head for {len(run.class_names)} classes"
    if run.encoder_alone:
        return "its joint decoder is not exported"
    decoders = "self-view and cross-view decoder" if model.cross_view else "self-view decoder"
    return (
        f"{decoders} with {model.decoder_depth} blocks of width {model.decoder_width} and {model.decoder_heads} heads"
    )
