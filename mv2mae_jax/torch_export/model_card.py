"""The README.md of an export: what the weights are, where they come from, and what loads them."""

import json
import os
import pathlib
import re
from typing import Any

import jax

from data.store.directories import directories
from mv2mae_jax.config import flatten
from mv2mae_jax.models import variants


def _hf(classes: str, use: str) -> str:
    """How transformers loads the folder: the classes to import, and their use."""
    return f"""\
In this folder, or with its name in the place of `"."`:

```python
import numpy as np
from transformers import AutoImageProcessor, {classes}

processor = AutoImageProcessor.from_pretrained(".", trust_remote_code=True)  # mv2mae_processor.py
frames = np.zeros((100, 240, 320, 3), np.uint8)  # a video, RGB; or the path of a file
inputs = processor(frames, do_sample_frames=True, return_tensors="pt")  # the middle clip, cropped as in training

{use}
PROCESSOR

VERSIONS"""


_PORT = """\
In this folder:

```python
import torch
import mv2mae_torch  # the file beside this one; needs nothing but torch

model = mv2mae_torch.load(".")
video = torch.zeros(1, FRAMES, HEIGHT, WIDTH, 3, dtype=torch.uint8)  # RGB
"""

_PRE_TRAINED = {
    "videomae": """\
`videomae.pth` holds `{"model": state_dict, "args": {"normlize_target": NORMALIZES}}` in the layout of
[MCG-NJU/VideoMAE](https://github.com/MCG-NJU/VideoMAE), for a `vit_*_patch16` model of the sizes below:
`run_class_finetuning.py --finetune videomae.pth --num_frames FRAMES`. Its loader reports the decoders as not used.
The script builds its models for 224 x 224 pixels; positions are computed, so the weights fit those too. For the
HEIGHT x WIDTH of pre-training, give its `create_model` an `img_size`. In this folder:

```python
import torch

state = torch.load("videomae.pth", weights_only=True)["model"]
encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
```

The file holds no number of heads: encoder HEADS, decoder DECODER_HEADS. Any PyTorch since 1.6 reads it.""",
    "hf": _hf(
        "VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel",
        """\
encoder = VideoMAEModel.from_pretrained(".")  # the decoders are reported as unexpected keys
features = encoder(**inputs).last_hidden_state  # float32[1, TOKENS, DIM]
pretraining = VideoMAEForPreTraining.from_pretrained(".")REPORTED
pretraining.decoder.norm.eps = 1e-6  # as trained; transformers sets 1e-5 whatever config.json says
classifier = VideoMAEForVideoClassification.from_pretrained(".", num_labels=60, use_mean_pooling=True)
```

`use_mean_pooling=True` belongs to fine-tuning: without it the classifier reads the first token alone. The encoder's
final norm is then left out and `fc_norm` starts fresh, as in VideoMAE.
CROSS_VIEW""",
    ),
    "port": _PORT
    + """\
features = model.features(video)  # float32[1, TOKENS, DIM]
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
    "hf": _hf(
        "VideoMAEForVideoClassification, VideoMAEModel",
        """\
encoder = VideoMAEModel.from_pretrained(".")
features = encoder(**inputs).last_hidden_state  # float32[1, TOKENS, DIM]
classifier = VideoMAEForVideoClassification.from_pretrained(".", num_labels=60, use_mean_pooling=True)
```

There is no decoder in the folder. `use_mean_pooling=True` belongs to fine-tuning: without it the classifier reads the
first token alone. The encoder's final norm is then left out and `fc_norm` starts fresh, as in VideoMAE.
""",
    ),
    "port": _PORT
    + """\
features = model.features(video)  # float32[1, TOKENS, DIM]
```

There is no decoder and no loss in it. The module takes PyTorch 2.0 or newer.""",
}

_FINE_TUNED = {
    "videomae": """\
`videomae.pth` holds `{"model": state_dict}`, tensors only, in the layout of
[MCG-NJU/VideoMAE](https://github.com/MCG-NJU/VideoMAE)'s fine-tuned `vit_*_patch16` models (mean pooling), of the sizes
below. Its scripts build models for 224 x 224 pixels; this one was trained with HEIGHT x WIDTH. In this folder, with
VideoMAE's code on the path:

```python
from functools import partial

import torch
import modeling_finetune  # VideoMAE's

model = modeling_finetune.VisionTransformer(
    img_size=(HEIGHT, WIDTH), patch_size=PATCH, tubelet_size=TUBELET, all_frames=FRAMES, num_classes=CLASSES,
    embed_dim=DIM, depth=DEPTH, num_heads=HEADS, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
)
model.load_state_dict(torch.load("videomae.pth", weights_only=True)["model"])
```

Any PyTorch since 1.6 reads the file.""",
    "hf": _hf(
        "VideoMAEForVideoClassification",
        """\
classifier = VideoMAEForVideoClassification.from_pretrained(".")
classifier.fc_norm.eps = 1e-6  # as trained; transformers sets 1e-5 whatever config.json says
label = classifier.config.id2label[classifier(**inputs).logits.argmax(-1).item()]
```

`pipeline("video-classification", model=".", video_processor=processor)` takes the paths of videos.
""",
    ),
    "port": _PORT
    + """\
logits = model(video)  # float32[1, CLASSES]
features = model.features(video)  # float32[1, TOKENS, DIM]
```

`config.json` names the classes in the order of the logits. The module takes PyTorch 2.0 or newer.""",
}

_CROSS_VIEW = """
The cross-view decoder, which transformers' class has no place for, is in `mv2mae_cross_view.py`:

```python
import torch
from transformers import AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained(".", trust_remote_code=True)
views = torch.zeros(1, 2, FRAMES, 3, HEIGHT, WIDTH)  # two cameras at the same time, processed as above
hidden = torch.rand(1, 2, TOKENS).argsort(-1) < TOKENS // 2  # True: not seen
predicted = model.decode_cross(views[:, 0], hidden[:, 0], views[:, 1:], hidden[:, 1:])
```
"""

_PROCESSOR = """\
**Frames and crops.** Training took FRAMES frames, STRIDE apart, and the largest central box of HEIGHT x WIDTH's shape.
`mv2mae_processor.py` does the same; it takes transformers 5.22 or newer, and neither torchvision nor torchcodec.
Without `trust_remote_code=True`, transformers' own classes choose frames otherwise, and crop SAME."""

_VERSIONS = """\
**Versions of transformers.** The biases of queries and values have their published names, `q_bias` and `v_bias`.
5.0.0 reads these; 5.22.0 and newer rename them on loading; **5.12.0 does neither: it leaves these biases out.**
Look at what `from_pretrained(..., output_loading_info=True)` lists as missing: nothing should be."""

LICENCE = """\
The code, the Python files of this folder included, is Apache-2.0. The weights were trained on the data that README.md
names and are subject to the terms of that data set; many allow academic research only.
"""


def text(run: Any, layout: str, verdict: str) -> str:
    """Markdown with the Hub's front matter. No name is markup, and no path says where on this machine it was.

    Args:
      run: trained_run.TrainedRun.
      layout: one of exporter.FORMATS.
      verdict: how far the files were compared with JAX.
    """
    model, encoder, config = run.model, run.encoder, run.config
    frames, height, width = model.clip_size
    use = (_FINE_TUNED if run.fine_tuned else _ENCODER_ALONE if run.encoder_alone else _PRE_TRAINED)[layout]
    values = {
        "VERSIONS": _VERSIONS,
        "PROCESSOR": _PROCESSOR,
        "CROSS_VIEW": _CROSS_VIEW if run.has_cross_view else "",
        "REPORTED": "  # only `cross_decoder.` is" if run.has_cross_view else "",
        "NORMALIZES": run.has_decoders and run.normalizes_patches,
        "SAME": "alike" if height == width else "a smaller box, where the video is as long as the crop in the same way",
        "STRIDE": config.data.frame_stride,
        "DECODER_HEADS": model.decoder_heads if run.has_decoders else None,
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
    metrics = "\n".join(f"| {cell(name)} | {value:.5g} |" for name, value in sorted(run.metrics.items()))
    settings = "\n".join(f"{key} = {without_folders(value)!r}" for key, value in flatten(config))
    return f"""\
---
{_front_matter(run, layout)}
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

- Data: {code(_data_name(run))}, protocol {code(config.data.protocol)}
- Step: {run.step} of the run {code(without_folders(os.path.abspath(run.workdir)))}, code revision \
{code(run.git_revision)}
{_classes(run)}
| metric at this step | |
|---|---|
{metrics or "| none was reported | |"}

## Licence

{LICENCE}
## Config

Of absolute paths, the last part is given.

{fenced(settings)}
"""


def code(name: str) -> str:
    """A name as inline code: nothing in it is markup, line breaks become spaces."""
    name = " ".join(str(name).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    padding = " " if name.startswith("`") or name.endswith("`") or not name else ""
    return f"{ticks}{padding}{name}{padding}{ticks}"


def cell(name: str) -> str:
    """As `code`, in a table, whose cells end at `|`."""
    return code(name).replace("|", "\\|")


def fenced(text: str) -> str:
    """A block of code; the fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def without_folders(value: Any) -> Any:
    """The last part of an absolute path, also within lists; all else as it is."""
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:[\\/])", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _front_matter(run: Any, layout: str) -> str:
    """YAML; JSON's quoting is also YAML's."""
    entries = {
        "license": "other",
        "license_name": "terms-of-the-data-set",
        "license_link": "LICENSE",
        "library_name": "transformers" if layout == "hf" else "pytorch",
        "pipeline_tag": "video-classification" if run.fine_tuned else "feature-extraction",
        "datasets": [re.sub(r"[^\w.-]+", "-", _data_name(run), flags=re.ASCII).strip("-.") or "unnamed"],
        "tags": ["video", "multi-view", "masked-autoencoder", "mv2mae"],
    }
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in entries.items())


def _data_name(run: Any) -> str:
    """The data set's name where the prepared set can still be read, else that of its folder."""
    folder = directories(run.config.data.dir)[0]  # several sets are of one name
    try:
        prepared = json.loads(pathlib.Path(folder, "prepared.json").read_bytes())
    except (OSError, ValueError):
        prepared = {}
    name = prepared.get("dataset") if isinstance(prepared, dict) else None
    of_folder = without_folders(os.path.abspath(folder)) if folder else "unnamed"
    return of_folder if name in (None, "folder") else name


def _classes(run: Any) -> str:
    """The names of the classes of a fine-tuned run, in the order of the logits."""
    if not run.fine_tuned:
        return ""
    return "- Classes: " + ", ".join(map(code, run.class_names)) + "\n"


def _name(run: Any) -> str:
    """ViT-S and so on, unless the config overrides the sizes of its variant."""
    encoder, variant = run.encoder, variants.VARIANTS[run.config.model.variant]
    same = all(getattr(encoder, size) == getattr(variant, size) for size in ("width", "depth", "num_heads"))
    return f"ViT-{run.config.model.variant}" if same else f"ViT of width {encoder.width} and depth {encoder.depth}"


def _origin(run: Any) -> str:
    if not run.fine_tuned:
        return "Masked autoencoder pre-trained on synchronised multi-view video (arXiv 2401.15900) with mv2mae-jax."
    start = (
        f"the encoder of {code(without_folders(run.config.init_from))}"
        if run.config.init_from
        else "an encoder as initialised"
    )
    return f"Action classifier, fine-tuned from {start} with mv2mae-jax (MV2MAE, arXiv 2401.15900)."


def _target(run: Any, layout: str) -> str:
    """What the decoders predict, in the file at hand."""
    if not run.has_decoders:
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
        return f"its decoders are not exported: {run.left_out}"
    decoders = "self-view and cross-view decoder" if model.cross_view else "self-view decoder"
    return (
        f"{decoders} with {model.decoder_depth} blocks of width {model.decoder_width} and {model.decoder_heads} heads"
    )
