"""What is out at a linked labeling tool, what came back, and answers that stand beside another of the same person."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # A plain ADD COLUMN, no batch mode: the table is not rebuilt, its triggers stay.
    op.add_column("annotations", sa.Column("beside", sa.Boolean(), server_default=sa.false(), nullable=False))
    _links()
    _tasks()
    _answers()
    _outbox()


def _links() -> None:
    op.create_table(
        "exchange_links",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("cursor", sa.String(length=40), nullable=True),
        sa.Column("sent_seq", BIG, nullable=False),
        sa.Column("model_version", sa.String(length=80), nullable=True),
        sa.Column("webhook_id", sa.Integer(), nullable=True),
        sa.Column("backend_id", sa.Integer(), nullable=True),
        sa.Column("secret_digest", sa.String(length=64), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _tasks() -> None:
    op.create_table(
        "exchange_tasks",
        sa.Column("link_id", sa.Integer(), nullable=False),
        sa.Column("task_id", BIG, autoincrement=False, nullable=False),
        sa.Column("row", BIG, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("shown", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("model_version", sa.String(length=80), nullable=True),
        sa.Column("since_seq", BIG, nullable=False),
        sa.Column("picture", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["link_id"], ["exchange_links.id"]),
        sa.ForeignKeyConstraint(["row"], ["images.row"]),
        sa.PrimaryKeyConstraint("link_id", "task_id"),
    )
    op.create_index("ix_exchange_tasks_state", "exchange_tasks", ["link_id", "state", "task_id"], unique=False)
    op.create_index("ix_exchange_tasks_row", "exchange_tasks", ["row"], unique=False)


def _answers() -> None:
    op.create_table(
        "exchange_answers",
        sa.Column("link_id", sa.Integer(), nullable=False),
        sa.Column("ls_id", BIG, autoincrement=False, nullable=False),
        sa.Column("task_id", BIG, nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("ls_updated_at", sa.String(length=40), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("annotation_id", BIG, nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["link_id"], ["exchange_links.id"]),
        sa.PrimaryKeyConstraint("link_id", "ls_id"),
    )
    op.create_index("ix_exchange_answers_task", "exchange_answers", ["link_id", "task_id"], unique=False)
    op.create_index("ix_exchange_answers_annotation", "exchange_answers", ["annotation_id"], unique=False)
    op.create_index("ix_exchange_answers_state", "exchange_answers", ["link_id", "state"], unique=False)


def _outbox() -> None:
    op.create_table(
        "exchange_outbox",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("link_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=120), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("row", BIG, nullable=True),
        sa.Column("task_id", BIG, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["link_id"], ["exchange_links.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_exchange_outbox_key", "exchange_outbox", ["link_id", "key"], unique=True)
    op.create_index(
        "ix_exchange_outbox_due", "exchange_outbox", ["link_id", "state", "kind", "not_before"], unique=False
    )
