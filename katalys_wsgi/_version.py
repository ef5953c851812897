"""The version, in one place: packaging, ``katalys_wsgi.__version__`` and the User-Agent read it here."""

__all__ = ["__version__"]

__version__ = "0.1.0"
