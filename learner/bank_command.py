"""`python -m learner bank`: make the view features of a manifest's faces, or of a run's."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from learner import manifest as manifests
from learner.bank import FeatureBank
from learner.bank_build import MAX_POOL, OnDone, Plan, build, choose_rows
from learner.config import RunConfig, write_json
from learner.data import PixelCache, load_view
from learner.encoders import make_encoder
from learner.errors import InputError

console = Console(stderr=True)


def bank(
    source: Annotated[Path, typer.Argument(metavar="MANIFEST|RUN_DIR", help="CSV, FER+ zip, or the folder of a round")],
    out: Annotated[Path, typer.Argument(help="folder of the bank; the same command goes on with it, or adds rows")],
    encoder: Annotated[str, typer.Option(help="hog, a run or snapshot, or a timm model with --weights")] = "hog",
    weights: Annotated[str | None, typer.Option(help="weight file of a timm model")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with image_size and augment; a run has its own")] = None,
    image_size: Annotated[int | None, typer.Option(min=16, help="side of the faces of a manifest")] = None,
    weak: Annotated[int, typer.Option(min=1, help="weak views of a face")] = 1,
    strong: Annotated[int, typer.Option(min=1, help="strong views of a face")] = 6,
    pool: Annotated[int, typer.Option(min=1, help="unlabeled faces at most that get views")] = MAX_POOL,
    seed: Annotated[int, typer.Option(min=0, help="of the views and of the sample of the pool")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    device: Annotated[str, typer.Option(help="where a network encodes: cpu, cuda, mps")] = "cpu",
) -> None:
    """Encode one clean, one weak and six strong views of every face with a frozen encoder, resumably."""
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = RunConfig.load(config) if config is not None else RunConfig()
    if image_size is not None:
        chosen = chosen.replace(image_size=image_size)
    if source.is_dir():
        if config is not None or image_size is not None:
            raise InputError(f"{source} is a run, which has its own configuration; leave out --config and --image-size")
        cache, chosen, plan = _of_run(source, weak, strong, pool, seed)
    else:
        cache, plan = _of_manifest(source, out, chosen, weak, strong, pool, seed)
    made = make_encoder(encoder, chosen.image_size, weights, device)
    began, views = time.perf_counter(), 0
    with _bar("encode") as advance:

        def on_done(done: int, total: int) -> None:
            nonlocal views
            views = done
            advance(done, total)

        result = build(out, made, cache, plan, on_done)
    _report(result, views, time.perf_counter() - began)


def _of_run(folder: Path, weak: int, strong: int, pool: int, seed: int) -> tuple[PixelCache, RunConfig, Plan]:
    chosen = RunConfig.load(folder / "config.json")
    view = load_view(folder / "view.npz")
    try:
        cache = Path(json.loads((folder / "pool.json").read_text(encoding="utf-8"))["cache"])
        unlabeled, everything = (np.load(folder / name, allow_pickle=False) for name in ("unlabeled.npy", "all.npy"))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no complete run folder with a pixel cache: {error}") from error
    rows = choose_rows(view.rows.numpy(), unlabeled.astype(np.int64), everything.astype(np.int64), pool, seed)
    return PixelCache(cache, chosen.image_size), chosen, Plan(*rows, weak, strong, seed, chosen.augment)


def _of_manifest(
    source: Path, out: Path, chosen: RunConfig, weak: int, strong: int, pool: int, seed: int
) -> tuple[PixelCache, Plan]:
    """Decode the faces beside the bank, once."""
    manifest = manifests.Manifest.read(source)
    size, cache = chosen.image_size, out / "cache" / str(chosen.image_size)
    note, key = out / "source.json", {"source": manifests.source_key(manifest), "image_size": size}
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != key:
            raise InputError(f"{out} holds a bank of another manifest or image size; choose another folder")
    else:
        if out.exists() and any(path.name != "cache" for path in out.iterdir()):
            raise InputError(f"{out} is not empty; choose another folder")
        shutil.rmtree(cache, ignore_errors=True)
        with _bar("read images") as advance:
            manifests.write_cache(manifest, cache, size, advance)
        write_json(note, key)
    everything = np.arange(len(manifest.names), dtype=np.int64)
    rows = choose_rows(everything[:0], manifest.rows("train"), everything, pool, seed)
    return PixelCache(cache, size), Plan(*rows, weak, strong, seed, chosen.augment)


def _report(made: FeatureBank, views: int, seconds: float) -> None:
    told = {
        "encoder": made.encoder,
        "dim": made.dim,
        "rows_with_views": len(made.full_rows),
        "encoded_now": views,
        "view_features_per_second": round(views / max(seconds, 1e-9), 1),
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")


@contextmanager
def _bar(title: str) -> Iterator[OnDone]:
    """Show how much is done and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as shown:
        task = shown.add_task(title, total=1.0)
        yield lambda done, total: shown.update(task, completed=done, total=total)
