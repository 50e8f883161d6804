"""What scripts/serve asks the demo models, and what they should answer."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from demo import DIGITS, SAMPLES, SENTENCES
from server.client import Client
from server.http import Answer
from server.paths import ROOT

EXPECTED_DIGITS = {"three.png": "3", "seven.png": "7"}
QUERY = "How do I get my money back?"
CANDIDATES = (
    "Where can I see the northern lights?",
    "Return the item within 30 days for a full refund.",
    "The meeting was moved to Thursday.",
)
NEAREST = 1  # index of the candidate that answers QUERY
LONE_REQUESTS = 11  # whose median time is shown


def digits_answers(client: Client) -> bool:
    """Whether the digit classifier answers."""
    return client.predict(DIGITS, (SAMPLES / "three.png").read_bytes()).status == 200


def sentences_answers(client: Client) -> bool:
    """Whether the sentence encoder answers."""
    return client.predict(SENTENCES, b"ready?", "text/plain").status == 200


def show_answers(client: Client) -> bool:
    """Ask both models and print their answers. Returns whether all were right."""
    _show_description(client, DIGITS)
    right = _show_digits(client)
    _show_description(client, SENTENCES)
    right &= _show_sentences(client)
    _show_speed(client)
    return right


def _show_description(client: Client, name: str) -> None:
    described = client.customized(name)
    engine, precision, device = (described[key]["name"] for key in ("engine", "precision", "device"))
    print(f"\n{name}: engine {engine}, precision {precision} ({described['precision']['why']}), {device}")


def _show_digits(client: Client) -> bool:
    right = True
    for file, label in EXPECTED_DIGITS.items():
        answer = client.predict(DIGITS, (SAMPLES / file).read_bytes())
        classes = answer.json() if answer.status == 200 else []
        good = bool(classes) and classes[0]["label"] == label
        shown = "   ".join(f"{item['label']} {item['probability']:6.1%}" for item in classes[:3])
        print(f"  {_verdict(good)} {SAMPLES.relative_to(ROOT) / file}  ->  {shown or _shown(answer)}")
        right &= good
    return right


def _show_sentences(client: Client) -> bool:
    answer = client.predict(SENTENCES, json.dumps([QUERY, *CANDIDATES]).encode(), "application/json")
    if answer.status != 200:
        print(f"  {_verdict(False)} {_shown(answer)}")
        return False
    query, *candidates = answer.json()
    scores = [sum(a * b for a, b in zip(query, candidate, strict=True)) for candidate in candidates]
    good = scores.index(max(scores)) == NEAREST
    print(f"  {_verdict(good)} {len(query)} numbers per sentence. Nearest to: {QUERY}")
    for score, text in sorted(zip(scores, CANDIDATES, strict=True), reverse=True):
        print(f"        {score:6.3f}  {text}")
    return good


def _show_speed(client: Client) -> None:
    """Print how long a lone request takes, its batch's delay included. This is no benchmark."""
    image = (SAMPLES / "seven.png").read_bytes()
    asks: dict[str, Callable[[], Answer]] = {
        DIGITS: lambda: client.predict(DIGITS, image),
        SENTENCES: lambda: client.predict(SENTENCES, QUERY.encode(), "text/plain"),
    }
    for name, ask in asks.items():
        times_ms = []
        for _ in range(LONE_REQUESTS):
            started = time.perf_counter()
            ask()
            times_ms.append((time.perf_counter() - started) * 1e3)
        print(f"\n{name}: {statistics.median(times_ms):.1f} ms per lone request", end="")
    on_cpu = client.customized(DIGITS)["device"]["name"].startswith("cpu")
    print("\nThis is a CPU: good for trying things out, no measure of what a GPU does." if on_cpu else "", flush=True)


def _verdict(good: bool) -> str:
    return "ok   " if good else "WRONG"


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:200]!r}"
