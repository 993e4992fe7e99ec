"""One archive of a workspace, written while it is in use; and a new workspace from an archive.

A tar with `workspace.yaml`, every table as `database/<table>.jsonl` (the same for SQLite and PostgreSQL, so a workspace
can move from one to the other), the pixel cache, the current scores with their encoder, the serving and the newest
snapshot, and last `manifest.json` with the SHA-256 of every file, row counts and the digest of the decisions. Sessions
and leases are left behind. It holds faces, names and password hashes: keep it as you keep the workspace.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from annotator import __version__, encoders
from annotator.errors import InputError, WorkspaceError
from annotator.settings import FILE, Workspace
from annotator.store import LabelStore, migrate, transfer
from annotator.store.database import Database

FORMAT = 1
MANIFEST = "manifest.json"
_FOLDERS = ("database", "cache", "encoders", "scores", "snapshots")
_CHUNK = 1 << 20


def backup(workspace: Workspace, out: Path, *, cache: bool = True) -> Path:
    """Write an archive of `workspace` to `out` and return its path.

    It is consistent also while server and learner run: all tables are read in one transaction, the files are immutable.

    Args:
        workspace: the workspace to save.
        out: the file to write, or a folder in which to name one by workspace and time.
        cache: leave out with False; `annotator learn` makes it again from the original images, if they are still there.

    Raises:
        WorkspaceError: `out` exists, cannot be written, or the disk is full.
    """
    target = _target(workspace, out)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with LabelStore.open(workspace) as store, _private(temporary) as file:
            _write(workspace, store, file, cache)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise WorkspaceError(
            f"the backup to {target} failed, nothing was written: {error.strerror or error}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def restore(archive: Path, root: Path, *, database: str | None = None) -> Workspace:
    """Make a new workspace at `root` from an archive and return it.

    Every file is checked against the manifest before anything appears at `root`.

    Args:
        archive: written by `backup`.
        root: a folder that does not exist yet, or is empty.
        database: URL of an empty PostgreSQL database; None makes a SQLite file in the workspace, whatever the original
            used.

    Raises:
        WorkspaceError: `root` is taken, the archive is damaged or of a newer version, the database is not empty.
    """
    root = root.resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise WorkspaceError(f"{root} exists already; restore into a new folder")
    if not archive.is_file():
        raise InputError(f"{archive} is not an archive file")
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}.restoring-", dir=root.parent))
    try:
        manifest = _extract(archive, staging)
        _check_manifest(manifest, archive)
        workspace = _settle(staging, database)
        contents = _fill(workspace, staging, str(manifest["schema"]))
        expected = transfer.Contents(manifest["tables"], manifest["digest"])
        if contents != expected:
            raise WorkspaceError(f"{archive}: the restored tables differ from what was saved; restore another backup")
        shutil.rmtree(staging / "database")
        if root.exists():
            root.rmdir()
        staging.rename(root)
    except (OSError, tarfile.TarError) as error:
        raise WorkspaceError(f"{archive} cannot be restored to {root}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Workspace.open(root)


def _target(workspace: Workspace, out: Path) -> Path:
    if out.is_dir():
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        out = out / f"{workspace.root.name}-{stamp}.tar"
    if out.exists():
        raise WorkspaceError(f"{out} exists already; name another file")
    if not out.parent.is_dir():
        raise WorkspaceError(f"there is no folder {out.parent} to write {out.name} to")
    return out


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that only its owner can read: an archive holds faces and password hashes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file


def _write(workspace: Workspace, store: LabelStore, file: IO[bytes], cache: bool) -> None:
    files: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        with tempfile.TemporaryDirectory(dir=Path(file.name).parent if isinstance(file.name, str) else None) as folder:
            contents = transfer.dump(store.database, Path(folder))
            for path in sorted(Path(folder).iterdir()):
                _add(tar, path, f"database/{path.name}", files)
        _add(tar, workspace.root / FILE, FILE, files)
        for folder_path in _kept_folders(workspace, store, cache):
            for path in sorted(p for p in folder_path.rglob("*") if p.is_file() and not p.name.startswith(".")):
                _add(tar, path, path.relative_to(workspace.root).as_posix(), files)
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "schema": migrate.HEAD,
            "created_at": datetime.now(UTC).isoformat(),
            "name": workspace.settings.name,
            "tables": contents.rows,
            "digest": contents.digest,
            "files": files,
        }
        data = json.dumps(manifest, indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size, info.mode = len(data), 0o600
        tar.addfile(info, io.BytesIO(data))


def _kept_folders(workspace: Workspace, store: LabelStore, cache: bool) -> list[Path]:
    folders = [workspace.root / "cache"] if cache else []
    generation = store.learning.current_generation()
    if generation is not None:
        folders += [workspace.root / "scores" / str(generation.id), workspace.root / "encoders" / generation.encoder]
    adapted = encoders.of_pool(workspace)
    if adapted is not None and adapted not in folders:  # what `learner.start: pool` names
        folders.append(adapted)
    snapshots = store.learning.snapshots()
    kept = {s.id for s in snapshots if s.serving} | {s.id for s in snapshots[-1:]}
    folders += [workspace.root / "snapshots" / name for name in sorted(kept)]
    return [folder for folder in folders if folder.is_dir()]


def _add(tar: tarfile.TarFile, path: Path, name: str, files: dict[str, dict[str, Any]]) -> None:
    """Append one file; its size is that of the open file, which a replacement by rename cannot change."""
    with open(path, "rb") as source:
        info = tarfile.TarInfo(name)
        info.size, info.mode = os.fstat(source.fileno()).st_size, 0o600
        reader = _Hashing(source)
        tar.addfile(info, reader)
    files[name] = {"bytes": info.size, "sha256": reader.digest.hexdigest()}


class _Hashing(io.RawIOBase):
    """Pass reads through and hash what passes."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def _extract(archive: Path, staging: Path) -> dict[str, Any]:
    """Unpack regular files of known places into `staging`, hashed on the way; return the manifest they agree with."""
    found: dict[str, dict[str, Any]] = {}
    manifest: Any = None
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or not _allowed(member.name):
                    raise WorkspaceError(f"{archive} holds {member.name!r}, which no backup holds; it was not unpacked")
                if member.name == MANIFEST:
                    manifest = json.loads(source.read())
                    continue
                found[member.name] = _unpack(source, staging / member.name)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise WorkspaceError(f"{archive} is not a complete backup: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise WorkspaceError(f"{archive} is not a complete backup: it has no manifest")
    wrong = sorted(n for n in manifest["files"].keys() | found.keys() if manifest["files"].get(n) != found.get(n))
    if wrong:
        raise WorkspaceError(f"{archive} is damaged: {', '.join(wrong[:5])} differs from the manifest")
    return manifest


def _allowed(name: str) -> bool:
    path = PurePosixPath(name)
    if name in (FILE, MANIFEST):
        return True
    return (
        len(path.parts) >= 2
        and path.parts[0] in _FOLDERS
        and not path.is_absolute()
        and not {"..", "."} & set(name.split("/"))
        and "\\" not in name
    )


def _unpack(source: IO[bytes], target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as file:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _check_manifest(manifest: dict[str, Any], archive: Path) -> None:
    if manifest.get("format") != FORMAT or not {"schema", "tables", "digest"} <= manifest.keys():
        raise WorkspaceError(
            f"{archive} has backup format {manifest.get('format')!r}, this version reads {FORMAT}: upgrade annotator"
        )


def _settle(staging: Path, database: str | None) -> Workspace:
    """Point the unpacked settings to the new database."""
    path = staging / FILE
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise WorkspaceError(f"the archive's {FILE} is not a mapping")
    settings["database"] = database
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Workspace.open(staging)


def _fill(workspace: Workspace, staging: Path, schema: str) -> transfer.Contents:
    """Load the tables at the revision they were saved at, then upgrade."""
    database = Database(workspace.database_url, workspace.root / "write.lock")
    try:
        lock, backups = workspace.root / "store.lock", workspace.root / "backups"
        migrate.upgrade(database, lock, backups, revision=schema)
        contents = transfer.load(database, staging / "database")
        migrate.upgrade(database, lock, backups)
        return contents
    finally:
        database.close()
