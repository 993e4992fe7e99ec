"""The one door to the database of a workspace."""

from typing import Self

from annotator.settings import Workspace
from annotator.store import meta, migrate
from annotator.store.accounts import Accounts
from annotator.store.activity import Activity
from annotator.store.database import Database, refuse_network_file_system
from annotator.store.decisions import Decisions
from annotator.store.erasing import Erasing
from annotator.store.exchange import Exchange
from annotator.store.faces import Faces
from annotator.store.images import Images
from annotator.store.learning import Learning
from annotator.store.leases import Leases


class LabelStore:
    """Images, decisions, leases, accounts and what the learner published. Safe to share between threads."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        taxonomy = workspace.settings.taxonomy
        self.workspace = workspace
        self.database = database
        self.images = Images(database, taxonomy.slugs, taxonomy.version)
        self.faces = Faces(database)
        self.decisions = Decisions(database, taxonomy)
        self.exchange = Exchange(database, self.decisions)
        self.leases = Leases(database)
        self.learning = Learning(database)
        self.accounts = Accounts(database)
        self.erasing = Erasing(database)
        self.activity = Activity(database)

    @classmethod
    def open(cls, workspace: Workspace) -> Self:
        """Open the store of a workspace; make its database when there is none, upgrade it when it is older.

        Raises:
            WorkspaceError: a network file system under SQLite, a full disk, an unreachable server, a damaged
                database, or one written by a newer version.
            InputError: `database` in the settings is not a URL that is supported.
        """
        database = Database(workspace.database_url, workspace.root / "write.lock")
        try:
            if database.path is not None:
                refuse_network_file_system(database.path)
            migrate.upgrade(database, workspace.root / "store.lock", workspace.root / "backups")
        except BaseException:
            database.close()
            raise
        return cls(workspace, database)

    def close(self) -> None:
        """Close every connection. The store cannot be used afterwards."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def last_seq(self) -> int:
        """Return the highest annotation seq so far: one indexed read, cheap enough to poll."""
        with self.database.read() as connection:
            return meta.last_seq(connection)
