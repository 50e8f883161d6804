"""The environments that scripts/test makes before its tests: all that they need, whatever fails on the way."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e import environments

E2E = Path(__file__).parents[1] / "e2e"


def test_every_environment_of_the_tests_is_made() -> None:
    named = re.compile(r"(?:own_environment\.(?:made|python)|environment)\(\s*\"(\w+)\"")
    found = {name for path in E2E.glob("*.py") for name in named.findall(path.read_text(encoding="utf-8"))}
    assert found == set(environments.MAKERS)


def test_one_that_fails_does_not_keep_the_others_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def fails() -> Path:
        raise subprocess.CalledProcessError(1, "pip")

    def skips() -> Path:
        pytest.skip("pip ended with 1")

    def works() -> Path:
        made.append("third")
        return Path("python")

    monkeypatch.setattr(environments, "MAKERS", {"first": fails, "second": skips, "third": works})
    environments.main()
    assert made == ["third"]
    told = capsys.readouterr().err
    assert "first: Command 'pip'" in told
    assert "second: pip ended with 1" in told
