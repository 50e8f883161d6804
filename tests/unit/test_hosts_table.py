"""Each host of tests/e2e/hosts.py is asked each request of tests/hosts_table.py, or it is said why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import hosts
from tests.hosts_table import TABLE

E2E = Path(__file__).parents[1] / "e2e"


def test_requests_have_names_of_their_own() -> None:
    assert len({str(asked) for asked in TABLE}) == len(TABLE)


@pytest.mark.parametrize("name", hosts.HOSTS)
def test_the_file_of_a_host_asks_it_all_its_rows(name: str) -> None:
    text = (E2E / hosts.HOSTS[name].file).read_text(encoding="utf-8")
    assert f'hosts.rows("{name}")' in text
    assert f'hosts.compare("{name}"' in text


def test_triton_alone_is_spared_requests_and_each_for_a_reason() -> None:
    spared = {name: [asked for asked in TABLE if hosts.HOSTS[name].missing(asked)] for name in hosts.HOSTS}
    for asked in spared.pop("triton"):
        print(f"{asked}: {asked.not_on_triton}")
    assert not any(spared.values())


def test_triton_is_asked_for_each_model_right_and_wrong_ones() -> None:
    asked = {(row.model, row.status == 200) for row in hosts.rows("triton")}
    assert asked >= {
        ("digits", True),
        ("digits", False),
        ("sentences", True),
        ("sentences", False),
        ("reranker", True),
    }
    v2 = [row for row in TABLE if row.target.endswith("/infer")]
    assert len(hosts.rows("triton")) >= len(v2) - 4
