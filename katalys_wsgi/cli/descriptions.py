"""Descriptions: what each setting does, in one sentence; ``--help`` shows them.

They stand apart from the table of settings, which every process of a shop loads. There is one for each setting, and a
test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["DESCRIPTIONS", "Description"]


class Description(NamedTuple):
    """What a setting does.

    :param metavar: what its value is, with the unit.
    :param text: the rest of a sentence that begins with the setting's name.
    """

    metavar: str
    text: str


#: Every setting, in the order of :class:`~katalys_wsgi.Settings`.
DESCRIPTIONS: Mapping[str, Description] = MappingProxyType({
    "site_id": Description("ID", "the shop's Tracking ID, from Katalys' Integrations page, such as KA-1A2B3C4"),
    "secret_key": Description("KEY", "what signs the click's cookie: 32 characters or more, known to nobody else"),
    "conversion_type": Description("TYPE", "force_convert: only affiliates' sales are sent; offline_conv: every order"),
    "endpoint": Description("URL", "where postbacks are sent; leave it out for Katalys' own address"),
    "live": Description(
        "true|false|auto", "whether postbacks may leave this machine; auto: not in debug mode and not in tests"
    ),
    "wire": Description("json|form|get", "how a postback is written; over get Katalys never confirms one"),
    "attribution": Description("RULE", "which of two links is credited: last-click or first-click"),
    "attribution_window": Description("SECONDS", "how long a click counts; at most 400 days"),
    "sources": Description("NAMES", "the values of utm_source that are Katalys' links"),
    "count_fetches": Description("true|false", "whether a script's request within the shop may bring a click too"),
    "cookie_name": Description("NAME", "the name of the click's cookie"),
    "cookie_domain": Description("DOMAIN", "the domain whose hosts share the click's cookie"),
    "cookie_secure": Description("true|false|auto", "whether browsers send the click's cookie over https only"),
    "consent": Description("FUNCTION", "asked whether the visitor consented, before the cookie is set"),
    "trusted_proxies": Description("COUNT", "how many proxies in front of the shop append to X-Forwarded-For"),
    "outbox": Description("FILE|URL", "where postbacks wait: a file on a local disk, or the shop's database"),
    "delivery": Description("thread|external", "who delivers: a thread in each process of the shop, or this command"),
    "delivery_workers": Description("COUNT", "how many postbacks are sent at the same time"),
    "connect_timeout": Description("SECONDS", "how long an attempt waits for a connection"),
    "read_timeout": Description("SECONDS", "how long an attempt waits for the next byte of the answer"),
    "deadline": Description("SECONDS", "how long an attempt may take in all"),
    "give_up_after": Description("SECONDS", "how long a postback is tried before it becomes a dead letter"),
    "retention": Description("SECONDS", "how long finished entries are kept, for your questions"),
    "hash_email": Description("true|false", "whether a keyed hash is reported instead of the e-mail address"),
    "strict": Description("true|false", "whether wrong data raises an error in the shop's pages"),
})  # fmt: skip
