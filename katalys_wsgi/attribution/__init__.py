"""Who brought the shopper: the click of an affiliate's link, its cookie, and the visitor."""

__all__: list[str] = []
