"""Listings of entries: a table to read, CSV for accounting, JSON for programs. None holds a buyer's data.

A listing writes to a stream that is open for text, such as standard output, and leaves it open.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from .. import operations
from ..operations import utc, visible
from ..outbox import Entry

__all__ = ["COLUMNS", "FORMATS", "write_csv", "write_json", "write_table"]

#: The columns of the CSV, in their order. ``codes`` are the coupons', ``other`` is what else a message says.
COLUMNS = (
    "recorded", "finished", "state", "kind", "order_id", "site_id", "sale_amount", "subtotal_amount", "currency",
    "codes", "transaction_id", "offer_id", "aff_id", "order_status", "other", "confirmed", "attempts", "last_error",
)  # fmt: skip

_OF_A_COUPON = re.compile(r"discount_\d+_code", re.ASCII)
_LEFT_OUT = ("type", "order_id")
_MAIN_FACTS = (
    "site_id", "sale_amount", "subtotal_amount", "currency", "codes", "transaction_id", "offer_id", "aff_id",
    "order_status",
)  # fmt: skip


def write_table(entries: Iterable[Entry], out: TextIO) -> None:
    """One line for each entry: when it was recorded (UTC), state, kind, order, what it says, and the last error.

    Empty fields are left out, and characters that are not printable are escaped, so that an order id can neither forge
    a line nor control the terminal.
    """
    for entry in entries:
        order = visible(entry.order_id)
        facts = "".join(f"  {name}={visible(value)}" for name, value in _in_table(entry).items() if value)
        reason = f"  {visible(entry.last_error)}" if entry.last_error else ""
        print(f"{utc(entry.created_at)}  {entry.state:<9}  {entry.kind:<10}  {order}{facts}{reason}", file=out)


def _in_table(entry: Entry) -> Mapping[str, str]:
    """The main facts of a sale; of an update all of them, since they are what it is about."""
    row = _columns(entry)
    return {name: row[name] for name in (*_MAIN_FACTS, *(["other"] if entry.kind == "update" else []))}


def write_json(entries: Iterable[Entry], out: TextIO) -> None:
    """One JSON list of objects, with the fields of each message under ``fields``; ``[]`` when there is no entry.

    The keys are those of :func:`katalys_wsgi.operations.as_row`; times are ISO 8601 in UTC.
    """
    print(json.dumps([operations.as_row(entry) for entry in entries], indent=2), file=out)


def write_csv(entries: Iterable[Entry], out: TextIO) -> None:
    """A header and one line for each entry (RFC 4180, but for plain line feeds); times are ISO 8601 in UTC.

    The columns are :data:`COLUMNS`. A cell that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in _columns(entry).items()} for entry in entries)


def _columns(entry: Entry) -> dict[str, str]:
    """What an entry says, by column; fields without a column of their own are joined in ``other``."""
    facts = operations.facts(entry)
    codes = [value for name, value in facts.items() if _OF_A_COUPON.fullmatch(name) and value]
    main = {name: facts.get(name, "") for name in COLUMNS}
    other = {
        name: value
        for name, value in facts.items()
        if name not in (*COLUMNS, *_LEFT_OUT) and not _OF_A_COUPON.fullmatch(name)
    }
    return {
        **main,
        "recorded": operations.iso(entry.created_at) or "",
        "finished": operations.iso(entry.finished_at) or "",
        "state": entry.state.value,
        "kind": entry.kind.value,
        "order_id": entry.order_id,
        "codes": " ".join(codes),
        "other": " ".join(f"{name}={value}" for name, value in other.items()),
        "confirmed": "yes" if entry.confirmed else "no",
        "attempts": str(entry.attempts),
        "last_error": entry.last_error or "",
    }


def _cell(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: shoppers type coupon codes (OWASP, "CSV Injection")."""
    is_number = re.fullmatch(r"-?[\d.]+", value, re.ASCII)
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number else value


#: The formats of ``list --format`` by name.
FORMATS: Mapping[str, Callable[[Iterable[Entry], TextIO], None]] = {
    "table": write_table,
    "csv": write_csv,
    "json": write_json,
}
