"""`python -m learner pretrain` and `features`: make an encoder from unlabeled faces, and use one."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from learner import hog, progress
from learner import manifest as manifests
from learner.backbones import SHIPPED_NET
from learner.config import SHIPPED, BackboneConfig, write_json
from learner.data import PixelCache, Rows, write_shards
from learner.duplicates import find_copies
from learner.errors import InputError
from learner.manifest import Manifest, decode
from learner.pretrain.bodies import make_body
from learner.pretrain.config import PretrainConfig
from learner.pretrain.encoder import FaceEncoder, fit_readout
from learner.pretrain.loop import ENCODER, run_pretraining

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
_CHUNK = 512
_FIRST = 2000  # images that a random network's components are fitted to
Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def pretrain(
    source: Annotated[Path, typer.Argument(metavar="FACES", help="folder of images, CSV, or FER+ zip (split train)")],
    out: Annotated[Path | None, typer.Argument(help="goes on when called again; left out, FACES is one")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML; see configs/pretrain")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    start: Annotated[str | None, typer.Option(help="first weights: shipped, timm, or a file")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="folder of faces whose reconstruction is drawn as training goes on (mae)")
    ] = None,
) -> None:
    """Train an encoder on faces without labels; no copy of a validation or test face is learned from."""
    if out is None:
        out = source
        if not (out / "pool.json").exists():
            raise InputError(f"{source} is no prepared folder; give FACES and OUT")
    else:
        chosen = PretrainConfig() if config is None else PretrainConfig.load(config)
        changes: dict[str, Any] = {k: v for k, v in (("steps", steps), ("threads", threads)) if v is not None}
        if start is not None:
            changes["backbone"] = {**chosen.backbone.model_dump(), "weights": start}
        prepare(source, chosen.replace(**changes), out)
    if pictures is not None:
        keep_pictured(pictures, out)
    with progress.bar("pretrain") as advance:
        made = run_pretraining(out, lambda r: advance(r["progress"], progress.losses(r["logs"])))
    progress.print_json({"encoder": str(made / ENCODER), "bytes": (made / ENCODER).stat().st_size})


def prepare(source: Path, config: PretrainConfig, out: Path) -> None:
    """Fill a new run folder, or check that an existing one is the same run, so that it resumes.

    Raises:
        InputError: OUT holds something else; no image to learn from.
    """
    if (out / "pool.json").exists():
        if PretrainConfig.load(out / "config.json") != config:
            raise InputError(f"{out} holds a run with another configuration; choose another folder")
        return
    if out.exists() and any(path.name != "cache" for path in out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    cache = out / "cache" / str(config.image_size)
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    with progress.bar("read images") as advance:
        if source.is_dir():
            names, bad = read_folder(source, config.image_size, cache, lambda share: advance(share, ""))
            tell_left_out(bad)
            rows: Rows = np.arange(len(names), dtype=np.int64)
        else:
            found = Manifest.read(source)
            manifests.write_cache(found, cache, config.image_size, lambda n, total: advance(n / total, ""))
            rows = without_copies(found, PixelCache(cache, config.image_size))
    if len(rows) < 2:
        raise InputError(f"{source} holds {len(rows)} faces to learn from; two or more are needed")
    np.save(out / "rows.npy", rows)
    config.save(out / "config.json")
    write_json(out / "pool.json", {"cache": str(cache.resolve()), "source": str(source.resolve())})


def keep_pictured(folder: Path, out: Path) -> None:
    """Leave the first faces of a folder in a run's, to be drawn as a masked autoencoder fills them in.

    Raises:
        InputError: the run trains none, or the folder holds no readable image.
    """
    from learner.pretrain.pictures import MOST, keep_faces  # plotly takes a second to load

    config = PretrainConfig.load(out / "config.json")
    if config.mae is None:
        raise InputError("--pictures shows what a masked autoencoder fills in; this configuration has no `mae`")
    faces, _, bad = decode_all(folder, image_paths(folder)[:MOST], config.image_size)
    if not len(faces):
        raise InputError(f"no readable image in {folder} ({len(bad)} tried); give a folder of faces")
    keep_faces(out, faces)


def without_copies(found: Manifest, cache: PixelCache) -> Rows:
    """Return the training rows that copy no validation or test image, exactly or nearly."""
    train = found.rows("train")
    copies = find_copies(cache, train, np.union1d(found.rows("val"), found.rows("test")))
    return np.setdiff1d(train, np.union1d(copies.exact, copies.near))


def features(
    folder: Annotated[Path, typer.Argument(help="every image under it, however deep")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="names (n,) and features (n,d) float32")],
    encoder: Annotated[str, typer.Option(help="shipped, random, hog, or the file of an encoder")] = SHIPPED,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Write the features of every image under a folder; files that are no readable image are named and left out."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise InputError(f"cannot write {out}: give a file NAME.npz in a folder that exists")
    if threads is not None:
        torch.set_num_threads(threads)
    size, encode = _encoder(encoder, device)
    names: list[str] = []
    parts: list[NDArray[np.float32]] = []
    bad: list[str] = []
    paths = image_paths(folder)
    with progress.bar("encode") as advance:
        for start in range(0, len(paths), _CHUNK):
            faces, read, broken = decode_all(folder, paths[start : start + _CHUNK], size)
            if read:
                encode = encode or _random(faces, size, device)
                parts.append(encode(faces))
            names, bad = names + read, bad + broken
            advance(min(1.0, (start + _CHUNK) / len(paths)), "")
    tell_left_out(bad)
    if not names:
        raise InputError(f"no readable image under {folder} ({len(bad)} files tried)")
    table = np.concatenate(parts).astype(np.float32)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, names=np.array(names), features=table)
    temporary.replace(out)
    progress.print_json({"images": len(names), "left_out": len(bad), "dim": table.shape[1], "encoder": encoder})


def _encoder(name: str, device: str) -> tuple[int, Encode | None]:
    """Return the side of the faces it wants and the encoder; none for a random one, which is fitted to images."""
    if name == "hog":
        return 48, hog.describe
    if name == "random":
        return 48, None
    made = FaceEncoder.load(name, device)
    return made.image_size, made


def _random(faces: NDArray[np.uint8], size: int, device: str) -> Encode:
    """Read out the shipped encoder's network with random weights (seed 0), as the baseline of any encoder."""
    torch.manual_seed(0)
    config = PretrainConfig(image_size=size)
    body, _ = make_body(BackboneConfig(name=SHIPPED_NET), size)
    if len(faces) < 2:
        raise InputError("a random encoder is fitted to the images; give two or more")
    return fit_readout(body, config, faces[:_FIRST], "random", device)


def tell_left_out(names: list[str]) -> None:
    """Name the files that were no readable image."""
    for name in names:
        sys.stderr.write(f"left out, no readable image: {name}\n")


def image_paths(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted by their path; hidden ones are passed over."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def decode_all(folder: Path, paths: list[Path], size: int) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Decode files to faces (n,size,size,3); return them, their names, and those of no image."""
    faces, names, bad = [], [], []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            faces.append(decode(manifests.read_file(path), size, name))
            names.append(name)
        except InputError:
            bad.append(name)
    empty = np.zeros((0, size, size, 3), np.uint8)
    return np.stack(faces) if faces else empty, names, bad


def read_folder(folder: Path, size: int, cache: Path, on_done: Callable[[float], None]) -> tuple[list[str], list[str]]:
    """Decode every image under a folder into a pixel cache; return the names in row order, and those left out."""
    paths, names, bad = image_paths(folder), [], []  # type: ignore[var-annotated]
    for start in range(0, len(paths), _CHUNK):
        faces, read, broken = decode_all(folder, paths[start : start + _CHUNK], size)
        if read:
            write_shards(cache, faces, len(names))
        names, bad = names + read, bad + broken
        on_done(min(1.0, (start + _CHUNK) / len(paths)))
    return names, bad
