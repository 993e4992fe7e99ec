"""SSFER's first stage (Song et al., 3.2): a masked autoencoder on any plain ViT of timm. ALGORITHMS.md 8.1.

Deviations: pixels enter with the statistics that every network here uses, not the paper's own, so that stages 2 and 3
go on with the weights as they are; targets are normalised per patch (the paper's text; its script leaves that off).
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from learner import draws
from learner.augment import Augmenter
from learner.config import AugmentConfig, Part
from learner.draws import Rows
from learner.errors import InputError
from learner.transfer import send

FLAT = 1e-6  # added to the variance of a patch
_MASK, _MEASURE = 52, 53  # purposes of draws


class MaeConfig(Part):
    """What masked autoencoding adds to a run's settings; the encoder is the run's backbone."""

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that the encoder does not see")
    norm_pix: bool = Field(True, description="reconstruct every patch at mean 0 and variance 1")
    min_area: float = Field(0.2, gt=0, le=1, description="smallest crop as a share of the face's area")
    decoder_dim: int = Field(512, ge=4)
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)


@dataclass(frozen=True, slots=True)
class Masking:
    """Which of N patches are seen: kept (B,k) their places, restore (B,N) where each place stands, masked (B,N) bool.

    `restore` counts the kept patches first, in their order, then the masked ones.
    """

    kept: Tensor
    restore: Tensor
    masked: Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images (B,C,H,W) into patches (B, H/p * W/p, p*p*C): row by row, channels innermost.

    Raises:
        InputError: the patch does not divide the sides.
    """
    count, channels, height, width = images.shape
    if height % patch or width % patch:
        raise InputError(
            f"images of {height}×{width} do not divide into patches of {patch}; choose another size or patch"
        )
    cells = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, channels: int = 3) -> Tensor:
    """Put the patches (B,N,p*p*C) of square images together again: (B,C,H,W)."""
    count, number, _ = patches.shape
    grid = math.isqrt(number)
    cells = patches.reshape(count, grid, grid, patch, patch, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(count, channels, grid * patch, grid * patch)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B,N,1) of patches (B,N,D): unbiased, with `FLAT` under the root."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return mean, (variance + FLAT).sqrt()


def normalise_patches(patches: Tensor) -> Tensor:
    """Bring every patch of (B,N,D) to mean 0 and variance 1 (8.1 b)."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def count_kept(num_patches: int, mask_ratio: float) -> int:
    """Return how many patches stay visible: the rest of the masked share, rounded down.

    Raises:
        InputError: nothing would be visible.
    """
    kept = math.floor(num_patches * (1 - mask_ratio) + 1e-9)
    if kept < 1:
        raise InputError(
            f"masking {mask_ratio} of {num_patches} patches leaves none to see; lower mask_ratio or use smaller patches"
        )
    return min(kept, num_patches - 1)


def mask_patches(noise: Tensor, kept: int) -> Masking:
    """Keep the `kept` patches with the least noise of (B,N); ties go to the lower place."""
    order = noise.argsort(dim=1, stable=True)
    masked = torch.ones_like(noise, dtype=torch.bool).scatter_(1, order[:, :kept], False)
    return Masking(order[:, :kept], order.argsort(dim=1), masked)


def patch_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of every patch, (B,N), of predictions and targets (B,N,D)."""
    return (prediction.float() - target.float()).square().mean(dim=-1)


def masked_loss(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Return the mean error of the masked patches (8.1 b); visible ones do not count, whatever is predicted there."""
    errors = torch.where(masked, patch_errors(prediction, target), 0.0)
    return errors.sum() / masked.sum().clamp(min=1)


def normalise(faces: Tensor) -> Tensor:
    """Turn faces uint8 (B,3,s,s) into the float32 that every network here reads."""
    return Augmenter(AugmentConfig(), faces.shape[-1], 0, faces.device).normalise(faces)


class MaskedAutoencoder(nn.Module):
    """A ViT that sees the kept patches, and a light decoder that fills in the masked ones.

    Positions are fixed sines and cosines in both (8.1 a); an encoder that brought weights (`fresh` False) keeps the
    positions that came with them, fixed as well.
    """

    def __init__(self, vit: nn.Module, config: MaeConfig, fresh: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = check_vit(vit)
        fix_positions(self.encoder, fresh)
        if fresh:
            start_weights(self.encoder)
        self.patch = int(self.encoder.patch_embed.patch_size[0])
        self.num_patches = int(self.encoder.patch_embed.num_patches)
        self.kept = count_kept(self.num_patches, config.mask_ratio)
        self.decoder = Decoder(self.encoder, config)
        start_weights(self.decoder)

    def forward(self, images: Tensor, masking: Masking) -> Tensor:
        """Predict the patches (B,N,p*p*3) of normalised images (B,3,s,s), visible ones too.

        Raises:
            InputError: the images have another size than the encoder was made for.
        """
        sides = tuple(images.shape[2:])
        if sides != tuple(self.encoder.patch_embed.img_size):
            raise InputError(f"the encoder reads {self.encoder.patch_embed.img_size}, not {sides}: resize the faces")
        tokens = self.encoder._pos_embed(self.encoder.patch_embed(images))
        prefix = self.encoder.num_prefix_tokens
        seen = tokens[:, prefix:].gather(1, masking.kept[..., None].expand(-1, -1, tokens.shape[2]))
        encoded = self.encoder.norm_pre(torch.cat([tokens[:, :prefix], seen], dim=1))
        prediction: Tensor = self.decoder(self.encoder.norm(self.encoder.blocks(encoded)), masking)
        return prediction

    def targets(self, images: Tensor) -> Tensor:
        """Return what the patches (B,N,p*p*3) of normalised images (B,3,s,s) should be predicted as."""
        patches = patchify(images.float(), self.patch)
        return normalise_patches(patches) if self.config.norm_pix else patches


class Decoder(nn.Module):
    """Transformer blocks on the encoded patches and a learned token at every masked place."""

    def __init__(self, vit: VisionTransformer, config: MaeConfig) -> None:
        super().__init__()
        dim, heads = config.decoder_dim, config.decoder_heads
        if dim % 4 or dim % heads:
            raise InputError(f"decoder_dim {dim} must be a multiple of 4 and of decoder_heads {heads}")
        self.prefix = int(vit.num_prefix_tokens)
        self.positions: Tensor
        self.embed = nn.Linear(vit.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos(vit, dim), persistent=False)
        self.blocks = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(config.decoder_depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vit.patch_embed.patch_size[0] ** 2 * 3)

    def forward(self, encoded: Tensor, masking: Masking) -> Tensor:
        """Map prefix tokens and kept patches (B,P+k,d) to all patches (B,N,p*p*3)."""
        x = self.embed(encoded)
        count, missing = len(x), int(masking.masked.shape[1] - masking.kept.shape[1])
        filled = torch.cat([x[:, self.prefix :], self.mask_token.to(x.dtype).expand(count, missing, -1)], dim=1)
        filled = filled.gather(1, masking.restore[..., None].expand(-1, -1, x.shape[2])) + self.positions
        y = self.blocks(torch.cat([x[:, : self.prefix], filled], dim=1))
        prediction: Tensor = self.head(self.norm(y[:, self.prefix :]))
        return prediction


class PatchMap(nn.Module):
    """The encoder alone: normalised images (B,3,s,s) to its patch tokens as a map (B,C,h,w)."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.backbone = vit

    def forward(self, images: Tensor) -> Tensor:
        """Return the last tokens of all patches, in place."""
        tokens: Tensor = self.backbone.forward_features(images)[:, self.backbone.num_prefix_tokens :]
        return tokens.transpose(1, 2).reshape(len(tokens), -1, *self.backbone.patch_embed.grid_size)


def check_vit(vit: nn.Module) -> VisionTransformer:
    """Return a ViT that can be masked: square patches that do not overlap, a width that sines and cosines divide.

    Raises:
        InputError: this one cannot; the message says why.
    """
    name = type(vit).__name__
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_embed, PatchEmbed):
        raise InputError(f"{name} cannot be masked by patches; name a plain ViT of timm, such as vit_tiny_patch16_224")
    sides, patches = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if sides[0] % patches[0] or sides[0] != sides[1] or patches[0] != patches[1]:
        raise InputError(f"image size {sides[0]} is no multiple of patch {patches[0]}: choose another size or patch")
    if vit.embed_dim % 4:
        raise InputError(f"a ViT of width {vit.embed_dim} has no sine-cosine positions: choose a multiple of 4")
    return vit


def sincos(vit: VisionTransformer, dim: int) -> Tensor:
    """Return the fixed positions (1,N,dim) of a ViT's patches."""
    table: Tensor = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim)
    return table[None]


@torch.no_grad()
def fix_positions(vit: VisionTransformer, fresh: bool) -> None:
    """Freeze a ViT's positions; a fresh one's become sines and cosines, none for class and register tokens.

    Raises:
        InputError: it has no absolute positions.
    """
    positions = vit.pos_embed
    if positions is None:
        raise InputError("this ViT has no absolute positions; name a plain one, such as vit_tiny_patch16_224")
    positions.requires_grad_(False)
    if fresh:
        table = sincos(vit, vit.embed_dim)
        positions.zero_()
        positions[:, -table.shape[1] :] = table


@torch.no_grad()
def start_weights(module: nn.Module) -> None:
    """Draw first weights as masked autoencoders do: Xavier uniform, also for the patches; tokens normal .02."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, PatchEmbed):
            nn.init.xavier_uniform_(part.proj.weight.view(len(part.proj.weight), -1))
    for name in ("cls_token", "reg_token", "mask_token"):
        token = getattr(module, name, None)
        if token is not None:
            nn.init.normal_(token, std=0.02)


class MaskedAutoencoding:
    """The objective: reconstruct the masked patches of a random crop. View and mask depend on (seed, step, row)."""

    def __init__(self, vit: nn.Module, config: MaeConfig, seed: int, device: torch.device, fresh: bool = True) -> None:
        self.config, self.seed = config, seed
        self._autoencoder = MaskedAutoencoder(vit, config, fresh).to(device)
        self.network: nn.Module = self._autoencoder
        size = int(self._autoencoder.encoder.patch_embed.img_size[0])
        views = AugmentConfig(crop_area=config.min_area, crop_padding=0)
        self._augmenter = Augmenter(views, size, seed, device)

    def view(self, faces: Tensor, rows: Rows, step: int) -> Tensor:
        """Return one crop of each face uint8 (B,3,s,s), normalised."""
        return self._augmenter.weak(faces, rows, step)

    def loss(self, faces: Tensor, rows: Rows, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of faces uint8 (B,3,s,s), and which share of the masked patches' variance is explained."""
        network = self._autoencoder
        view = self.view(faces, rows, step)
        noise = send(draws.uniform(self.seed, step, rows, _MASK, network.num_patches), faces.device)
        masking = mask_patches(noise, network.kept)
        target = network.targets(view)
        loss = masked_loss(network(view, masking), target, masking.masked)
        nothing = masked_loss(torch.zeros_like(target), target, masking.masked)
        return loss, {"explained": 1 - loss.detach() / nothing.clamp(min=FLAT)}

    def encoder(self, network: nn.Module) -> nn.Module:
        """Return the encoder of (a copy of) the network, on whole faces."""
        if not isinstance(network, MaskedAutoencoder):
            raise TypeError(f"not a masked autoencoder: {type(network).__name__}")
        return PatchMap(network.encoder)


def turning_masks(
    network: MaskedAutoencoder, rows: Rows, seed: int, rounds: int, device: torch.device
) -> list[Masking]:
    """Return maskings of rows (B,) that together mask every patch, each about equally often.

    A random order of the patches is turned on from round to round; at 75 % and 4 rounds each is masked exactly thrice.
    """
    number, kept = network.num_patches, network.kept
    rounds = max(rounds, math.ceil(number / (number - kept)))
    noise = draws.uniform(seed, 0, rows, _MEASURE, number)
    rank = noise.argsort(axis=1, kind="stable").argsort(axis=1)
    turned = [(rank - turn * number // rounds) % number for turn in range(rounds)]
    return [mask_patches(send(part, device), kept) for part in turned]


@torch.no_grad()
def reconstruction_errors(
    network: MaskedAutoencoder, faces: Tensor, rows: Rows, seed: int = 0, rounds: int = 4, batch: int = 64
) -> tuple[Tensor, Tensor]:
    """Measure how badly each face uint8 (n,3,s,s) is reconstructed where it is masked: (n,) and per patch (n,N).

    A hint at quality and at what is no face (8.1 e), in the units of the loss; a flat image is easy to fill in, so low
    does not mean a face. Every patch is masked at least once, and its error is the mean over those rounds; a face's is
    the mean over its patches.
    """
    training = network.training
    network.eval()
    device = network.decoder.mask_token.device
    found = []
    for start in range(0, len(faces), batch):
        here = slice(start, start + batch)
        images = normalise(faces[here].to(device))
        target = network.targets(images)
        total = torch.zeros(target.shape[:2], device=device)
        times = torch.zeros_like(total)
        for masking in turning_masks(network, rows[here], seed, rounds, device):
            errors = patch_errors(network(images, masking), target)
            total += torch.where(masking.masked, errors, 0.0)
            times += masking.masked
        found.append(total / times)
    network.train(training)
    per_patch = torch.cat(found) if found else torch.zeros(0, network.num_patches, device=device)
    return per_patch.mean(dim=1), per_patch
