"""Alembic's entry: runs the migrations on the connection that `upgrade` hands over."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    transactional_ddl=False,
    # Another program's version table may be visible further down the search path.
    version_table_schema=context.config.attributes.get("schema"),
)
context.run_migrations()
