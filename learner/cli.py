"""`python -m learner`: rounds for the annotator; training, evaluation and prediction on a manifest alone."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from learner import manifest as manifests
from learner import progress, snapshot
from learner.bank_command import bank
from learner.benchmark.command import benchmark
from learner.config import RunConfig
from learner.data import PixelCache, Rows
from learner.errors import InputError, LearnerError
from learner.evaluate import Evaluation, evaluate
from learner.manifest import Manifest
from learner.predict import Predictions, Views, as_table, generic_columns
from learner.pretrain.command import features, pretrain
from learner.progress import console
from learner.round import StoppedError, run_round
from learner.snapshot import Snapshot
from learner.ssfer import ssfer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (bank, benchmark, pretrain, features, ssfer):
    app.command()(command)


@app.command("round")
def round_command(run_dir: Annotated[Path, typer.Argument(help="the folder of one round")]) -> None:
    """Run or resume one round; SIGTERM saves and stops."""
    console.print(f"done: {run_round(run_dir)}", soft_wrap=True)


@app.command()
def train(
    source: Annotated[Path, typer.Argument(metavar="MANIFEST", help="CSV path,label,split[,votes] or a FER+ zip")],
    out: Annotated[Path, typer.Argument(help="run folder; the model appears in OUT/out")],
    config: Annotated[
        Path | None, typer.Option(help="a complete YAML, see configs/; options below override it")
    ] = None,
    method: Annotated[str | None, typer.Option(help="supervised, fixmatch, lion, …")] = None,
    backbone: Annotated[str | None, typer.Option(help="a timm model, or resnet10_small")] = None,
    image_size: Annotated[int | None, typer.Option()] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="labels in all, shared evenly by the classes")] = None,
    labels_per_class: Annotated[int | None, typer.Option(min=1)] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the training")] = None,
    split_seed: Annotated[int, typer.Option(min=0, help="of the choice of labels")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    classes: Annotated[str | None, typer.Option(help="class names in order, separated by commas")] = None,
) -> None:
    """Train on a manifest, resuming if OUT holds the same run; evaluate on split val."""
    manifest = read_manifest(source, classes)
    chosen = RunConfig.load(config) if config is not None else RunConfig()
    given = {"method": method, "image_size": image_size, "steps": steps, "seed": seed, "threads": threads}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if method is not None and method != chosen.method:
        changes["options"] = {}
    if backbone is not None:
        changes["backbone"] = {**chosen.backbone.model_dump(), "name": backbone}
    chosen = chosen.replace(**changes)
    if labels is not None and labels_per_class is not None:
        raise InputError("give --labels or --labels-per-class, not both")
    per_class = labels_per_class if labels is None else max(1, labels // len(manifest.classes))
    labeled = manifests.choose_labels(manifest, per_class, split_seed)
    prepare(manifest, chosen, labeled, out)
    with progress.bar("train") as advance:
        result = run_round(out, lambda r: advance(r["progress"], r["state"] + progress.losses(r["logs"])))
    metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    progress.print_json({k: metrics[k] for k in ("method", "steps", "steps_per_second", "predict_images_per_second")})
    if "val" in metrics:
        progress.print_json({"val": metrics["val"]})


@app.command("evaluate")
def evaluate_command(
    out: Annotated[Path, typer.Argument(help="run folder or snapshot")],
    source: Annotated[Path, typer.Argument(metavar="MANIFEST")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
) -> None:
    """Evaluate a trained model on a split of a manifest."""
    folder = snapshot_folder(out)
    manifest = for_model(folder, source)
    if split not in manifests.SPLITS:
        raise InputError(f"no split {split!r}; there are {', '.join(manifests.SPLITS)}")
    rows = manifest.labeled(split)
    if len(rows) == 0:
        raise InputError(f"{source} has no labeled image in split {split}")
    predictions = read_faces(snapshot.load(folder), manifest, rows, "none")
    result: Evaluation = evaluate(predictions.probs, manifest.label[rows], manifest.classes)
    progress.print_json(result.as_dict())


@app.command()
def predict(
    out: Annotated[Path, typer.Argument(help="run folder or snapshot")],
    source: Annotated[Path, typer.Argument(metavar="MANIFEST")],
    target: Annotated[Path, typer.Argument(metavar="OUT.parquet")],
    views: Annotated[bool, typer.Option(help="also read one weak and one strong view")] = True,
) -> None:
    """Write class probabilities and signals of every image of a manifest as Parquet."""
    folder = snapshot_folder(out)
    manifest = for_model(folder, source)
    rows = np.arange(len(manifest.names), dtype=np.int64)
    model = snapshot.load(folder)
    columns = generic_columns(read_faces(model, manifest, rows, "weak+strong" if views else "none"))
    table = as_table(columns, rows, model.classes, model.round, model.lifetime_step)
    table = table.add_column(0, "path", pa.array(manifest.names, pa.string()))
    try:
        pq.write_table(table, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    console.print(f"{len(rows)} images: {target}")


def read_manifest(source: Path, classes: str | None) -> Manifest:
    """Read a manifest with class names given as one comma-separated text, or as found."""
    return Manifest.read(source, [c.strip() for c in classes.split(",")] if classes else None)


def for_model(folder: Path, source: Path) -> Manifest:
    """Read a manifest with the classes of a model.

    Raises:
        InputError: the manifest has classes that the model does not.
    """
    classes = tuple(snapshot.read_meta(folder)["classes"])
    manifest = Manifest.read(source, classes)
    if manifest.classes != classes:
        raise InputError(f"{source} has classes {', '.join(manifest.classes)}; the model {', '.join(classes)}")
    return manifest


def snapshot_folder(out: Path) -> Path:
    """Find the snapshot in a run folder, or take the folder itself.

    Raises:
        InputError: neither is one.
    """
    for folder in (out / "out", out):
        if (folder / "state.json").is_file():
            return folder
    raise InputError(f"{out} holds no trained model; train one with: python -m learner train MANIFEST {out}")


def prepare(manifest: Manifest, config: RunConfig, labeled: Rows, out: Path) -> None:
    """Fill a new run folder, or check that an existing one is the same run, so that it resumes.

    Raises:
        InputError: OUT holds another run.
    """
    note = out / "source.json"
    wanted = {"source": manifests.source_key(manifest), "labeled": labeled.tolist()}
    if note.exists():
        same = json.loads(note.read_text(encoding="utf-8")) == wanted and RunConfig.load(out / "config.json") == config
        if not same:
            raise InputError(f"{out} holds a run with another configuration or manifest; choose another folder")
        return
    if out.exists() and any(p.name != "cache" for p in out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "cache" / str(config.image_size)
    shutil.rmtree(cache, ignore_errors=True)
    with progress.bar("read images") as advance:
        manifests.write_cache(manifest, cache, config.image_size, lambda n, total: advance(n / total, ""))
    manifests.make_run(manifest, config, labeled, out, cache.resolve())
    note.write_text(json.dumps(wanted), encoding="utf-8")


def read_faces(model: Snapshot, manifest: Manifest, rows: Rows, views: Views) -> Predictions:
    """Predict some rows of a manifest; the result is in the order of `rows`."""
    size = model.config.image_size
    with tempfile.TemporaryDirectory() as scratch:
        with progress.bar("read images") as advance:
            manifests.write_cache(manifest, Path(scratch), size, lambda n, total: advance(n / total, ""), rows)
        predictor = model.predictor(PixelCache(scratch, size))
        with progress.bar("predict") as advance:
            places = np.arange(len(rows), dtype=np.int64)
            return predictor.predict(places, views, lambda done: advance(done / len(rows), ""))


def main() -> None:
    """Run the command line: exit code 2 and one line for anything wrong with the input, 1 for a failed run."""
    try:
        app()
    except StoppedError as stopped:
        console.print(f"{stopped}; the same command goes on", markup=False, soft_wrap=True)
    except InputError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from error
    except LearnerError as error:
        console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from error
