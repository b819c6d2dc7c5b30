"""Everything that knows SQL: tables, statements, connections, migrations, the embedded Postgres.

May import: `domain`, `config`, `errors`. Must not: know handlers, consumers or the command line.
"""
