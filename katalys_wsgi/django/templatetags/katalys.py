"""The template tag ``{% katalys_script_tag %}``: Katalys' JavaScript for every page of an ``offline_conv`` shop."""

from __future__ import annotations

from typing import Any

from django import template

from ...javascript import Html
from ..shop import get_tracker

__all__ = ["katalys_script_tag"]

register: Any = template.Library()


@register.simple_tag  # type: ignore[untyped-decorator] # Django has no types
def katalys_script_tag(nonce: str | None = None) -> Html:
    """``{% load katalys %}{% katalys_script_tag %}``, or ``{% katalys_script_tag nonce=request.csp_nonce %}``.

    :param nonce: of the page's Content-Security-Policy; None where there is none.
    :returns: HTML that Django does not escape again.
    :raises ConfigurationError: the project's settings cannot work.
    """
    return get_tracker().script_tag(nonce)
