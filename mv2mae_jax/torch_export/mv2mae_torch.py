"""MV2MAE in PyTorch, in one file that needs nothing but torch.

The file holds the encoder, both decoders, the classifier and the motion-weighted loss of *Self-Supervised Video
Pre-Training with Motion-Aware Multi-View Masked Autoencoders* (arXiv 2401.15900). With exported weights, a model gives
the outputs of the JAX model that was exported:

    import mv2mae_torch
    model = mv2mae_torch.load("EXPORTED_FOLDER")  # MV2MAE after pre-training, Classifier after fine-tuning
    features = model.features(video)  # uint8[B, T, H, W, 3] RGB -> float32[B, N, D]
    logits = model(video)  # only for a Classifier -> float32[B, K]

A clip is cut into N tubelets of (t, h, w) pixels, the tokens of the model. Tokens are numbered by (time, row, column).
The P = 3 t h w values of a token are ordered by (t, h, w, c). In shapes, B is the batch, V the number of views,
S = V - 1 the number of source views, K the number of classes and D the width.

Parameters have the names of MCG-NJU/VideoMAE. Those of the cross-view decoder begin with `cross_decoder.`; within its
blocks, cross-attention has the names of naver/croco. After `.to(dtype)` a model computes in this dtype and returns it;
clips stay uint8. torch.compile, torch.export and ONNX accept the models, with any batch size.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load(folder: str) -> "MV2MAE | PretrainedEncoder | Classifier":
    """Loads an exported model on the CPU, in evaluation mode. The file must hold exactly the model's parameters.

    Args:
      folder: of the export, with config.json and model.safetensors.

    Raises:
      ValueError: an export in another format.
    """
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    if "architecture" not in config:
        raise ValueError(f"{folder} holds an export in another format; this function reads that of --format=port.")
    architectures = {"MV2MAE": MV2MAE, "PretrainedEncoder": PretrainedEncoder, "Classifier": Classifier}
    model = architectures[config["architecture"]](**config["model"])
    model.load_state_dict(read_safetensors(pathlib.Path(folder) / "model.safetensors"), strict=True)
    return model.eval()


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Reads the float32 tensors of a .safetensors file, without the library of this name.

    The file is the header's length in 8 bytes, the header in JSON, and the tensors' bytes.
    """
    data = bytearray(pathlib.Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=start + begin)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def patchify(video: Tensor, tubelet_size: tuple[int, int, int]) -> Tensor:
    """Cuts video [..., T, H, W, C] into tokens [..., N, t*h*w*C]."""
    *batch, frames, height, width, channels = video.shape
    t, h, w = tubelet_size
    x = video.reshape(-1, frames // t, t, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(*batch, -1, t * h * w * channels)


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Takes the tokens at some positions: tokens [..., N, P], positions int64[..., M] -> [..., M, P]."""
    return tokens.gather(-2, positions[..., None].expand(*positions.shape, tokens.shape[-1]))


def hidden_positions(visible: Tensor, num_tokens: int) -> Tensor:
    """The positions that are not in `visible`, in ascending order: int64[..., Nv] -> int64[..., N - Nv]."""
    # Visible positions get keys of N and more, so that sorting puts hidden ones first. All keys differ, because ONNX's
    # sort is not stable.
    keys = torch.arange(num_tokens, device=visible.device).expand(*visible.shape[:-1], num_tokens)
    order = keys.scatter(-1, visible, visible + num_tokens).argsort(dim=-1)
    return order[..., : num_tokens - visible.shape[-1]]


def sinusoid_table(num_positions: int, width: int) -> Tensor:
    """Position embeddings float32[num_positions, width].

    Channel j holds the sine (even j) or cosine (odd j) of position / 10000^(2*(j//2)/width).
    """
    channel = torch.arange(width)
    rate = torch.pow(10000.0, 2 * (channel // 2).double() / width)
    angle = torch.arange(num_positions).double()[:, None] / rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class Attention(nn.Module):
    """Self-attention with biases on queries and values only. The rows of `qkv` are queries, keys, values, by head."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(query + self.q_bias, key, value + self.v_bias, self.num_heads))


class CrossAttention(nn.Module):
    """Cross-attention: queries from x [B, Nq, D], keys and values from source [B, Nk, D] -> [B, Nq, D]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width, bias=False)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return self.proj(attend(self.projq(x), self.projk(source), self.projv(source), self.num_heads))


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention: query [B, Nq, D], key [B, Nk, D], value [B, Nk, D] -> [B, Nq, D]."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. With `cross`, cross-attention comes between self-attention and MLP."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, cross: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        if cross:
            self.norm_y = nn.LayerNorm(width, eps=1e-6)
            self.cross_attn = CrossAttention(width, num_heads)
            self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        if source is None:
            return x + self.mlp(self.norm2(x))
        x = x + self.cross_attn(self.norm2(x), self.norm_y(source))
        return x + self.mlp(self.norm3(x))


class PatchEmbed(nn.Module):
    """Linear embedding of each tubelet: float32[B, T, H, W, 3] -> tokens [B, N, D]."""

    def __init__(self, width: int, tubelet_size: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=tubelet_size, stride=tubelet_size)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """ViT over the visible tokens of a clip.

    A classifier has `final_norm=False`, because it normalises the mean of the tokens instead of the tokens.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        tubelet_size: tuple[int, int, int],
        final_norm: bool = True,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(width, tubelet_size)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()

    def forward(self, video: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        video = video.to(self.patch_embed.proj.weight.dtype)  # the model's dtype, e.g. bfloat16
        x = take_tokens(self.patch_embed(video) + positions, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Transformer over visible tokens and mask tokens. It predicts the pixels of the hidden tokens alone.

    Inputs are visible [B, Nv, D], hidden [B, Nh, D] and, with `cross`, source [B, Ns, D]. The output is [B, Nh, P].
    """

    def __init__(self, width: int, depth: int, num_heads: int, mlp_ratio: float, patch_dim: int, cross: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_dim)

    def forward(self, visible: Tensor, hidden: Tensor, source: Tensor | None = None) -> Tensor:
        x = torch.cat([visible, hidden], dim=1)
        for block in self.blocks:
            x = block(x, source)
        return self.head(self.norm(x[:, visible.shape[1] :]))


class CrossDecoder(Decoder):
    """The cross-view decoder, with a projection and mask token of its own. `MV2MAE` holds the self-view decoder's."""

    def __init__(self, encoder_width: int, width: int, *sizes):
        super().__init__(width, *sizes, cross=True)
        self.encoder_to_decoder = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))


def normalize_pixels(video: Tensor, clip_size: tuple[int, int, int]) -> Tensor:
    """Normalises pixels by ImageNet's mean and deviation: uint8[B, T, H, W, 3] RGB -> float32[B, T, H, W, 3].

    Raises:
      ValueError: the clips are not uint8, or their size is not clip_size = (T, H, W).
    """
    if video.dtype != torch.uint8 or tuple(video.shape[1:]) != (*clip_size, 3):
        raise ValueError(
            f"The encoder takes uint8 clips (B, {', '.join(map(str, clip_size))}, 3), got {video.dtype} "
            f"{tuple(video.shape)}. Crop clips to this size; pixels are normalised inside the model."
        )
    mean, std = (torch.tensor(values, device=video.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (video / 255 - mean) / std


def every_position(batch: int, table: Tensor) -> Tensor:
    """int64[batch, N]: the positions 0 to N - 1 for each clip, where `table` is [N, D]."""
    return torch.arange(len(table), device=table.device).expand(batch, -1)


class Classifier(Encoder):
    """VideoMAE's fine-tuned model: the encoder over all tokens, their mean, a norm and a linear head.

    The arguments are those of `model` in config.json. clip_size is (T, H, W) and tubelet_size (t, h, w), in frames and
    pixels.
    """

    def __init__(
        self,
        *,
        clip_size: tuple[int, int, int],
        tubelet_size: tuple[int, int, int],
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_classes: int,
    ):
        super().__init__(width, depth, num_heads, mlp_ratio, tuple(tubelet_size), final_norm=False)
        self.clip_size = tuple(clip_size)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        num_tokens = math.prod(c // t for c, t in zip(clip_size, tubelet_size, strict=True))
        self.register_buffer("positions", sinusoid_table(num_tokens, width), persistent=False)

    def features(self, video: Tensor) -> Tensor:
        """The encoder's tokens, before the mean: uint8[B, T, H, W, 3] RGB -> float32[B, N, D]."""
        everything = every_position(video.shape[0], self.positions)
        return super().forward(normalize_pixels(video, self.clip_size), everything, self.positions)

    def forward(self, video: Tensor) -> Tensor:
        """Logits of the classes: uint8[B, T, H, W, 3] RGB -> float32[B, K]."""
        return self.head(self.fc_norm(self.features(video).mean(dim=1)))


class PretrainedEncoder(nn.Module):
    """The encoder of a pre-training run whose decoder is not exported, as for a joint decoder.

    The arguments are those of `model` in config.json. clip_size is (T, H, W) and tubelet_size (t, h, w), in frames and
    pixels.
    """

    def __init__(
        self,
        *,
        clip_size: tuple[int, int, int],
        tubelet_size: tuple[int, int, int],
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
    ):
        super().__init__()
        self.clip_size, self.tubelet_size = tuple(clip_size), tuple(tubelet_size)
        self.num_tokens = math.prod(c // t for c, t in zip(clip_size, tubelet_size, strict=True))
        self.encoder = Encoder(width, depth, num_heads, mlp_ratio, self.tubelet_size)
        self.register_buffer("encoder_positions", sinusoid_table(self.num_tokens, width), persistent=False)

    def features(self, video: Tensor) -> Tensor:
        """The encoder's tokens, all of them visible: uint8[B, T, H, W, 3] RGB -> float32[B, N, D]."""
        return self.encode(video, every_position(video.shape[0], self.encoder_positions))

    def encode(self, video: Tensor, visible: Tensor) -> Tensor:
        """Encodes the visible tokens alone: uint8[B, T, H, W, 3] RGB, positions int64[B, Nv] -> float32[B, Nv, D]."""
        return self.encoder(normalize_pixels(video, self.clip_size), visible, self.encoder_positions)


class MV2MAE(PretrainedEncoder):
    """The pre-trained model: one encoder, a self-view decoder and, with `cross_view`, a cross-view decoder.

    The self-view decoder reconstructs a view from the view's own visible tokens. The cross-view decoder reconstructs
    the target view from its own visible tokens and those of the source views.

    The arguments are those of `model` in config.json. clip_size is (T, H, W) and tubelet_size (t, h, w), in frames and
    pixels.
    """

    def __init__(
        self,
        *,
        clip_size: tuple[int, int, int],
        tubelet_size: tuple[int, int, int],
        width: int,
        depth: int,
        num_heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        mlp_ratio: float,
        cross_view: bool,
    ):
        sizes = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        super().__init__(clip_size=clip_size, tubelet_size=tubelet_size, **sizes)
        decoder = (decoder_depth, decoder_heads, mlp_ratio, 3 * math.prod(tubelet_size))
        self.encoder_to_decoder = nn.Linear(width, decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder = Decoder(decoder_width, *decoder)
        self.cross_decoder = CrossDecoder(width, decoder_width, *decoder) if cross_view else None
        self.register_buffer("decoder_positions", sinusoid_table(self.num_tokens, decoder_width), persistent=False)

    def decode_self(self, latents: Tensor, visible: Tensor) -> Tensor:
        """Predicts the hidden tokens of a view from the view itself.

        Args:
          latents: float32[B, Nv, D], the encoder's output.
          visible: int64[B, Nv], the positions of these tokens.

        Returns:
          float32[B, N - Nv, P], the hidden tokens in ascending order of their positions.
        """
        hidden = hidden_positions(visible, self.num_tokens)
        table = self.decoder_positions
        return self.decoder(self.encoder_to_decoder(latents) + table[visible], self.mask_token + table[hidden])

    def decode_cross(self, latents: Tensor, visible: Tensor, source_latents: Tensor, source_visible: Tensor) -> Tensor:
        """Predicts the hidden tokens of the target view from the target and the source views.

        Args:
          latents: float32[B, Nv, D], the encoder's output for the target view.
          visible: int64[B, Nv], the positions of these tokens.
          source_latents: float32[B, S, Ns, D], the encoder's output for each source view.
          source_visible: int64[B, S, Ns], the positions of these tokens.

        Returns:
          float32[B, N - Nv, P], the hidden tokens in ascending order of their positions.
        """
        hidden = hidden_positions(visible, self.num_tokens)
        decoder, table = self.cross_decoder, self.decoder_positions
        target = decoder.encoder_to_decoder(latents) + table[visible]
        source = decoder.encoder_to_decoder(source_latents.flatten(1, 2)) + table[source_visible.flatten(1, 2)]
        return decoder(target, decoder.mask_token + table[hidden], source)

    def forward(self, video: Tensor, target_visible: Tensor, source_visible: Tensor) -> dict[str, Tensor | None]:
        """Reconstructs the hidden tokens of every view.

        Args:
          video: uint8[B, V, T, H, W, 3] RGB. View 0 is the target, and the other S = V - 1 views are sources.
          target_visible: int64[B, Nv], the positions of the target view that the encoder sees.
          source_visible: int64[B, S, Ns], those of each source view. S may be 0 if there is no cross-view decoder.

        Returns:
          Predictions as the loss's target defines them (see `targets`):
          self_target: float32[B, N - Nv, P], the target view from itself.
          self_source: float32[B, S, N - Ns, P], each source view from itself; None without source views.
          cross: float32[B, N - Nv, P], the target view from all views; None without a cross-view decoder.
        """
        batch, num_sources = source_visible.shape[:2]
        target_latents = self.encode(video[:, 0], target_visible)
        outputs = {"self_target": self.decode_self(target_latents, target_visible), "self_source": None, "cross": None}
        if num_sources:
            flat_visible = source_visible.flatten(0, 1)
            source_latents = self.encode(video[:, 1:].flatten(0, 1), flat_visible)
            self_source = self.decode_self(source_latents, flat_visible)
            outputs["self_source"] = self_source.unflatten(0, (batch, num_sources))
        if self.cross_decoder is not None:
            per_view = source_latents.unflatten(0, (batch, num_sources))
            outputs["cross"] = self.decode_cross(target_latents, target_visible, per_view, source_visible)
        return outputs

    def loss(
        self,
        video: Tensor,
        target_visible: Tensor,
        source_visible: Tensor,
        *,
        target: str,
        cross_weight: float,
        temperature: float | None = None,
        ess_fraction: float | None = None,
        pixel_range: float = 255.0,
        weighted_views: str = "all",
    ) -> Tensor:
        """The loss of pre-training: the self-view losses of all views, plus cross_weight times the cross-view loss.

        Args:
          video, target_visible, source_visible: as in `forward`.
          target: 'pixels' or 'normalized_pixels', see `targets`.
          cross_weight: weight of the cross-view loss.
          temperature, ess_fraction, pixel_range: see `motion_weights`.
          weighted_views: 'all', or 'target' to weight the tokens of source views equally.

        Settings from `target` on are those of `loss` in config.json.
        """
        predictions = self(video, target_visible, source_visible)
        patches = patchify(video, self.tubelet_size)
        weights = motion_weights(
            motion_energy(video, self.tubelet_size),
            temperature=temperature,
            ess_fraction=ess_fraction,
            pixel_range=pixel_range,
        )

        if weighted_views == "target":
            weights[:, 1:] = 1

        def measure(prediction: Tensor, views: slice | int, seen: Tensor) -> Tensor:
            hidden = hidden_positions(seen, self.num_tokens)
            wanted = targets(take_tokens(patches[:, views], hidden), target)
            return reconstruction_loss(prediction, wanted, weights[:, views].gather(-1, hidden))

        loss = measure(predictions["self_target"], 0, target_visible)
        if predictions["self_source"] is not None:
            loss = loss + source_visible.shape[1] * measure(predictions["self_source"], slice(1, None), source_visible)
        if predictions["cross"] is not None:
            loss = loss + cross_weight * measure(predictions["cross"], 0, target_visible)
        return loss


def motion_energy(video: Tensor, tubelet_size: tuple[int, int, int]) -> Tensor:
    """Motion energy of each token: uint8[..., T, H, W, 3] -> float32[..., N].

    The energy is the norm, over a token's pixels, of the difference between each frame and the frame before. The first
    frame takes the difference of the second.
    """
    video = video.float()
    difference = video.diff(dim=-4)
    difference = torch.cat([difference.narrow(-4, 0, 1), difference], dim=-4)
    return patchify(difference, tubelet_size).norm(dim=-1)


def motion_weights(
    motion: Tensor, *, temperature: float | None = None, ess_fraction: float | None = None, pixel_range: float = 255.0
) -> Tensor:
    """Weight of each token: a softmax of its motion energy over all tokens of the clip, rescaled to mean 1.

    Exactly one of `temperature` and `ess_fraction` is given.

    Args:
      motion: float32[..., N], the energies of `motion_energy`.
      temperature: t of softmax(motion / t), for a norm over pixels that span `pixel_range`.
      ess_fraction: solve t for each clip, so that the effective number of tokens, (sum w)^2 / sum w^2, is this
        fraction of N. `pixel_range` then has no effect.
      pixel_range: range of the pixels for which `temperature` is meant, 255 or 1.

    Returns:
      float32[..., N], mean 1 over the last axis.
    """
    if (temperature is None) == (ess_fraction is None):
        raise ValueError(f"Give either temperature ({temperature}) or ess_fraction ({ess_fraction}).")
    num_tokens = motion.shape[-1]
    if ess_fraction is None:
        return num_tokens * F.softmax(motion * (pixel_range / 255 / temperature), dim=-1)
    below_max = motion - motion.amax(-1, keepdim=True)
    # Energies are scaled to [-1, 0]. Bisection then finds the logarithm of 1 / temperature.
    below_max = below_max / (-below_max.amin(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).tiny)
    low = torch.full_like(motion[..., :1], math.log(1e-3))
    high = torch.full_like(low, math.log(1e9))
    for _ in range(40):
        middle = (low + high) / 2
        weights = num_tokens * F.softmax(middle.exp() * below_max, dim=-1)
        too_flat = weights.square().mean(-1, keepdim=True).reciprocal() > ess_fraction
        low, high = torch.where(too_flat, middle, low), torch.where(too_flat, high, middle)
    return num_tokens * F.softmax(((low + high) / 2).exp() * below_max, dim=-1)


def targets(patches: Tensor, kind: str) -> Tensor:
    """The values that the decoders are to predict: patches uint8[..., P] -> float32[..., P].

    Args:
      patches: the pixels of tokens.
      kind: 'pixels' are normalised by ImageNet's mean and deviation, 'normalized_pixels' by the mean and deviation of
        the token's own values of each colour.
    """
    pixels = patches.unflatten(-1, (-1, 3)) / 255
    if kind == "pixels":
        mean, std = (torch.tensor(values, device=patches.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((pixels - mean) / std).flatten(-2)
    if kind == "normalized_pixels":
        return ((pixels - pixels.mean(-2, keepdim=True)) / (pixels.std(-2, keepdim=True) + 1e-6)).flatten(-2)
    raise ValueError(f"Unknown target {kind!r}. Choose 'pixels' or 'normalized_pixels'.")


def reconstruction_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens of weight times squared error, which is averaged over a token's values.

    Args:
      prediction, target: float32[..., M, P].
      weights: float32[..., M].

    Returns:
      float32[].
    """
    return (weights * (prediction - target).square().mean(-1)).mean()
