"""Pictures of what a masked autoencoder makes of faces: what it saw, what it filled in, and how wrong that is.

The pictures flatter a model that normalises pixels: its prediction of a masked patch says nothing of brightness and
contrast, so mean and deviation of the true patch are put back for display. A constant prediction therefore shows the
true patch's mean colour.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale

from learner import checkpoint, draws
from learner.augment import MEAN, STD
from learner.errors import InputError
from learner.models import make_backbone
from learner.pretrain.config import PretrainConfig
from learner.pretrain.mae import (
    MaskedAutoencoder,
    count_kept,
    mask_patches,
    normalise,
    patch_errors,
    patch_statistics,
    patchify,
    unpatchify,
)
from learner.transfer import send

RATIOS = (0.75, 0.9)
MOST = 8  # faces that a run draws
ERROR_TOP = 2.0  # brightest error; predicting a normalised patch's mean costs 1
_PURPOSE = 54
_GAP, _HEAD, _HIDDEN = 4, 22, 128
_FOLDER, _FACES = "pictures", "faces.npy"
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Faces seen by a masked autoencoder: uint8 (n,s,s,3), errors float32 (n,N), hidden bool (n,N)."""

    original: U8
    masked: U8
    pasted: U8
    errors: NDArray[np.float32]
    hidden: NDArray[np.bool_]


@torch.no_grad()
def reconstruct(network: MaskedAutoencoder, faces: U8, mask_ratio: float, seed: int = 0) -> Reconstruction:
    """Mask faces uint8 (n,s,s,3) and fill them in again; visible patches are pasted over the prediction.

    The mask of a face depends on the seed and its place, so that a picture can be made again; a higher ratio masks all
    that a lower one does.

    Raises:
        InputError: the faces have another size than the network, or nothing would be visible.
    """
    training = network.training
    network.eval()
    device = network.decoder.mask_token.device
    noise = draws.uniform(seed, 0, np.arange(len(faces)), _PURPOSE, network.num_patches)
    masking = mask_patches(send(noise, device), count_kept(network.num_patches, mask_ratio))
    images = normalise(send(faces, device).permute(0, 3, 1, 2))
    prediction, target = network(images, masking).float(), network.targets(images)
    network.train(training)
    errors = patch_errors(prediction, target)
    patches = patchify(images, network.patch)
    if network.config.norm_pix:
        mean, deviation = patch_statistics(patches)
        prediction = prediction * deviation + mean
    hidden = masking.masked[..., None]
    pasted = torch.where(hidden, prediction, patches)
    statistics = [torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD)]
    pixels = (unpatchify(pasted, network.patch) * statistics[1] + statistics[0]).mul(255).round().clamp(0, 255)
    covered = unpatchify(hidden.expand_as(patches), network.patch).permute(0, 2, 3, 1).cpu().numpy()
    return Reconstruction(
        original=faces,
        masked=np.where(covered, np.uint8(_HIDDEN), faces),
        pasted=pixels.byte().permute(0, 2, 3, 1).cpu().numpy(),
        errors=errors.cpu().numpy(),
        hidden=masking.masked.cpu().numpy(),
    )


def heat(errors: NDArray[np.float32], hidden: NDArray[np.bool_], size: int) -> U8:
    """Color the errors (N,) of the hidden patches of one face: uint8 (size,size,3), 0 black to `ERROR_TOP` yellow."""
    grid = round(len(errors) ** 0.5)
    shares = np.clip(errors / ERROR_TOP, 0, 1).tolist()
    colors = np.array(sample_colorscale("Inferno", shares, colortype="tuple")) * 255
    colors[~hidden] = _HIDDEN
    cells = Image.fromarray(colors.round().astype(np.uint8).reshape(grid, grid, 3))
    return np.asarray(cells.resize((size, size), Image.Resampling.NEAREST))


def draw_grid(
    network: MaskedAutoencoder, faces: U8, ratios: Sequence[float] = RATIOS, seed: int = 0, side: int = 96
) -> Image.Image:
    """Draw one face uint8 (n,s,s,3) a row: original, then for each ratio masked, reconstruction, error."""
    made = [reconstruct(network, faces, ratio, seed) for ratio in ratios]
    heads, columns = ["original"], [faces]
    for ratio, found in zip(ratios, made, strict=True):
        shown = [heat(e, h, faces.shape[1]) for e, h in zip(found.errors, found.hidden, strict=True)]
        mean = float(found.errors[found.hidden].mean())
        heads += [f"{ratio:.0%} masked", "filled in", f"error {mean:.2f}"]
        columns += [found.masked, found.pasted, np.stack(shown)]
    step = side + _GAP
    page = Image.new("RGB", (len(columns) * step + _GAP, len(faces) * step + _GAP + _HEAD), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place, (head, column) in enumerate(zip(heads, columns, strict=True)):
        left = _GAP + place * step
        pen.text((left, _GAP), head, fill="black", font=font)
        for row, pixels in enumerate(column):
            cell = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            page.paste(cell, (left, _HEAD + _GAP + row * step))
    return page


def save_grid(path: Path, network: MaskedAutoencoder, faces: U8, seed: int = 0) -> None:
    """Write the picture of `draw_grid` as PNG, replacing the file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    draw_grid(network, faces, seed=seed).save(temporary, format="PNG")
    temporary.replace(path)


def keep_faces(run: Path, faces: U8) -> None:
    """Leave faces uint8 (n,s,s,3) in a run's folder, of which `draw_progress` then makes pictures."""
    (run / _FOLDER).mkdir(exist_ok=True)
    np.save(run / _FOLDER / _FACES, faces)


def draw_progress(run: Path, network: MaskedAutoencoder, step: int) -> Path | None:
    """Draw what the network makes of the faces kept in a run's folder; None where there are none."""
    kept = run / _FOLDER / _FACES
    if not kept.exists():
        return None
    path = run / _FOLDER / f"step-{step:07d}.png"
    save_grid(path, network, np.load(kept, allow_pickle=False))
    return path


def load_autoencoder(out: Path) -> MaskedAutoencoder:
    """Read the averaged autoencoder, decoder and all, from the `out` folder of a finished run; in eval mode.

    Raises:
        InputError: the run trained no masked autoencoder.
        CheckpointError: its file is missing or does not fit its configuration.
    """
    config = PretrainConfig.load(out / "config.json")
    if config.mae is None:
        raise InputError(f"{out} holds no masked autoencoder; give the out folder of a run with `mae`")
    tensors, _ = checkpoint.load(out / "autoencoder.safetensors")
    vit, _ = make_backbone(config.backbone.model_copy(update={"weights": None}), config.image_size)
    network = MaskedAutoencoder(vit, config.mae)
    checkpoint.load_weights(network, tensors, str(out))
    return network.eval()
