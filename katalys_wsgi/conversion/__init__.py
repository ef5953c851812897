"""What was sold, and the message that reports it to Katalys."""

__all__: list[str] = []
