"""Send models a small request each, to see whether they answer: what scripts/ready does."""

from __future__ import annotations

import argparse
import functools
import io
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from argument_types import seconds
from PIL import Image, ImageOps
from server.client import Client, refusal
from server.errors import ServerError
from server.http import Answer
from server.logs import Logs
from server.options import add_server_options, client_of, explained

AT_ONCE = 8  # models that are asked at the same time
TIMEOUT_S = 10.0
SIZE = (500, 375)  # pixels, as photographs on web sites have; a small picture would be enlarged
MASKS = ("[MASK]", "<mask>")  # of BERT and its relatives, and of RoBERTa and its relatives
DESCRIPTION = f"""\
Send every model a small request, and exit with status 0 if all answer within the time limit. TorchServe's own /ping
does not ask the models: it answers "Healthy" while no worker starts.

The request is made here, by the kind in the model's description: a JPEG of {SIZE[0]}x{SIZE[1]} pixels, or the word
"ready".
"""
EPILOG = """\
examples:
  scripts/ready                            all registered models
  scripts/ready digits --timeout-s 2       one model, within 2 seconds
  scripts/ready --ts-config logs/serve-9080.properties      for a server of scripts/serve --port 9080
  until scripts/ready; do sleep 1; done    wait for a server that is starting

as a probe of Kubernetes:
  readinessProbe: {exec: {command: [scripts/ready, --timeout-s, "5"]}, timeoutSeconds: 6}

Exit status: 0 if all models answer; 1 if one does not, with the reason on standard error; 2 for a wrong command line.
"""


class Sample(NamedTuple):
    """A request. content_type: "" leaves it to TorchServe."""

    body: bytes
    content_type: str


def main() -> int:
    chosen = parser().parse_args()
    deadline = time.monotonic() + chosen.timeout_s
    try:
        client = replace(client_of(chosen), timeout_s=chosen.timeout_s)
        client.token("inference")  # renewed here, if need be, and not by several threads
        names = chosen.names or client.models()
        if not names:
            raise ServerError("no model is registered")
    except (OSError, ServerError) as error:
        print(f"error: {explained(error, chosen)}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        failures = [*pool.map(lambda name: show(client, name, deadline), names)]
    return 1 if any(failures) else 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/ready",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("names", nargs="*", metavar="NAME", help="models to ask (default: all that are registered)")
    found.add_argument(
        "--timeout-s",
        type=seconds,
        default=TIMEOUT_S,
        metavar="S",
        help="time limit for all models together, in seconds (default: %(default)g)",
    )
    add_server_options(found)
    return found


def show(client: Client, model: str, deadline: float) -> bool:
    """Ask a model, and print what came of it. Returns whether it failed."""
    try:
        milliseconds = ask(client, model, deadline)
    except (OSError, ServerError) as error:
        print(f"{model} does not answer: {error}", file=sys.stderr, flush=True)
        return True
    print(f"{model} answers, in {milliseconds:.0f} ms", flush=True)
    return False


def ask(client: Client, model: str, deadline: float) -> float:
    """The milliseconds that a prediction takes.

    deadline: in time.monotonic()'s seconds. Raises ServerError or OSError with the reason if there is no prediction.
    """
    check_workers(within(client, deadline), model)
    samples = samples_for(model, described(within(client, deadline), model))
    for sample in samples:
        started = time.monotonic()
        answer = predict(client, model, sample, deadline)
        if answer.status == 200:
            return (time.monotonic() - started) * 1e3
    raise ServerError(refusal(answer))


def predict(client: Client, model: str, sample: Sample, deadline: float) -> Answer:
    """The model's answer. Raises OSError if it does not come in time."""
    try:
        return within(client, deadline).predict(model, sample.body, sample.content_type)
    except TimeoutError:
        raise TimeoutError("no prediction came within the time limit; its workers may be busy") from None


def within(client: Client, deadline: float) -> Client:
    """The client with the time that is left. Raises TimeoutError if none is."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time limit is reached")
    return replace(client, timeout_s=left)


def check_workers(client: Client, model: str) -> None:
    """Raises ServerError if no worker serves the model: TorchServe would let a request wait for minutes."""
    workers = client.describe(model)["workers"]
    if not workers:
        raise ServerError(f"it has no workers; scripts/scale {model} 1 starts one")
    if any(worker["status"] == "READY" for worker in workers):
        return
    logs = Logs(client.folder)
    failed = {worker["id"] for worker in workers} <= logs.stopped(model)
    error = logs.last_error(model) or "it gave no reason, there may be too little memory"
    why = f"a worker could not load: {error}" if failed else "its workers are still loading"
    raise ServerError(f"no worker is ready; {why} (log: {logs.workers})")


def described(client: Client, model: str) -> Mapping[str, Any]:
    """The handler's description of the model; {} for a handler of another kind. Raises OSError or ServerError."""
    try:
        about = client.customized(model)
    except (KeyError, ValueError, IndexError):
        return {}
    return about if isinstance(about, Mapping) else {}


@functools.cache
def picture() -> bytes:
    """A JPEG of SIZE with shapes and noise, which takes as long to decode as a photograph."""
    shapes = Image.effect_mandelbrot(SIZE, (-2, -1.5, 1, 1.5), 100)
    image = ImageOps.colorize(Image.blend(shapes, Image.effect_noise(SIZE, 64), 0.2), "black", "white", "teal")
    with io.BytesIO() as stream:
        image.save(stream, "JPEG", quality=90)
        return stream.getvalue()


def samples_for(model: str, about: Mapping[str, Any]) -> list[Sample]:
    """Requests that fit the kind in a model's description, to be sent until one is answered.

    A model that fills masks needs its own mask token in the text, which the description does not give.
    Raises ServerError for an unknown kind.
    """
    if about.get("kind") == "image-classifier":
        return [Sample(picture(), "image/jpeg")]
    if about.get("kind") == "text-encoder":
        texts = [f"ready {mask}" for mask in MASKS] if about.get("task") == "fill-mask" else ["ready"]
        return [Sample(text.encode(), "text/plain") for text in texts]
    raise ServerError(f"its description gives no kind that is known here, so there is no request for {model}")


if __name__ == "__main__":
    sys.exit(main())
