"""What may be kept of an answer: its first words, without the buyer's data that it may repeat."""

from __future__ import annotations

import json
import re
from html import unescape
from urllib.parse import unquote

from ..conversion.wire import PERSONAL

__all__ = ["LONGEST_ERROR", "scrubbed"]

#: Characters of an answer that are kept, for the operator who asks why a row failed.
LONGEST_ERROR = 200


def scrubbed(text: str, payload: str) -> str:
    """The first words of ``text`` on one line, without the personal fields of ``payload``.

    :param text: an answer or an error, which may repeat what was sent in whatever spelling.
    :param payload: the message as JSON.
    :returns: at most :data:`LONGEST_ERROR` characters; nothing if the payload cannot be read, for then
        it is unknown what ``text`` repeats.
    """
    try:
        fields = json.loads(payload)
        values = [str(fields[name]) for name in PERSONAL if fields.get(name)]
    except (ValueError, TypeError, AttributeError):
        return ""
    text = unescape(unquote(text))
    for value in values:
        for written in (value, value.replace(" ", "+"), json.dumps(value)[1:-1]):
            text = re.sub(re.escape(written), "…", text, flags=re.IGNORECASE)
    text = re.sub(r"[^\s@]+@[^\s@]+", "…", text)
    return " ".join(text.split())[:LONGEST_ERROR]
