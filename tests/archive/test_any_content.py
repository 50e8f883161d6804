"""Whatever a folder holds, packaging ends with a message: nothing is fetched, run, or read outside of it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from archive import package as packaging
from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from handlers.engines.text_networks import load_transformer

Run = Callable[..., tuple[int, str]]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
JSON = (
    *("config.json", "tokenizer_config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json"),
    *("1_Pooling/config.json", "config_sentence_transformers.json", "special_tokens_map.json"),
)
WRONG: tuple[Any, ...] = (None, "x", -1, 2.5, True, [], {}, [1], {"a": 1}, "../x", 10**30)


class Built(Exception):
    """Packaging took the checkpoint."""


@pytest.fixture(autouse=True)
def _taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Built("it was taken")

    monkeypatch.setattr(packaging, "build", stop)


@pytest.fixture
def text_folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder to spoil."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "tiny"))
    whole = {"__version__": {"transformers": "5"}, "prompts": {"query": "q: "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text('{"mask_token": "[MASK]"}', encoding="utf-8")
    return folder


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """refused(folder, *options) -> the message of packaging, which refuses the folder."""

    def refuse(folder: Path, *options: str, command: str = "text-encoder") -> str:
        status, printed = run(command, "--weights", folder, "--export-path", tmp_path / "store", *options)
        assert status == 1, printed
        assert "Built" not in printed, "it was not refused"
        return printed.partition("error: ")[2]

    return refuse


def edit(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", [*JSON, "model.safetensors"])
def test_git_lfs_pointers(text_folder: Path, refused: Callable[..., str], name: str) -> None:
    (text_folder / name).write_text(LFS, encoding="utf-8")
    message = refused(text_folder)
    assert f"{Path(name).name} is a Git LFS pointer" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_files_that_are_not_what_they_are_called(
    text_folder: Path, refused: Callable[..., str], name: str, content: bytes
) -> None:
    (text_folder / name).write_bytes(content)
    if (name, content) == ("modules.json", b"[]"):
        assert "wanted: --pooling" in refused(text_folder)
        return
    message = refused(text_folder)
    assert Path(name).name in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_are_missing(text_folder: Path, refused: Callable[..., str], name: str) -> None:
    (text_folder / name).unlink()
    message = refused(text_folder)
    assert f"{name}" in message
    assert "Errno" not in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_weights_that_are_cut_short(text_folder: Path, refused: Callable[..., str], share: float) -> None:
    path = text_folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors is not a readable safetensors file" in refused(text_folder)


def test_pickles_that_need_code(text_folder: Path, refused: Callable[..., str], tiny_bert: Path) -> None:
    (text_folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), text_folder / "pytorch_model.bin")
    assert "holds more than tensors: unpickling it would call" in refused(text_folder)
    torch.save(load_file(tiny_bert / "model.safetensors"), text_folder / "pytorch_model.bin")
    assert text_checkpoints.read(str(text_folder)).task == "embeddings"
    content = (text_folder / "pytorch_model.bin").read_bytes()
    (text_folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    assert "pytorch_model.bin is not a readable PyTorch file" in refused(text_folder)


def test_a_tokenizer_of_a_newer_release(text_folder: Path, refused: Callable[..., str]) -> None:
    edit(text_folder / "tokenizer.json", model={"type": "Telepathy", "vocab": {}})
    message = refused(text_folder)
    assert "its tokenizer (tokenizer.json) cannot be loaded" in message
    assert "upgrade the packages tokenizers and transformers" in message


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside", "linked", None, 3])
def test_modules_outside_the_folder(text_folder: Path, refused: Callable[..., str], path: object) -> None:
    outside = text_folder.parent / "outside"
    shutil.copytree(text_folder / "1_Pooling", outside)
    (text_folder / "linked").symlink_to(outside)
    modules = json.loads((text_folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["path"] = path
    (text_folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    message = refused(text_folder)
    assert message.startswith("modules.json ")
    assert ("outside the folder" in message) == isinstance(path, str)


def test_a_snapshot_of_the_hub_is_links_to_files(text_folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in text_folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(text_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        link.symlink_to(blobs / str(number))
    assert text_checkpoints.read(str(snapshot)).pooling == text_checkpoints.read(str(text_folder)).pooling


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_archive_of_the_same_name_is_replaced(
    tiny_mar: Path, text_folder: Path, run: Run, tmp_path: Path, damage: bytes | None
) -> None:
    mar = tmp_path / "tiny.mar"
    content = tiny_mar.read_bytes()
    at = content.index(b'"digest"')
    mar.write_bytes(content[: at + 8] + b"\0" * 50 + content[at + 58 :] if damage is None else damage)
    _, printed = run("text-encoder", "--weights", text_folder, "--name", "tiny", "--export-path", tmp_path)
    assert "Built: it was taken" in printed
    status, printed = run("verify", mar)
    assert (status, printed.count("\n")) == (1, 1)
    assert str(mar) in printed


# Every key of every file, with values of all types.


def spoilt(content: Any, draw: random.Random) -> Any:
    """A copy with one value, somewhere within, taken out or exchanged."""
    content = json.loads(json.dumps(content))
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return content
        key = draw.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and draw.random() < 0.6:
            node = node[key]
        elif draw.random() < 0.3:
            del node[key]
            return content
        else:
            node[key] = draw.choice(WRONG)
            return content


@pytest.mark.parametrize("name", JSON)
def test_one_wrong_value_anywhere(text_folder: Path, name: str) -> None:
    """Taken, or refused with a CheckpointError; nothing else comes out of it."""
    path = text_folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    for seed in range(12 if name == "tokenizer.json" else 30):
        path.write_text(json.dumps(spoilt(content, random.Random(f"{name} {seed}"))), encoding="utf-8")
        with contextlib.suppress(CheckpointError):
            text_checkpoints.read(str(text_folder))


def test_what_nobody_foresaw_is_a_message_too(
    text_folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from archive import digests

    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(digests, "of_files", fail)
    message = refused(text_folder)
    assert f"{text_folder} cannot be served: KeyError: 'surprise'" in message
    assert "PACKAGING_TRACEBACK=1" in message
    monkeypatch.setenv("PACKAGING_TRACEBACK", "1")
    assert message == refused(text_folder)


# Words that transformers would take for orders.


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*_: object, **__: object) -> None:
        pytest.fail("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of packages that code is fetched or run by, as something asks for them."""
    asked: list[str] = []

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] in ("kernels", "peft", "mine", "transformers_modules"):
                asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    yield asked
    asked.clear()


ORDERS: dict[str, dict[str, Any]] = {
    "a hub kernel": {"attn_implementation": "kernels-community/flash-attn2"},
    "its private name": {"_attn_implementation": "kernels-community/flash-attn2"},
    "its inner name": {"_attn_implementation_internal": "kernels-community/flash-attn2"},
    "experts": {"experts_implementation": "kernels-community/megablocks"},
    "kernels": {"use_kernels": True, "kernel_config": {"Linear": "mine/kernel"}},
    "a class": {"_auto_class": "AutoConfig"},
    "attentions": {"output_attentions": True, "return_dict": False},
    "a type": {"dtype": "no_such_type", "torch_dtype": "system"},
}


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("case", ORDERS)
def test_orders_that_change_no_number_are_dropped(
    text_folder: Path, tmp_path: Path, imports: list[str], case: str
) -> None:
    wanted = text_checkpoints.read(str(text_folder)).model.state_dict()
    edit(text_folder / "config.json", **ORDERS[case])
    model = text_checkpoints.read(str(text_folder)).model
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "staged")
    assert not ORDERS[case].keys() - {"dtype"} & json.loads((tmp_path / "staged" / "config.json").read_text()).keys()
    assert imports == []


@pytest.mark.usefixtures("_no_network")
def test_a_worker_follows_no_such_order_either(text_folder: Path, imports: list[str]) -> None:
    for name in ("attn_implementation", "_attn_implementation"):
        edit(text_folder / "config.json", **{name: "kernels-community/flash-attn2"})
        model = load_transformer(text_folder, "embeddings", dtype=torch.float32)
        assert model.config._attn_implementation in ("sdpa", "eager")
    assert "kernels" not in imports


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "its weights are quantised",
        ),
        ({"quantization_config": {"quant_method": "mine"}}, "its weights are quantised"),
        ({"compression_config": {"x": 1}}, "its weights are compressed"),
        ({"configuration_files": ["../config.4.0.0.json"]}, "it points to another file"),
        ({"transformers_weights": "../../other.safetensors"}, "it points to another file of weights"),
        ({"fusion_config": {"patch_embeddings": True}}, "change the network"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}, "mine.Model"),
        ({"model_type": None}, "model_type None"),
    ],
)
def test_orders_that_are_refused(
    text_folder: Path, refused: Callable[..., str], imports: list[str], changes: dict[str, object], expected: str
) -> None:
    edit(text_folder / "config.json", **changes)
    message = refused(text_folder)
    assert message.startswith("config.json says ")
    assert expected in message
    assert imports == []


@pytest.mark.usefixtures("_no_network")
def test_an_adapter_next_to_the_weights(text_folder: Path, refused: Callable[..., str], imports: list[str]) -> None:
    (text_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "mine/base"}', encoding="utf-8")
    assert "merge_and_unload" in refused(text_folder)
    assert imports == []


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "fast_tokenizer_files", "name_or_path"])
def test_a_tokenizers_words_for_other_files(text_folder: Path, key: str) -> None:
    wanted = text_checkpoints.read(str(text_folder)).tokenizer.get_vocab()
    outside = text_folder.parent / "vocab.txt"
    outside.write_text("[UNK]\nsecret\n", encoding="utf-8")
    value = ["../vocab.txt"] if key == "fast_tokenizer_files" else str(outside)
    edit(text_folder / "tokenizer_config.json", **{key: value})
    assert text_checkpoints.read(str(text_folder)).tokenizer.get_vocab() == wanted


def test_a_classifiers_folder_that_is_spoilt(tiny_bert: Path, text_folder: Path, refused: Callable[..., str]) -> None:
    for path in (text_folder / "modules.json", text_folder / "model.safetensors"):
        path.unlink()
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert)).save_pretrained(text_folder)
    edit(text_folder / "config.json", id2label=["a", "b"])
    assert "config.json" in refused(text_folder)
