"""The options that choose what is sent, and the load that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from argument_types import positive

from serving_bench import loads, option_types
from serving_bench.archives import IMAGES, TEXTS, Archive
from serving_bench.generator import Load


def add_load_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that `load_for` reads."""
    group.add_argument("--image", type=Path, metavar="PATH", help="an image file, or a folder of them")
    group.add_argument(
        "--size",
        type=option_types.size,
        metavar="WxH",
        help="resize the images to JPEGs of so many pixels (default: --image as it is; else 500x375 of two "
        "photographs of this project)",
    )
    group.add_argument(
        "--tensors", nargs=2, metavar=("KIND", "N"), help="N crops per request as .npy; KIND: uint8, fp16 or fp32"
    )
    group.add_argument("--texts", type=Path, metavar="FILE", help="one text per line (default: 35 of this project)")
    group.add_argument(
        "--texts-per-request",
        type=positive,
        default=1,
        metavar="N",
        help="send N texts as a JSON list (default: 1, as text/plain)",
    )
    group.add_argument(
        "--body", type=Path, nargs="+", metavar="FILE", help="send these files as they are; needs --content-type"
    )
    group.add_argument("--content-type", metavar="MIME", help="of --body, such as application/json")
    group.add_argument(
        "--items-per-request", type=positive, default=1, metavar="N", help="inputs in each --body (default: 1)"
    )
    group.add_argument(
        "--accept", metavar="MIME", help="header Accept of each request, such as application/octet-stream"
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=option_types.header,
        metavar="'NAME: VALUE'",
        help="a further header of each request; may be repeated",
    )


def load_for(archive: Archive | None, chosen: argparse.Namespace) -> Load:
    """The load that the options ask for, or one that fits the archive. Raises ValueError."""
    load = _load(archive, chosen)
    extra = dict(chosen.header) | ({"Accept": chosen.accept} if chosen.accept else {})
    name = f"{load.name}, {', '.join(extra.values())}" if extra else load.name
    return Load(name, load.bodies, {**load.headers, **extra}, load.unit, load.items)


def _load(archive: Archive | None, chosen: argparse.Namespace) -> Load:
    if chosen.body:
        if not chosen.content_type:
            raise ValueError("--body needs --content-type, such as image/jpeg or application/json")
        return loads.body(chosen.body, chosen.content_type, chosen.items_per_request)
    if chosen.tensors:
        kind, count = chosen.tensors
        return _tensors(kind, count, archive)
    takes = archive.kind if archive else None
    of_texts = chosen.texts is not None or chosen.texts_per_request > 1
    if of_texts or (takes == TEXTS and chosen.image is None and chosen.size is None):
        return loads.texts(chosen.texts, chosen.texts_per_request)
    if chosen.image is not None or chosen.size is not None or takes == IMAGES:
        return loads.images(chosen.image, chosen.size or (None if chosen.image else loads.SIZE))
    target = archive.file.name if archive else chosen.address
    raise ValueError(f"what {target} takes is not known: give --image, --tensors, --texts or --body")


def _tensors(kind: str, count: str, archive: Archive | None) -> Load:
    if kind not in loads.TENSOR_KINDS or not count.isdigit() or int(count) < 1:
        raise ValueError(f"--tensors {kind} {count}; wanted: {', '.join(loads.TENSOR_KINDS)}, and a number from 1")
    return loads.tensors(kind, int(count), archive.handler.get("preprocess", {}) if archive else {})
