"""Descriptions: each setting has one, in the order of the table of settings."""

from __future__ import annotations

from dataclasses import fields

import pytest

from katalys_wsgi import Settings
from katalys_wsgi.cli.descriptions import DESCRIPTIONS, Description


def test_every_setting_is_described() -> None:
    assert list(DESCRIPTIONS) == [setting.name for setting in fields(Settings)]


@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=list(DESCRIPTIONS))
def test_a_description_is_a_sentence_and_not_another_name(description: Description) -> None:
    assert "KATALYS_" not in description.text
    assert len(description.text.split()) > 4
    assert not description.text.endswith(".")
