"""Look up known vulnerabilities of the installed packages with pip-audit: what scripts/audit does."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

DATABASES = ("pypi", "osv")  # pip-audit's names; the first that answers is asked
# Known since 2022. A database that does not know it, or an index that leaves vulnerabilities out, does not count.
CANARY = {"pillow": "9.0.0"}
OWN = "torchserve-fast-handlers"
FOUND, NOT_ASKED = 1, 3  # exit statuses
TIMEOUT_S = 600
DESCRIPTION = """\
Look up known vulnerabilities of all packages that are installed here, in the versions that constraints.txt gave, with
pip-audit. It asks PyPI, or else OSV. Whether that database answers is tried with a release whose vulnerabilities are
long known: an index without them would let everything pass.
"""
EPILOG = """\
examples:
  scripts/audit
  scripts/audit --ignore GHSA-xxxx-xxxx-xxxx     leave out what does not concern this project

Exit status: 0 if every package was looked up and none has a known vulnerability; 1 if one has, or if one could not be
looked up; 3 if no database answers, or 0 with --if-possible; 2 for a wrong command line.
"""

Packages = Mapping[str, str]  # versions by name
Ask = Callable[[Packages, str], list[Mapping[str, Any]]]


class NoAnswerError(RuntimeError):
    """pip-audit did not report. The message has its last line."""


def main() -> int:
    chosen = parser().parse_args()
    database, problems = first_that_answers(ask)
    if database is None:
        print(f"NOT audited: no database of vulnerabilities answers here. {'; '.join(problems)}", file=sys.stderr)
        return 0 if chosen.if_possible else NOT_ASKED
    packages = installed()
    try:
        lines = problems_of(ask(packages, database), packages, chosen.ignore)
    except NoAnswerError as error:
        lines = [str(error)]
    for line in lines:
        print(line, file=sys.stderr)
    print(f"{len(packages)} packages looked up at {database}: {len(lines)} problems")
    return FOUND if lines else 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/audit",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--ignore", action="append", default=[], metavar="ID", help="a vulnerability to leave out")
    found.add_argument(
        "--if-possible", action="store_true", help="exit with status 0 if no database answers; the reason is printed"
    )
    return found


def first_that_answers(ask: Ask) -> tuple[str | None, list[str]]:
    """Return the first database that knows the canary's vulnerabilities, and why those before it do not count."""
    problems = []
    for database in DATABASES:
        try:
            found = ask(CANARY, database)
        except NoAnswerError as error:
            problems.append(f"{database}: {error}")
            continue
        if any(one.get("vulns") for one in found):
            return database, problems
        reasons = [str(one["skip_reason"]) for one in found if "skip_reason" in one]
        why = "; ".join(reasons) or "it has no vulnerabilities of a release that has some"
        problems.append(f"{database}: {why}")
    return None, problems


def problems_of(report: Sequence[Mapping[str, Any]], packages: Packages, ignored: Sequence[str]) -> list[str]:
    """Return a line per vulnerability, and per package that was not looked up."""
    lines = [
        f"{one['name']} {one.get('version', '')} has {vulnerability['id']}; repaired in "
        f"{', '.join(vulnerability.get('fix_versions') or ['no release'])}"
        for one in report
        for vulnerability in one.get("vulns", [])
        if not {vulnerability["id"], *vulnerability.get("aliases", [])} & set(ignored)
    ]
    skipped = {canonicalize_name(one["name"]): str(one["skip_reason"]) for one in report if "skip_reason" in one}
    seen = {canonicalize_name(one["name"]) for one in report}
    lines += [f"{name} was not looked up: {why}" for name, why in sorted(skipped.items())]
    return lines + [f"{name} was not looked up: it is not in the report" for name in sorted(packages.keys() - seen)]


def installed() -> dict[str, str]:
    """Return the installed packages with their versions, without local parts such as "+cpu": no database has them."""
    found = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions() if one.name}
    return {name: version.partition("+")[0] for name, version in sorted(found.items()) if name != OWN}


def ask(packages: Packages, database: str) -> list[Mapping[str, Any]]:
    """Return pip-audit's report of these packages, one object each. Raises NoAnswerError."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--no-deps", "--disable-pip"]
        command += ["--vulnerability-service", database, "--format", "json", "--output", str(report)]
        try:
            done = subprocess.run(
                [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise NoAnswerError(f"no answer within {TIMEOUT_S} s") from None
        if not report.is_file():
            raise NoAnswerError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        dependencies: list[Mapping[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    return dependencies


if __name__ == "__main__":
    sys.exit(main())
