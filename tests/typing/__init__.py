"""Right and wrong uses of the public API, for type checkers: checked by mypy and pyright, never run."""
