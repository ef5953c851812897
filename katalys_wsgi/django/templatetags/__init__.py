"""Where Django looks for template tags."""

__all__: list[str] = []
