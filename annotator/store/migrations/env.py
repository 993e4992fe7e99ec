"""Alembic's entry: migrate over the connection that `annotator.store.migrate` hands in, in its transaction."""

from alembic import context

from annotator.store.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
