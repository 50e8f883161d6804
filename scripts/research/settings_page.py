"""Make docs/settings.md from the dataclasses in handlers/settings.py.

    .venv/bin/python scripts/research/settings_page.py            writes the page
    .venv/bin/python scripts/research/settings_page.py --check    exit status 1 if the page is not up to date

A setting's description is the text behind its name in the docstring of its dataclass. The default is that of the
dataclass, as YAML writes it. The packaging option is the one of the same name in `scripts/package COMMAND --help`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from archive.__main__ import main as package
from handlers import settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "settings.md"
# Packaging options whose names are not those of the setting.
OPTIONS = {"modes": "--pooling"}

HEAD = """\
<!-- Made by scripts/research/settings_page.py from handlers/settings.py: change the docstrings there. -->

# Settings

Every archive has a file `model-config.yaml`. Packaging writes it, and you may edit it. It has two parts: keys of
TorchServe at the top, and the section `handler:` with the settings of this project.

```yaml
minWorkers: 1
maxWorkers: 1
batchSize: 64
maxBatchDelay: 1
responseTimeout: 120
startupTimeout: 600
handler:
  engine: auto
  precision: auto
  maxInputs: 64
```

There are three ways to change a setting:

- Package again with the setting's packaging option. This is the best way: the new archive is checked as a whole.
- Edit the file in the archive, which is a zip file: `unzip NAME.mar model-config.yaml`, change it in an editor, then
  `zip NAME.mar model-config.yaml`. The change takes effect when the model is registered again.
- Let `scripts/tune NAME --write` set workers, batch size and delay; see [Batching](batching.md).

`scripts/package show NAME.mar` prints the settings of an archive. `scripts/package verify NAME.mar` tells that an
edited archive has changed. A key under `handler:` that is not on this page is refused by its name at load.

"""

TORCHSERVE = """\
## Keys of TorchServe

They stand at the top of `model-config.yaml`, outside `handler:`. TorchServe reads them when the model is registered.
They override those of `config.properties`.

### `minWorkers`, `maxWorkers`

The number of worker processes. Packaging writes what `--workers` says. Without it, it writes `1` on a machine without
a GPU. On one with GPUs it writes as many as keep one GPU busy and fit into it: at most 8. TorchServe ignores
`minWorkers` alone.

### `batchSize`

Packaging writes `8`, the presets `64`, or what `--batch-size` says. The most requests in one batch.

### `maxBatchDelay`

Packaging writes `1`, or what `--max-batch-delay-ms` says. Milliseconds that a batch waits for more requests.
TorchServe takes 0 for 100.

### `responseTimeout`

Packaging writes `120`. Seconds for one batch. TorchServe stops a worker that takes longer.

### `startupTimeout`

Packaging writes `600`, or more if TensorRT plans are built at the first load. Seconds for loading the model.

### `jobQueueSize`

Packaging does not write it. The most requests that may wait; others get a 503. Without it `job_queue_size` in
`config.properties` counts.

### `deviceIds`

Packaging does not write it. The GPUs that the workers use, as a list of numbers. Without it they use all, in turn.

## Other settings

Addresses, ports, tokens and sizes of requests are not settings of a model. They stand in `config.properties`, which
says line by line what it sets.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if the page is not up to date"
    )
    if not parser.parse_args(arguments).check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(
        f"{PAGE.relative_to(ROOT)} is not up to date; {Path(__file__).relative_to(ROOT)} writes it", file=sys.stderr
    )
    return 1


def page() -> str:
    """Return the whole page.

    Raises:
        ValueError: A setting has no description.
    """
    image = packaging_options("image-classifier") | packaging_options("image-encoder")
    text = packaging_options("text-encoder")
    own = {field.name for field in dataclasses.fields(settings.Settings)}
    images, texts = settings.write(settings.ImageSettings()), settings.write(settings.TextSettings())
    preprocess, pooling = part(settings.ImageSettings, "preprocess"), part(settings.TextSettings, "pooling")
    sparse = part(settings.TextSettings, "sparse_pooling")
    return "\n".join(
        [
            f"{HEAD}## Both kinds of model\n",
            *entries(settings.Settings, images, image & text),
            "## Image classifiers and image encoders\n",
            *entries(settings.ImageSettings, images, image, without=own),
            *entries(preprocess, images["preprocess"], image, within="preprocess."),
            "## Text encoders\n",
            *entries(settings.TextSettings, texts, text, without=own),
            *entries(pooling, texts["pooling"], text, within="pooling."),
            *entries(sparse, texts["sparsePooling"], text, within="sparsePooling."),
            TORCHSERVE,
        ]
    )


def part(kind: type[Any], name: str) -> type[Any]:
    """The dataclass of the field `name`."""
    found: type[Any] = get_type_hints(kind)[name]
    return found


def entries(
    kind: type[Any],
    defaults: dict[str, Any],
    options: set[str],
    without: set[str] | frozenset[str] = frozenset(),
    within: str = "",
) -> list[str]:
    """Return the lines about each field of `kind`, except those in `without`.

    within: The section that the keys stand in, with a dot behind it.
    """
    said = descriptions(kind)
    lines = []
    for field in dataclasses.fields(kind):
        if field.name not in without:
            key, option = camel(field.name), option_of(field.name, options)
            is_part = isinstance(defaults[key], dict) and defaults[key]  # it has entries of its own
            default = "" if is_part else f"Default: `{json.dumps(defaults[key])}`."
            asked = f"Packaging option: `{option}`." if option else ""
            facts = " ".join(filter(None, (default, asked)))
            lines += [f"### `{within}{key}`", "", *([facts, ""] if facts else []), *wrapped(said[field.name]), ""]
    return lines


def wrapped(text: str) -> list[str]:
    """The text as lines of Markdown, with its quoted values and its placeholders as code."""
    coded = re.sub(r'"([^" ]*)"', lambda found: f"`{found[1]}`" if found[1] else '`""`', text)
    return textwrap.wrap(coded, 118, break_long_words=False, break_on_hyphens=False)


def descriptions(kind: type[Any]) -> dict[str, str]:
    """Return the text behind each field's name in the docstrings of `kind` and of its bases.

    An entry is a line `name: text` or `name, name: text`; lines that are indented deeper belong to it.

    Raises:
        ValueError: A field has no entry.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found |= _entries(inspect.cleandoc(base.__doc__ or ""), names)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{kind.__name__}'s docstring says nothing of {', '.join(missing)}")
    return found


def _entries(docstring: str, names: Sequence[str]) -> dict[str, str]:
    one = "|".join(map(re.escape, names))
    entry = re.compile(rf"^( *)((?:{one})(?:, (?:{one}))*): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
    return {name: _sentence(found[3]) for found in entry.finditer(docstring) for name in found[2].split(", ")}


def _sentence(text: str) -> str:
    """One line that begins with a capital letter."""
    line = " ".join(text.split())
    return line[:1].upper() + line[1:]


def packaging_options(command: str) -> set[str]:
    """The options of `scripts/package COMMAND`, from its help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        package([command, "--help"])
    return set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", said.getvalue()))


def option_of(name: str, options: set[str]) -> str:
    """The packaging option of a field, or an empty text."""
    option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
    return option if option in options else ""


def camel(name: str) -> str:
    """A field's key in YAML: max_inputs -> maxInputs."""
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


if __name__ == "__main__":
    sys.exit(main())
