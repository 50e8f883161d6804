"""Refuses archives that the wanted key has not signed, before TorchServe sees them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.errors import ServerError

VARIABLE = "VERIFY_KEY"  # an environment variable


def add_verify_key(parser: argparse._ActionsContainer, what: str) -> None:
    """Add --verify-key, whose value is "" if neither it nor VERIFY_KEY is given. what: what the key decides."""
    parser.add_argument(
        "--verify-key",
        default=os.environ.get(VARIABLE, ""),
        metavar="PUB",
        help=f"a public key of scripts/package keygen or minisign, or its file: {what} (default: the environment "
        f"variable {VARIABLE}, else nothing is checked)",
    )


def refuse_unsigned(archive: Path, verify_key: str) -> None:
    """Raise ServerError unless the key has signed this archive, under this name, as it is now.

    Args:
        archive: the file in the model store.
        verify_key: the public key or its file; "" lets every archive pass.
    """
    if verify_key:
        from archive.signing import stores  # imports cryptography, which nothing else here needs
        from archive.signing.errors import SigningError

        try:
            stores.check_archive(archive, verify_key)
        except SigningError as error:
            raise ServerError(str(error)) from None


def refuse_unsigned_store(store: Path, verify_key: str) -> None:
    """Raise ServerError unless the key has signed all archives of a model store. Args: as of `refuse_unsigned`."""
    if verify_key:
        from archive.signing import stores
        from archive.signing.errors import SigningError

        try:
            archives = stores.check_store(store, verify_key)
        except SigningError as error:
            raise ServerError(str(error)) from None
        print(f"all {len(archives)} archives of {store} are signed by the wanted key", flush=True)
