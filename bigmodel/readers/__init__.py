"""Readers of files that people bring: packed files, JSON lines and tables. Invalid files raise `UserError`."""
