"""The date, the machine and the versions."""

import os
import re

import pytest

from checks.core.environment import environment, machine, versions


def test_the_environment_says_when_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    described = environment()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", described["date"])
    assert described.items() >= (machine() | versions()).items()
    assert described["processor"]
    assert 1 <= described["cores"] <= (os.cpu_count() or 1)


def test_a_fixed_date_makes_two_runs_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1769860800")
    assert environment()["date"] == "2026-01-31T12:00:00Z"
