"""Opening makes, upgrades, protects and refuses."""

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, text
from sqlalchemy.exc import DatabaseError

from annotator import taxonomy
from annotator.errors import InputError, WorkspaceError
from annotator.records import Answer
from annotator.settings import Workspace
from annotator.store import LabelStore, health, migrate
from annotator.store.database import Database, parse_url, refuse_network_file_system
from annotator.store.schema import Base
from tests.conftest import new_image


def fill(store: LabelStore) -> None:
    source = store.images.register_source("/faces", "folder", "folder")
    image = store.images.add(source, [new_image("a")], "none")[0]
    store.decisions.submit(store.accounts.local_user(), Answer("c", image.image_id, "label", ("fear",)))


def test_the_migrations_make_the_schema_of_the_models(store: LabelStore) -> None:
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert ScriptDirectory.from_config(migrate.alembic_config()).get_current_head() == migrate.HEAD


def test_a_store_is_there_again_after_closing(store: LabelStore) -> None:
    fill(store)
    before = store.decisions.list()
    store.close()
    with LabelStore.open(store.workspace) as again:
        assert again.decisions.list() == before
        assert again.last_seq() == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE annotations SET kind = 'skip'",
        "UPDATE annotations SET note = note",
        "DELETE FROM annotations",
        "INSERT OR REPLACE INTO annotations SELECT * FROM annotations",
        "REPLACE INTO annotations SELECT * FROM annotations",
        "TRUNCATE annotations CASCADE",
    ],
)
def test_annotations_are_append_only(store: LabelStore, statement: str) -> None:
    if ("REPLACE" in statement and not store.database.is_sqlite) or (
        "TRUNCATE" in statement and store.database.is_sqlite
    ):
        return  # the other database does not know the statement
    fill(store)
    before = store.decisions.list()
    with pytest.raises(DatabaseError, match="append-only"), store.database.write() as connection:
        connection.execute(text(statement))
    assert store.decisions.list() == before


def test_a_batch_migration_drops_the_triggers_and_opening_restores_them(sqlite_store: LabelStore) -> None:
    store = sqlite_store
    fill(store)
    with store.database.write() as connection:
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("annotations", recreate="always") as batch:
            batch.add_column(Column("extra", Integer))
    assert len(health.missing_triggers(store.database)) == 3
    store.close()
    with LabelStore.open(store.workspace) as again:
        assert health.missing_triggers(again.database) == []
        with pytest.raises(DatabaseError, match="append-only"), again.database.write() as connection:
            connection.execute(text("DELETE FROM annotations"))
        assert again.decisions.count() == 1


def test_a_changed_or_disabled_trigger_is_noticed(store: LabelStore) -> None:
    with store.database.write() as connection:
        if store.database.is_sqlite:
            connection.execute(text("DROP TRIGGER annotations_no_delete"))
            connection.execute(
                text("CREATE TRIGGER annotations_no_delete BEFORE DELETE ON annotations BEGIN SELECT 1; END")
            )
        else:
            connection.execute(text("ALTER TABLE annotations DISABLE TRIGGER annotations_no_delete"))
    assert health.missing_triggers(store.database) == ["annotations_no_delete"]
    store.close()
    with LabelStore.open(store.workspace) as again:
        assert health.missing_triggers(again.database) == []


def test_an_older_database_is_backed_up_and_upgraded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with LabelStore.open(workspace) as store:
        fill(store)
    # A database as it was one revision ago: the same tables, stamped with a revision that has a successor.
    versions = workspace.root / "versions"
    versions.mkdir()
    for path in (Path(migrate.__file__).parent / "migrations" / "versions").glob("0*.py"):
        (versions / path.name).write_text(path.read_text())
    (versions / "9999_more.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nrevision = '9999'\ndown_revision = '{migrate.HEAD}'\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('annotations', recreate='always') as batch:\n"
        "        batch.add_column(sa.Column('mood', sa.Integer()))\n"
    )
    plain = migrate.alembic_config

    def with_second(connection: object = None) -> object:
        config = plain(connection)  # type: ignore[arg-type]
        config.set_main_option("version_locations", str(versions))
        return config

    monkeypatch.setattr(migrate, "alembic_config", with_second)
    before = migrate.HEAD
    monkeypatch.setattr(migrate, "HEAD", "9999")
    database = Database(workspace.database_url, workspace.root / "write.lock")
    lock, backups = workspace.root / "store.lock", workspace.root / "backups"
    migrate.upgrade(database, lock, backups, revision="9999")
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*), max(mood) FROM annotations")).one() == (1, None)
    assert health.missing_triggers(database) == [], "the batch migration dropped them, the upgrade restored them"
    database.close()
    saved = list(backups.iterdir())
    assert [p.name.startswith(f"annotator-{before}-") for p in saved] == [True]
    with closing(sqlite3.connect(saved[0])) as copy:
        assert copy.execute("SELECT count(*) FROM annotations").fetchone() == (1,)
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == (before,)


@pytest.mark.parametrize("server", [False, True])
def test_answers_from_before_links_stay_as_they_are(
    workspace: Workspace, server: bool, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("database_of_its_own") if server else workspace.database_url
    database = Database(url, workspace.root / "write.lock")
    lock, backups = workspace.root / "store.lock", workspace.root / "backups"
    migrate.upgrade(database, lock, backups, revision="0002")
    no = "0" if database.is_sqlite else "false"
    with database.write() as connection:
        for statement in (
            "INSERT INTO sources (id, root, kind, format, registered_at) "
            "VALUES (1, '/f', 'folder', 'folder', '2026-03-01')",
            "INSERT INTO images (row, image_id, source_id, path, crop, group_row, split, state, width, height, "
            "media_type, file_bytes, file_stamp, reserved) "
            f"VALUES (0, 'face', 1, 'a.png', '', 0, 'pool', 'active', 1, 1, 'image/png', 1, 1, {no})",
            "INSERT INTO annotations (id, seq, client_id, row, kind, classes, taxonomy_version, source, late, "
            "duplicate, mismatch, blind, adjudicates, suggestions, created_at) VALUES "
            f"(1, 1, 'a', 0, 'unusable', '[]', 1, 'import', {no}, {no}, {no}, {no}, {no}, '[]', '2026-03-01')",
        ):
            connection.execute(text(statement))
    before = health.missing_triggers(database)
    migrate.upgrade(database, lock, backups)
    with database.read() as connection:
        assert connection.execute(text("SELECT id, beside FROM annotations")).all() == [(1, False)]
    assert before == health.missing_triggers(database) == []
    with pytest.raises(DatabaseError, match="append-only"), database.write() as connection:
        connection.execute(text("UPDATE annotations SET beside = NOT beside"))
    database.close()


def test_a_newer_database_is_refused_and_left_alone(store: LabelStore) -> None:
    with store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(WorkspaceError, match=r"newer version.*9999"):
        LabelStore.open(store.workspace)
    database = Database(store.workspace.database_url, store.workspace.root / "write.lock")
    with database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    database.close()


def _open_and_close(root: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    LabelStore.open(Workspace.open(root)).close()


def test_many_processes_may_open_a_new_workspace_at_once(workspace: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_open_and_close, args=(str(workspace.root), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    with LabelStore.open(workspace) as store:
        assert health.problems(store.database) == []


@pytest.mark.parametrize(
    ("mount", "refused"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("9p", True), ("ext4", False), ("tmpfs", False)],
)
def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, mount: str, refused: bool) -> None:
    mounts = tmp_path / "mounts"
    folder = tmp_path / "share with space"
    folder.mkdir()
    where = str(folder).replace(" ", "\\040")
    mounts.write_text(f"rootfs / ext4 rw 0 0\nserver:/x {where} {mount} rw 0 0\nother /elsewhere nfs rw 0 0\n")
    refuse_network_file_system(tmp_path / "local.db", mounts)
    if refused:
        with pytest.raises(WorkspaceError, match=f"network file system \\({mount}\\)"):
            refuse_network_file_system(folder / "annotator.db", mounts)
    else:
        refuse_network_file_system(folder / "annotator.db", mounts)
    refuse_network_file_system(folder / "annotator.db", tmp_path / "no-such-list")


def test_write_ahead_logging_and_full_durability(sqlite_store: LabelStore) -> None:
    with sqlite_store.database.write() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    with sqlite_store.database.write_volatile() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://host/db", "not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("nonsense", "not a database URL"),
        ("oracel://x", "not supported"),
    ],
)
def test_other_databases_are_refused(url: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_url(url)


def test_an_unreachable_server_is_a_clear_error(tmp_path: Path) -> None:
    url = "postgresql://app:secret@127.0.0.1:1/none"
    workspace = Workspace.create(tmp_path / "ws", taxonomy.FERPLUS, database=url)
    with pytest.raises(WorkspaceError, match="cannot be used") as caught:
        LabelStore.open(workspace)
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_a_clear_error(workspace: Workspace) -> None:
    (workspace.root / "annotator.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(WorkspaceError, match="restore the last backup"):
        LabelStore.open(workspace)
