"""Where the face of a sample is in its image."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "faces",
        sa.Column("row", BIG, autoincrement=False, nullable=False),
        sa.Column("x", sa.Float(), nullable=False),
        sa.Column("y", sa.Float(), nullable=False),
        sa.Column("width", sa.Float(), nullable=False),
        sa.Column("height", sa.Float(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("landmarks", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("found_by", sa.String(length=32), nullable=False),
        sa.Column("small", sa.Boolean(), nullable=False),
        sa.Column("blurred", sa.Boolean(), nullable=False),
        sa.Column("turned", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(["row"], ["images.row"]),
        sa.PrimaryKeyConstraint("row"),
    )
