"""Nothing outside of a source is read, whatever its names, links and entries say."""

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import ImportSourceError
from annotator.ingest.decode import Quarantine
from annotator.ingest.files import FolderFiles, Stamp, storable, unsafe
from annotator.ingest.sources import open_files
from annotator.ingest.zip_files import ZipFiles
from tests.ingest import builders

SECRET = b"not for import"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(SECRET)
    folder = tmp_path / "inside"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"a")
    (folder / "sub" / "b.png").write_bytes(b"bb")
    return folder


def reason(outcome: object) -> str:
    assert isinstance(outcome, Quarantine), outcome
    return outcome.reason


def test_a_folder_lists_and_reads_its_files(root: Path) -> None:
    files = open_files(root)
    assert list(files.walk()) == ["a.png", "sub/b.png"]
    assert files.folders() == ["sub"]
    assert files.read("sub/b.png", 10) == b"bb"
    assert files.stamp("sub/b.png") == Stamp(2, (root / "sub" / "b.png").stat().st_mtime_ns)


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.png",
        "sub/../../outside/secret.png",
        "/etc/passwd",
        "C:/x.png",
        "a\0.png",
        "",
        ".",
        "..\\x.png",
    ],
)
def test_paths_that_lead_out_are_refused(root: Path, path: str) -> None:
    files = open_files(root)
    assert unsafe(path) is not None
    assert reason(files.read(path, 100)) == unsafe(path)
    assert reason(files.stamp(path)) == unsafe(path)


def test_an_absolute_path_even_inside_the_root_is_refused(root: Path) -> None:
    assert "absolute" in reason(open_files(root).read(str(root / "a.png"), 100))


def test_links_are_followed_only_inside(root: Path) -> None:
    (root / "in.png").symlink_to(root / "a.png")
    (root / "out.png").symlink_to(root.parent / "outside" / "secret.png")
    (root / "outside").symlink_to(root.parent / "outside")
    files = open_files(root)
    assert files.read("in.png", 100) == b"a"
    assert "link" in reason(files.read("out.png", 100))
    assert "link" in reason(files.read("outside/secret.png", 100))
    assert "outside/secret.png" not in list(files.walk())
    assert any("outside" in problem for problem in files.problems)


def test_a_sibling_whose_name_starts_alike_is_outside(root: Path) -> None:
    sibling = root.parent / "inside-too"
    sibling.mkdir()
    (sibling / "x.png").write_bytes(SECRET)
    (root / "x.png").symlink_to(sibling / "x.png")
    assert "link" in reason(open_files(root).read("x.png", 100))


def test_pipes_and_folders_are_no_images_and_do_not_hang(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    files = open_files(root)
    assert reason(files.stamp("pipe.png")) == "not a regular file"
    assert reason(files.read("pipe.png", 10)) == "not a regular file"
    assert isinstance(files.read("folder.png", 10), Quarantine)


def test_missing_and_large_files_say_so(root: Path) -> None:
    files = open_files(root)
    assert reason(files.read("none.png", 10)) == "the image is missing"
    assert reason(files.read("a.png/b.png", 10)) == "the image is missing"
    assert "limit is 1" in reason(files.read("sub/b.png", 1))


def test_a_link_that_turns_in_a_circle_is_reported(root: Path) -> None:
    (root / "loop.png").symlink_to(root / "loop.png")
    assert "cannot be read" in reason(open_files(root).read("loop.png", 10))


@pytest.mark.parametrize("name", ["../../evil.png", "/abs.png", "sub/../../evil.png"])
def test_zip_entries_that_lead_out_are_listed_and_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(name, SECRET)
        out.writestr("good.png", b"good")
    files = open_files(archive)
    assert name in list(files.walk())
    assert reason(files.read(name, 100)) == unsafe(name)
    assert files.read("good.png", 100) == b"good"
    assert files.folders() == (["sub"] if name.startswith("sub") else [])


def test_a_zip_link_is_data_not_a_link(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    entry = zipfile.ZipInfo("link.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(entry, "/etc/passwd")
    assert open_files(archive).read("link.png", 100) == b"/etc/passwd"


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("bomb.png", bytes(5_000_000))
    assert archive.stat().st_size < 10_000
    assert "limit is 1000" in reason(open_files(archive).read("bomb.png", 1000))


def test_a_damaged_zip_entry_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a.png", b"abcdefgh")
    data = archive.read_bytes().replace(b"abcdefgh", b"abcdEfgh", 1)
    archive.write_bytes(data)
    assert "cannot be unpacked" in reason(open_files(archive).read("a.png", 100))


def test_sources_that_cannot_be_opened_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ImportSourceError, match="does not exist"):
        open_files(tmp_path / "none")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ImportSourceError, match="neither a folder nor a readable zip"):
        open_files(tmp_path / "text.zip")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImportSourceError, match="neither a folder nor a file"):
        open_files(tmp_path / "pipe")


def test_names_that_are_not_utf8_can_be_listed_and_stored(root: Path) -> None:
    raw = os.fsencode(root) + b"/\xff.png"
    with open(raw, "wb") as file:
        file.write(b"x")
    files = open_files(root)
    (name,) = [n for n in files.walk() if n not in ("a.png", "sub/b.png")]
    assert reason(files.read(name, 10)) == "the file name is not valid UTF-8"
    assert storable(name) == "\\udcff.png"


_PIECES = st.sampled_from(["..", ".", "a.png", "sub", "", "/", "\\", "\0", "b.png", "outside", "secret.png", "~", "C:"])


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=8).map("/".join) | st.text(max_size=40))
def test_no_path_reads_anything_but_files_of_the_folder(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    base = tmp_path_factory.getbasetemp() / "safety"
    if not base.exists():
        (base / "inside" / "sub").mkdir(parents=True)
        (base / "inside" / "a.png").write_bytes(b"a")
        (base / "inside" / "sub" / "b.png").write_bytes(b"bb")
        (base / "outside").mkdir()
        (base / "outside" / "secret.png").write_bytes(SECRET)
        (base / "inside" / "outside").symlink_to(base / "outside")
        with zipfile.ZipFile(base / "a.zip", "w") as out:
            out.writestr("a.png", b"a")
            out.writestr("../outside/secret.png", SECRET)
    for files in (FolderFiles(base / "inside"), ZipFiles(base / "a.zip")):
        outcome = files.read(path, 100)
        assert isinstance(outcome, Quarantine) or outcome in (b"a", b"bb")
        files.close()


@given(st.text(max_size=2000))
def test_what_is_stored_of_a_path_fits_any_database(path: str) -> None:
    kept = storable(path)
    assert "\0" not in kept
    assert len(kept) <= 1024
    if unsafe(path) is None:
        assert kept == path


@pytest.fixture
def powerless() -> Iterator[Path]:
    """Make a folder that everyone may enter and, where the tests run as root, give root's rights up meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="annotator-files-"))
    folder.chmod(0o755)
    (folder / "locked").mkdir()
    builders.write_picture(folder / "locked" / "a.png", 1)
    builders.write_picture(folder / "closed.png", 2).chmod(0)
    builders.write_picture(folder / "open.png", 3)
    (folder / "locked").chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield folder
    if was == 0:
        os.seteuid(0)
    (folder / "locked").chmod(0o755)
    shutil.rmtree(folder)


def test_unreadable_files_and_folders_are_told_and_the_rest_goes_on(powerless: Path) -> None:
    files = open_files(powerless)
    assert list(files.walk()) == ["closed.png", "open.png"]
    assert files.problems == ["locked: Permission denied"]
    assert reason(files.read("closed.png", 10_000)) == "the file cannot be read: Permission denied"
    assert reason(files.read("locked/a.png", 10_000)) == "the file cannot be read: Permission denied"
    assert isinstance(files.read("open.png", 10_000), bytes)
    with pytest.raises(ImportSourceError, match="Permission denied"):
        open_files(powerless / "locked")
