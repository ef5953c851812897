"""``--ini FILE#section``: the settings of a section of a Paste or Pyramid ini file, read without PasteDeploy."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigurationError
from ..settings import INI

__all__ = ["IniSettings", "read_ini"]

# What PasteDeploy itself understands in a section; none of it is a setting of ours.
_PASTE = ("use", "next", "filter-with", "paste.filter_factory", "paste.filter_app_factory")


class IniSettings(NamedTuple):
    """What a section says.

    :param values: settings under their plain names.
    :param debug: whether Pyramid's ``debug_all`` is on there.
    """

    values: dict[str, object]
    debug: bool


def read_ini(given: str) -> IniSettings:
    """The settings of ``FILE#section``.

    Without a section, and for ``#main``, it is ``[app:main]``; ``#filter:affiliates`` and ``#affiliates`` are a
    filter's. As in PasteDeploy, ``%(here)s`` is the file's folder, and ``[DEFAULT]`` stands behind every section. In a
    filter's section a setting may be written without ``katalys.`` before its name.

    :param given: the value of ``--ini``; a relative path means the current directory.
    :returns: the values as they are written, all of them strings; :class:`~katalys_wsgi.Settings` checks them.
    :raises ConfigurationError: the file or the section cannot be read; the message lists the sections there are.
    """
    file, _, name = given.partition("#")
    path = Path(file).absolute()
    parser = _parser(path)
    section = _section(parser, name or "main", path)
    try:
        values = dict(parser.items(section))
    except configparser.InterpolationError as error:
        raise ConfigurationError(f"[{section}] of {path} cannot be read: {' '.join(str(error).split())}") from None
    own = INI.select(values)
    if section.startswith("filter:"):
        own.update(_plain(values, set(parser.defaults())))
    debug = str(values.get("pyramid.debug_all", values.get("debug_all", ""))).lower()
    return IniSettings(own, debug in ("1", "true", "t", "yes", "y", "on"))


def _parser(path: Path) -> configparser.ConfigParser:
    """Parse the file as PasteDeploy would.

    :raises ConfigurationError: it cannot be read, or is not an ini file in UTF-8.
    """
    places = {"here": str(path.parent), "__file__": str(path)}
    parser = configparser.ConfigParser({name: place.replace("%", "%%") for name, place in places.items()})
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names keep their case, as in PasteDeploy
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise ConfigurationError(f"--ini {path} cannot be read: {error.strerror}.") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--ini {path} is not an ini file: {' '.join(str(error).split())}") from None
    return parser


def _section(parser: configparser.ConfigParser, name: str, path: Path) -> str:
    """The full name of a section: for ``main`` the application's is tried first, for others the filter's."""
    kinds = ("app", "filter") if name == "main" else ("filter", "app")
    for section in [name] if ":" in name else [f"{kind}:{name}" for kind in kinds]:
        if parser.has_section(section):
            return section
    there = [section for section in parser.sections() if section.startswith(("app:", "filter:"))]
    advice = (
        f"name one of these behind the #: {', '.join(there)}" if there else "it has no [app:...] and no [filter:...]"
    )
    raise ConfigurationError(f"--ini {path} has no section for {name!r}; {advice}.")


def _plain(values: dict[str, str], defaults: set[str]) -> dict[str, object]:
    """What a filter's section gives without ``katalys.`` before the name.

    What comes from ``[DEFAULT]`` is left out: it is there for every section of the file, not for this one alone.
    """
    return {
        name: value
        for name, value in values.items()
        if name not in defaults and name not in _PASTE and not name.startswith((INI.prefix, "set ", "get "))
    }
