"""The index against Postgres: compare, replay, repair, snapshot and restore it."""
