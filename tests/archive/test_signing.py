"""Signatures: what they cover, what is refused, and that minisign and this project read each other's files."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archive.signing import keys, signatures, stores
from archive.signing.errors import SigningError
from archive.signing.keys import PrivateKey

Run = Callable[..., tuple[int, str]]

# Written by minisign 0.11: a key without a password, and its signature of b"hi\n" as f.mar.
PLAIN = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA+g+3LIPFQjwNjO2RQsqDldSvclphe82iq/Uy2tLlNH04gJ2+\
m6m8VDOASZ4yJmOS8WFoIjjyOzgLJIPiJRZyorJnVoR2dIBtAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
SIGNATURE = """untrusted comment: signature from minisign secret key
RUT6D7csg8VCPLrypxK4AzBFkUdYDhH4ABqa/XZCJayIMZOXWibdEhtzmY7AsmO2mjTKxzLmLYa+TSqLXx0aBNMfw71mPJeKIQg=
trusted comment: timestamp:1795688641\tfile:f.mar\thashed
6aL6Pp1hDA/wrOVnChddzGaDnZkbTD4oUJv+0FQwEdIria9cc9qbU6XzAiuq/w+FuD3jrKp1qvxfBL1nDMYcAQ==
"""


@pytest.fixture(scope="session")
def key() -> PrivateKey:
    return keys.generate()


@pytest.fixture
def signed(tmp_path: Path, key: PrivateKey) -> Path:
    """A file signed by `key`."""
    archive = tmp_path / "store" / "model.mar"
    archive.parent.mkdir()
    archive.write_bytes(b"some bytes " * 1000)
    signatures.sign(archive, key)
    return archive


def no_password() -> bytes:
    raise AssertionError("no password is needed")


def test_a_signed_file_passes(signed: Path, key: PrivateKey) -> None:
    comment = signatures.verify(signed, key.public)
    assert "\tfile:model.mar\t" in comment
    assert stores.check_archive(signed, key.public.line) == comment


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_one_changed_bit_of_the_archive_is_refused(signed: Path, key: PrivateKey, position: int) -> None:
    content = bytearray(signed.read_bytes())
    content[position] ^= 1
    signed.write_bytes(content)
    with pytest.raises(SigningError, match="is not what was signed"):
        signatures.verify(signed, key.public)


@pytest.mark.parametrize("content", [b"", b"some bytes " * 999, b"some bytes " * 1000 + b"x"])
def test_another_length_is_refused(signed: Path, key: PrivateKey, content: bytes) -> None:
    signed.write_bytes(content)
    with pytest.raises(SigningError, match="is not what was signed"):
        signatures.verify(signed, key.public)


def test_an_unsigned_archive_is_refused_with_the_way_out(signed: Path, key: PrivateKey) -> None:
    signatures.path_of(signed).unlink()
    with pytest.raises(SigningError, match=rf"is not signed: .*scripts/package sign {signed} --key KEY"):
        signatures.verify(signed, key.public)


def test_another_key_is_refused_by_name(signed: Path, key: PrivateKey) -> None:
    other = keys.generate()
    with pytest.raises(SigningError, match=f"signed by the key {key.public.name}, and {other.public.name} is wanted"):
        signatures.verify(signed, other.public)


def test_another_key_with_the_same_id_is_refused(signed: Path, key: PrivateKey) -> None:
    forged = PrivateKey(key.id, keys.generate().key)
    signatures.sign(signed, forged)
    with pytest.raises(SigningError, match="is not what was signed"):
        signatures.verify(signed, key.public)


def test_the_archive_of_another_model_does_not_pass_for_this_one(signed: Path, key: PrivateKey) -> None:
    other = signed.with_name("other.mar")
    signed.rename(other)
    signatures.path_of(signed).rename(signatures.path_of(other))
    with pytest.raises(SigningError, match=r"was signed under the name model\.mar"):
        signatures.verify(other, key.public)


def test_a_changed_comment_is_refused(signed: Path, key: PrivateKey) -> None:
    path = signatures.path_of(signed)
    path.write_text(path.read_text().replace("file:model.mar", "file:other.mar"))
    with pytest.raises(SigningError, match="its trusted comment is not what was signed"):
        signatures.verify(signed, key.public)


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("text", ["", "x", "ü", "A" * 5000, base64.b64encode(b"ED" + bytes(72)).decode()])
def test_a_damaged_signature_is_refused(signed: Path, key: PrivateKey, line: int, text: str) -> None:
    path = signatures.path_of(signed)
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines))
    with pytest.raises(SigningError):
        signatures.verify(signed, key.public)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"one line\n", b"PK\x03\x04", b"a\nb\nc\nd\ne\n"])
def test_what_is_no_signature_is_refused(signed: Path, key: PrivateKey, content: bytes) -> None:
    signatures.path_of(signed).write_bytes(content)
    with pytest.raises(SigningError, match="is no signature"):
        signatures.verify(signed, key.public)


def test_minisigns_signature_passes(tmp_path: Path) -> None:
    (tmp_path / "f.mar").write_bytes(b"hi\n")
    (tmp_path / "f.mar.minisig").write_text(SIGNATURE)
    (tmp_path / "plain").write_text(PLAIN)
    key = keys.read_private(tmp_path / "plain", no_password)
    assert signatures.verify(tmp_path / "f.mar", key.public) == "timestamp:1795688641\tfile:f.mar\thashed"
    old = SIGNATURE.replace("RUT6", "RWT6")
    (tmp_path / "f.mar.minisig").write_text(old)
    with pytest.raises(SigningError, match="old form"):
        signatures.verify(tmp_path / "f.mar", key.public)


def test_scrypt_gets_the_parameters_of_libsodium() -> None:
    """minisign's own keys take 1 GiB, so `test_minisign_itself` alone opens one."""
    assert keys.scrypt_parameters(1 << 25, 1 << 30) == (1 << 20, 8, 1)
    assert keys.scrypt_parameters(keys.OPERATIONS, keys.MEMORY) == (1 << 17, 8, 1)
    assert keys.scrypt_parameters(1 << 19, 1 << 24) == (1 << 14, 8, 1)  # libsodium's "interactive"


def test_keys_come_back_as_they_were_written(tmp_path: Path, key: PrivateKey) -> None:
    private, public = tmp_path / "k.key", tmp_path / "k.pub"
    keys.write(key, private, public, b"a password")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    read = keys.read_private(private, lambda: b"a password")
    assert (read.id, read.key.private_bytes_raw()) == (key.id, key.key.private_bytes_raw())
    assert keys.read_public(str(public)).line == keys.read_public(key.public.line).line == key.public.line
    assert key.key.private_bytes_raw() not in base64.b64decode(private.read_text().splitlines()[1])
    with pytest.raises(SigningError, match="the password does not open"):
        keys.read_private(private, lambda: b"another")
    with pytest.raises(SigningError, match="is there already"):
        keys.write(key, private, public, None)


def test_the_wrong_half_of_a_key_is_refused_by_what_it_is(tmp_path: Path, key: PrivateKey) -> None:
    private, public = tmp_path / "k.key", tmp_path / "k.pub"
    keys.write(key, private, public, None)
    with pytest.raises(SigningError, match="is a private key; wanted: the public one"):
        keys.read_public(str(private))
    with pytest.raises(SigningError, match="is a public key, which cannot sign"):
        keys.read_private(public, no_password)
    for nonsense in ("nonsense", "", "RWQ", str(tmp_path)):
        with pytest.raises(SigningError, match="neither the file of a public key"):
            keys.read_public(nonsense)
    with pytest.raises(SigningError, match="cannot be read: No such file"):
        keys.read_private(tmp_path / "absent", no_password)


def test_a_private_key_may_come_through_a_pipe(tmp_path: Path, key: PrivateKey) -> None:
    keys.write(key, tmp_path / "k.key", tmp_path / "k.pub", None)
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(f"cat {tmp_path}/k.key > {tmp_path}/pipe", shell=True):  # noqa: S602
        assert keys.read_private(tmp_path / "pipe", no_password).id == key.id


def test_a_store_is_signed_or_each_problem_is_named(signed: Path, key: PrivateKey) -> None:
    store = signed.parent
    assert stores.check_store(store, key.public.line) == [signed]
    (store / "lost+found").mkdir()
    assert stores.check_store(store, key.public.line) == [signed]
    (store / "unsigned.mar").write_bytes(b"x")
    (store / "below").mkdir()
    (store / "below" / ".hidden").write_bytes(b"x")
    shutil.copy(signed, store / "archive.minisig")
    (store / "elsewhere").symlink_to(store.parent)
    with pytest.raises(SigningError) as caught:
        stores.check_store(store, key.public.line)
    said = str(caught.value)
    assert said.startswith("4 of 6 files may not be loaded:\n")
    for name in ("unsigned.mar", "below/.hidden", "archive.minisig", "elsewhere"):
        assert f"{store / name} " in said or f"{store / name}\n" in f"{said}\n"


def test_a_store_that_is_not_there_is_refused(tmp_path: Path, key: PrivateKey) -> None:
    with pytest.raises(SigningError, match="there is no folder"):
        stores.check_store(tmp_path / "absent", key.public.line)


def test_the_commands(digits_mar: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNING_PASSWORD", "a password")
    mar = Path(shutil.copy(digits_mar, tmp_path / "store.mar"))
    status, printed = run("keygen", tmp_path / "k")
    assert status == 0
    assert "encrypted" in printed
    before = mar.read_bytes()
    status, printed = run("sign", mar, "--key", tmp_path / "k.key")
    assert status == 0, printed
    assert mar.read_bytes() == before
    status, printed = run("verify", mar, "--key", tmp_path / "k.pub")
    assert status == 0, printed
    assert "signed by the key" in printed
    assert "unchanged since it was packaged" in printed
    monkeypatch.setenv("SIGNING_PASSWORD", "another")
    assert "does not open" in run("sign", mar, "--key", tmp_path / "k.key")[1]
    monkeypatch.delenv("SIGNING_PASSWORD")
    assert "SIGNING_PASSWORD in the environment" in run("sign", mar, "--key", tmp_path / "k.key")[1]
    mar.write_bytes(before + b"x")
    status, printed = run("verify", mar, "--key", tmp_path / "k.pub")
    assert (status, printed.startswith("error: ")) == (1, True)
    assert (
        run("verify-store", tmp_path, "--key", tmp_path / "k.pub")[0] == 1
    )  # the keys lie there, and are not signed


def test_an_edited_archive_can_be_signed_and_a_note_says_that_it_was(
    digits_mar: Path, run: Run, tmp_path: Path
) -> None:
    mar = Path(shutil.copy(digits_mar, tmp_path / "digits.mar"))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(mar, "a") as archive:
        archive.writestr("model-config.yaml", "batchSize: 1")
    run("keygen", tmp_path / "k", "--no-password")
    status, printed = run("sign", mar, "--key", tmp_path / "k.key")
    assert status == 0, printed
    assert "note: " in printed
    assert "changed model-config.yaml" in printed
    assert stores.check_archive(mar, str(tmp_path / "k.pub"))
    assert run("verify", mar, "--key", tmp_path / "k.pub")[0] == 1
    (tmp_path / "text").write_text("no archive")
    assert run("sign", tmp_path / "text", "--key", tmp_path / "k.key")[0] == 1


def test_packaging_signs_and_never_takes_the_key_along(digits: Path, run: Run, tmp_path: Path) -> None:
    run("keygen", tmp_path / "k", "--no-password")
    key = tmp_path / "k.key"
    data = ("--weights", digits, "--parity-data", digits / "samples", "--precision", "fp32")
    command = ("image-classifier", *data, "--export-path", tmp_path / "store")
    status, printed = run(*command)
    assert status == 0, printed
    mar, signature = tmp_path / "store" / "digits.mar", tmp_path / "store" / "digits.mar.minisig"
    assert not signature.exists()
    assert run(*command, "--sign", tmp_path / "absent")[0] == 1
    status, printed = run(*command, "--sign", key)  # it is up to date, and is signed now
    assert (status, "is up to date" in printed, signature.exists()) == (0, True, True)
    made = signature.read_bytes()
    assert run(*command, "--sign", key)[0] == 0
    assert signature.read_bytes() == made
    assert run("verify-store", tmp_path / "store", "--key", tmp_path / "k.pub")[0] == 0
    secret = key.read_text().splitlines()[1]
    with zipfile.ZipFile(mar) as archive:
        contents = b"".join(archive.read(name) for name in archive.namelist())
    for trace in (secret.encode(), base64.b64decode(secret)[62:94], b"k.key"):
        assert trace not in contents
    status, printed = run(*command, "--force")
    assert status == 0
    assert "removed " in printed
    assert not signature.exists()


def test_minisign_itself(signed: Path, tmp_path: Path, key: PrivateKey) -> None:
    minisign = shutil.which("minisign")
    if minisign is None:
        pytest.skip("needs minisign: on Debian and Ubuntu apt install minisign")
    keys.write(key, tmp_path / "k.key", tmp_path / "k.pub", b"a password")
    check = [minisign, "-Vm", str(signed), "-p", str(tmp_path / "k.pub")]
    assert b"verified" in subprocess.run(check, check=True, capture_output=True).stdout
    sign = [minisign, "-Sm", str(signed), "-s", str(tmp_path / "k.key")]
    subprocess.run(sign, input=b"a password\n", check=True, capture_output=True)
    assert signatures.verify(signed, key.public).endswith("hashed")
    generate = [minisign, "-Gf", "-p", str(tmp_path / "m.pub"), "-s", str(tmp_path / "m.key")]
    subprocess.run(generate, input=b"pw\npw\n", check=True, capture_output=True)
    theirs = keys.read_private(tmp_path / "m.key", lambda: b"pw")
    signatures.sign(signed, theirs)
    subprocess.run([*check[:-1], str(tmp_path / "m.pub")], check=True, capture_output=True)
