"""MV2MAE in PyTorch, in one file that needs nothing but torch.

Encoder, both decoders, classifier and the motion-weighted loss of *Self-Supervised Video Pre-Training with Motion-Aware
Multi-View Masked Autoencoders* (arXiv 2401.15900), with the outputs of the JAX model that was exported:

    import mv2mae_torch
    model = mv2mae_torch.load("EXPORTED_FOLDER")  # MV2MAE after pre-training, Classifier after fine-tuning
    features = model.features(video)  # uint8[B, T, H, W, 3] RGB -> float32[B, N, D]
    logits = model(video)  # of a Classifier: float32[B, K]

Parameters are named as in MCG-NJU/VideoMAE; the cross-view decoder's follow naver/croco under `cross_decoder.`.
Positions of tokens are flat over (time, row, column), the pixels of a token over (t, h, w, c). After `.to(dtype)` a
model computes and answers in that dtype; clips stay uint8. torch.compile, torch.export and ONNX take it, for any batch
size.
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
    """The exported model, in evaluation mode, on the CPU. Every weight must be there and none may be left over."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    architectures = {"MV2MAE": MV2MAE, "PretrainedEncoder": PretrainedEncoder, "Classifier": Classifier}
    model = architectures[config["architecture"]](**config["model"])
    model.load_state_dict(read_safetensors(pathlib.Path(folder) / "model.safetensors"), strict=True)
    return model.eval()


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Reads float32 tensors from a .safetensors file without its library: a length, a JSON header, the numbers."""
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
    """video [..., T, H, W, C] -> tokens [..., N, t*h*w*C]."""
    *batch, frames, height, width, channels = video.shape
    t, h, w = tubelet_size
    x = video.reshape(-1, frames // t, t, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(*batch, -1, t * h * w * channels)


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """tokens [..., N, P] at positions int64[..., K] -> [..., K, P]."""
    return tokens.gather(-2, positions[..., None].expand(*positions.shape, tokens.shape[-1]))


def hidden_positions(visible: Tensor, num_tokens: int) -> Tensor:
    """The positions, ascending, that are not among `visible` int64[..., K] -> int64[..., N - K]."""
    # Distinct keys, the hidden positions' first: no sort need be stable, which ONNX's is not.
    keys = torch.arange(num_tokens, device=visible.device).expand(*visible.shape[:-1], num_tokens)
    order = keys.scatter(-1, visible, visible + num_tokens).argsort(dim=-1)
    return order[..., : num_tokens - visible.shape[-1]]


def sinusoid_table(num_positions: int, width: int) -> Tensor:
    """float32[num_positions, width]: angle pos / 10000^(2*(j//2)/width), sine on even j, cosine on odd j."""
    channel = torch.arange(width)
    rate = torch.pow(10000.0, 2 * (channel // 2).double() / width)
    angle = torch.arange(num_positions).double()[:, None] / rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class Attention(nn.Module):
    """Self-attention with biases on q and v only; rows of `qkv` are q, k, v, each head by head."""

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
    """Queries from x [B, Nq, D], keys and values from source [B, Nk, D] -> [B, Nq, D]."""

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
    """[B, Nq, D], [B, Nk, D], [B, Nk, D] -> [B, Nq, D]."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; with `cross`, cross-attention stands between self-attention and MLP."""

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
    """float32[B, T, H, W, 3] -> tokens [B, N, D]."""

    def __init__(self, width: int, tubelet_size: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=tubelet_size, stride=tubelet_size)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video.permute(0, 4, 1, 2, 3)).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """ViT over the visible tokens of a clip; a classifier norms what it pools instead of the tokens."""

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
        video = video.to(self.patch_embed.proj.weight.dtype)  # of the model, bfloat16 for example
        x = take_tokens(self.patch_embed(video) + positions, visible)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """Blocks over [visible tokens, mask tokens]; only the mask tokens' outputs are predicted."""

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
    """The cross-view decoder with a projection and a mask token of its own; the self-view ones stand in `MV2MAE`."""

    def __init__(self, encoder_width: int, width: int, *sizes):
        super().__init__(width, *sizes, cross=True)
        self.encoder_to_decoder = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))


def normalize_pixels(video: Tensor, clip_size: tuple[int, int, int]) -> Tensor:
    """uint8[B, T, H, W, 3] RGB of (T, H, W) = clip_size -> float32, by ImageNet's statistics."""
    if video.dtype != torch.uint8 or tuple(video.shape[1:]) != (*clip_size, 3):
        raise ValueError(
            f"The encoder takes uint8 clips (B, {', '.join(map(str, clip_size))}, 3), got {video.dtype} "
            f"{tuple(video.shape)}. Crop clips to this size; pixels are normalised inside the model."
        )
    mean, std = (torch.tensor(values, device=video.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (video / 255 - mean) / std


def every_position(batch: int, table: Tensor) -> Tensor:
    """int64[batch, N]: all rows of a table of positions [N, D], in order."""
    return torch.arange(len(table), device=table.device).expand(batch, -1)


class Classifier(Encoder):
    """Clip -> logits: the encoder over all tokens, their mean, a norm, a linear head; VideoMAE's fine-tuned model.

    Arguments as config.json's `model`: clip_size (T, H, W) and tubelet_size (t, h, w) in pixels.
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
        """uint8[B, T, H, W, 3] RGB -> float32[B, N, D], before their mean."""
        everything = every_position(video.shape[0], self.positions)
        return super().forward(normalize_pixels(video, self.clip_size), everything, self.positions)

    def forward(self, video: Tensor) -> Tensor:
        """uint8[B, T, H, W, 3] RGB -> logits float32[B, K]."""
        return self.head(self.fc_norm(self.features(video).mean(dim=1)))


class PretrainedEncoder(nn.Module):
    """The encoder of a run whose decoder is not exported. Arguments as config.json's `model`, sizes in pixels."""

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
        """uint8[B, T, H, W, 3] RGB -> float32[B, N, D], every token visible."""
        return self.encode(video, every_position(video.shape[0], self.encoder_positions))

    def encode(self, video: Tensor, visible: Tensor) -> Tensor:
        """uint8[B, T, H, W, 3] RGB, int64[B, Nv] -> float32[B, Nv, D] from the visible tokens alone."""
        return self.encoder(normalize_pixels(video, self.clip_size), visible, self.encoder_positions)


class MV2MAE(PretrainedEncoder):
    """Arguments as config.json's `model`: clip_size (T, H, W) and tubelet_size (t, h, w) in pixels."""

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
        """Latents [B, Nv, D] of the visible tokens -> float32[B, N - Nv, P], the hidden tokens in ascending order."""
        hidden = hidden_positions(visible, self.num_tokens)
        table = self.decoder_positions
        return self.decoder(self.encoder_to_decoder(latents) + table[visible], self.mask_token + table[hidden])

    def decode_cross(self, latents: Tensor, visible: Tensor, source_latents: Tensor, source_visible: Tensor) -> Tensor:
        """As `decode_self`, with the sources' [B, S, Ns, D] at int64[B, S, Ns]."""
        hidden = hidden_positions(visible, self.num_tokens)
        decoder, table = self.cross_decoder, self.decoder_positions
        target = decoder.encoder_to_decoder(latents) + table[visible]
        source = decoder.encoder_to_decoder(source_latents.flatten(1, 2)) + table[source_visible.flatten(1, 2)]
        return decoder(target, decoder.mask_token + table[hidden], source)

    def forward(self, video: Tensor, target_visible: Tensor, source_visible: Tensor) -> dict[str, Tensor | None]:
        """Reconstructs the hidden tokens of every view.

        Args:
          video: uint8[B, V, T, H, W, 3] RGB; view 0 is the target, the S = V - 1 others are sources.
          target_visible: int64[B, Nv]; source_visible: int64[B, S, Ns]: positions that the encoder sees. S may be 0
            where there is no cross-view decoder.

        Returns:
          self_target float32[B, N - Nv, P], self_source float32[B, S, N - Ns, P] (None without sources), cross
          float32[B, N - Nv, P] (None without a cross-view decoder), in the space of the loss's target.
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
        """Self-view loss of every view + cross_weight * cross-view loss; settings as config.json's `loss`."""
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
    """uint8[..., T, H, W, 3] -> float32[..., N]: norm of the differences between neighbouring frames, per token.

    The first frame takes the second's difference.
    """
    video = video.float()
    difference = video.diff(dim=-4)
    difference = torch.cat([difference.narrow(-4, 0, 1), difference], dim=-4)
    return patchify(difference, tubelet_size).norm(dim=-1)


def motion_weights(
    motion: Tensor,
    *,
    temperature: float | None = None,
    ess_fraction: float | None = None,
    pixel_range: float = 255.0,
) -> Tensor:
    """softmax(motion / temperature) over all tokens of a clip, scaled to mean 1: float32[..., N] -> float32[..., N].

    With `ess_fraction` the temperature is solved per clip, so that the effective number of tokens
    (sum w)^2 / sum w^2 is this fraction of N.
    """
    if (temperature is None) == (ess_fraction is None):
        raise ValueError(f"Give either temperature ({temperature}) or ess_fraction ({ess_fraction}).")
    num_tokens = motion.shape[-1]
    if ess_fraction is None:
        return num_tokens * F.softmax(motion * (pixel_range / 255 / temperature), dim=-1)
    below_max = motion - motion.amax(-1, keepdim=True)
    below_max = below_max / (-below_max.amin(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).tiny)
    low = torch.full_like(motion[..., :1], math.log(1e-3))  # log of 1 / temperature, energies on [-1, 0]
    high = torch.full_like(low, math.log(1e9))
    for _ in range(40):
        middle = (low + high) / 2
        weights = num_tokens * F.softmax(middle.exp() * below_max, dim=-1)
        too_flat = weights.square().mean(-1, keepdim=True).reciprocal() > ess_fraction
        low, high = torch.where(too_flat, middle, low), torch.where(too_flat, high, middle)
    return num_tokens * F.softmax(((low + high) / 2).exp() * below_max, dim=-1)


def targets(patches: Tensor, kind: str) -> Tensor:
    """uint8[..., P] -> float32[..., P]: 'pixels' by ImageNet's statistics, 'normalized_pixels' by each patch's own."""
    pixels = patches.unflatten(-1, (-1, 3)) / 255
    if kind == "pixels":
        mean, std = (torch.tensor(values, device=patches.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((pixels - mean) / std).flatten(-2)
    if kind == "normalized_pixels":
        return ((pixels - pixels.mean(-2, keepdim=True)) / (pixels.std(-2, keepdim=True) + 1e-6)).flatten(-2)
    raise ValueError(f"Unknown target {kind!r}. Choose 'pixels' or 'normalized_pixels'.")


def reconstruction_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens of weight * squared error, the error a mean over a token's values: [..., M, P] -> []."""
    return (weights * (prediction - target).square().mean(-1)).mean()
