"""The part of the packaging script's command line that is about keys and signatures."""

from __future__ import annotations

import argparse
from pathlib import Path

from archive.options import SigningOptions

PUBLIC = "the public key: its file, or the key itself, which begins with RW"
KEYGEN = """\
Make a key that signs archives: NAME.key is private, NAME.pub is for all who check archives.

The files are those of minisign. The password of the private key is asked for, or comes from the environment variable
SIGNING_PASSWORD. A key without a password is for machines that keep it as a secret of their own.
"""
SIGN = """\
Sign an archive: FILE.mar.minisig is put beside it. It is over the bytes of FILE.mar, and holds its name and the time.

`minisign -Vm FILE.mar -p NAME.pub` checks it too. The archive itself is not changed, and holds no key. Sign it again
after each change, and under each new name.
"""
VERIFY_STORE = """\
Check that all that TorchServe could load from a model store is signed by one key. The exit status is 1 if not.

Every file of the folder counts, in folders below it too. Only archives and their signatures may lie there.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands keygen, sign and verify-store."""
    keygen = _command(commands, "keygen", KEYGEN)
    keygen.add_argument("path", type=Path, metavar="NAME", help="NAME.key and NAME.pub are written")
    keygen.add_argument("--no-password", action="store_true", help="do not encrypt the private key")
    sign = _command(commands, "sign", SIGN)
    sign.add_argument("path", type=Path, metavar="FILE.mar", help="the archive")
    sign.add_argument("--key", required=True, metavar="KEY", help="the file of the private key, NAME.key")
    store = _command(commands, "verify-store", VERIFY_STORE)
    store.add_argument("path", type=Path, metavar="DIR", help="the folder of the archives, such as model_store")
    store.add_argument("--key", required=True, metavar="PUB", help=PUBLIC)


def add_key(verify: argparse.ArgumentParser) -> None:
    """Add --key to the command verify."""
    verify.add_argument("--key", metavar="PUB", help=f"check the signature too. {PUBLIC[0].upper()}{PUBLIC[1:]}")


def options(chosen: argparse.Namespace) -> SigningOptions | None:
    """Return the options of a command about signatures; None for another command."""
    if chosen.command == "keygen":
        return SigningOptions(command="keygen", path=chosen.path, password=not chosen.no_password)
    if chosen.command in ("sign", "verify-store"):
        return SigningOptions(command=chosen.command, path=chosen.path, key=chosen.key)
    if chosen.command == "verify" and chosen.key is not None:
        return SigningOptions(command="verify", path=chosen.mar, key=chosen.key)
    return None


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
