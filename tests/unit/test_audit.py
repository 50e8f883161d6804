"""The audit never passes silently: without a database, with a deaf one, and with packages that it does not know."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import audit
import pytest
from audit import NoAnswerError

Report = list[Mapping[str, Any]]

KNOWN: Report = [{"name": "pillow", "version": "9.0.0", "vulns": [{"id": "GHSA-1", "fix_versions": ["9.0.1"]}]}]
DEAF: Report = [{"name": "pillow", "version": "9.0.0", "vulns": []}]
ABSENT: Report = [{"name": "pillow", "skip_reason": "not found on PyPI"}]
CLEAN: Report = [{"name": "httpx", "version": "0.28.1", "vulns": []}]


def answers(*by_database: object) -> audit.Ask:
    """Databases that answer the canary like this, in order; the last one answers everything else."""
    by_name = dict(zip(audit.DATABASES, by_database, strict=False))

    def ask(packages: Mapping[str, str], database: str) -> list[Mapping[str, Any]]:
        answer: Any = by_name.get(database, NoAnswerError("timed out"))
        if isinstance(answer, Exception):
            raise answer
        found: list[Mapping[str, Any]] = answer
        return found

    return ask


def test_the_first_database_that_knows_the_canary_is_asked() -> None:
    assert audit.first_that_answers(answers(KNOWN)) == ("pypi", [])
    assert audit.first_that_answers(answers(ABSENT, KNOWN)) == ("osv", ["pypi: not found on PyPI"])
    assert audit.first_that_answers(answers(NoAnswerError("no route"), KNOWN))[0] == "osv"


@pytest.mark.parametrize("answer", [DEAF, ABSENT, [], NoAnswerError("no route")])
def test_a_deaf_database_does_not_count(answer: object) -> None:
    database, problems = audit.first_that_answers(answers(answer, answer))
    assert database is None
    assert len(problems) == 2


@pytest.mark.parametrize(("arguments", "status"), [([], 3), (["--if-possible"], 0)])
def test_without_a_database_the_reason_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    monkeypatch.setattr(audit, "ask", answers(NoAnswerError("no route")))
    assert audit.main() == status
    assert "NOT audited: no database of vulnerabilities answers here. pypi: no route" in capsys.readouterr().err


def test_vulnerabilities_and_gaps_are_problems() -> None:
    report: Report = [*KNOWN, *CLEAN, {"name": "Own", "skip_reason": "not found on PyPI"}]
    packages = {"pillow": "9.0.0", "httpx": "0.28.1", "own": "1", "forgotten": "2"}
    assert audit.problems_of(report, packages, []) == [
        "pillow 9.0.0 has GHSA-1; repaired in 9.0.1",
        "own was not looked up: not found on PyPI",
        "forgotten was not looked up: it is not in the report",
    ]
    assert audit.problems_of(KNOWN, {"pillow": "9.0.0"}, ["GHSA-1"]) == []
    aliased: Report = [{**KNOWN[0], "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": []}]}]
    assert audit.problems_of(aliased, {}, ["CVE-1"]) == []
    assert "repaired in no release" in audit.problems_of(aliased, {}, [])[0]


@pytest.mark.parametrize(("report", "status"), [(CLEAN, 0), (KNOWN, 1), (NoAnswerError("broke off"), 1)])
def test_the_exit_status(monkeypatch: pytest.MonkeyPatch, report: object, status: int) -> None:
    def ask(packages: Mapping[str, str], database: str) -> list[Mapping[str, Any]]:
        return answers(KNOWN if packages == audit.CANARY else report)(packages, database)

    monkeypatch.setattr(sys, "argv", ["audit"])
    monkeypatch.setattr(audit, "ask", ask)
    monkeypatch.setattr(audit, "installed", lambda: {"httpx": "0.28.1"})
    assert audit.main() == status


def test_installed_packages_have_no_local_versions() -> None:
    found = audit.installed()
    assert "torch" in found
    assert audit.OWN not in found
    assert not any("+" in version for version in found.values())
