"""The triggers that make `annotations` append-only, for both databases.

They live here, not only in a migration, because Alembic's batch mode rebuilds a SQLite table and drops them without a
word: they are made again after every upgrade and looked for on every open.
"""

from sqlalchemy import Connection, text

_REFUSED = "annotations are append-only"

_SQLITE = {
    "annotations_no_update": f"""
        CREATE TRIGGER annotations_no_update BEFORE UPDATE ON annotations
        BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END""",
    "annotations_no_delete": f"""
        CREATE TRIGGER annotations_no_delete BEFORE DELETE ON annotations
        WHEN NOT EXISTS (SELECT 1 FROM erasures WHERE erasures.row = OLD.row)
        BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END""",
    # INSERT OR REPLACE deletes the old row without firing the delete trigger.
    "annotations_no_replace": f"""
        CREATE TRIGGER annotations_no_replace BEFORE INSERT ON annotations
        WHEN EXISTS (SELECT 1 FROM annotations WHERE id = NEW.id)
            OR EXISTS (SELECT 1 FROM annotations WHERE seq = NEW.seq)
            OR EXISTS (SELECT 1 FROM annotations WHERE client_id = NEW.client_id)
        BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END""",
}

_POSTGRESQL = {
    "annotations_no_update": "BEFORE UPDATE ON annotations FOR EACH ROW",
    "annotations_no_delete": "BEFORE DELETE ON annotations FOR EACH ROW",
    "annotations_no_truncate": "BEFORE TRUNCATE ON annotations FOR EACH STATEMENT",
}

_POSTGRESQL_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION refuse_annotation_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' AND EXISTS (SELECT 1 FROM erasures WHERE erasures.row = OLD.row) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION '{_REFUSED}' USING ERRCODE = 'integrity_constraint_violation';
    END $$"""


def missing(connection: Connection) -> list[str]:
    """Return the names of the triggers that are absent, disabled, or (SQLite) of another text."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
        found = {row.name: _squeezed(row.sql) for row in rows}
        return [name for name, sql in _SQLITE.items() if found.get(name) != _squeezed(sql)]
    rows = connection.execute(
        text(
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' "
            "AND tgrelid = to_regclass('annotations')"
        )
    )
    names = {row.tgname for row in rows}
    return [name for name in _POSTGRESQL if name not in names]


def create(connection: Connection) -> None:
    """Make every trigger anew."""
    if connection.dialect.name == "sqlite":
        for name, sql in _SQLITE.items():
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
            connection.exec_driver_sql(sql)
        return
    connection.exec_driver_sql(_POSTGRESQL_FUNCTION)
    for name, when in _POSTGRESQL.items():
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON annotations")
        connection.exec_driver_sql(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION refuse_annotation_change()")


def _squeezed(sql: str) -> str:
    return " ".join(sql.split())
