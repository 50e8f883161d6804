"""Each failure of a load becomes one line that TorchServe writes as it is."""

from __future__ import annotations

import pytest
import torch

from handlers import load_errors
from handlers.load_errors import LoadError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Error(s) in loading:\n  size mismatch\n"), "RuntimeError: Error(s) in loading: size mismatch"),
        (MemoryError(), f"MemoryError. {load_errors.NO_MEMORY}"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            f"OutOfMemoryError: CUDA out of memory. {load_errors.NO_MEMORY}",
        ),
        (
            ModuleNotFoundError("No module named 'tokenizers'"),
            f"ModuleNotFoundError: No module named 'tokenizers'. {load_errors.NO_PACKAGE}",
        ),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (KeyError("vocab_size"), "KeyError: 'vocab_size'"),
        (BaseException("a panic"), "BaseException: a panic"),
        (RuntimeError("x" * 5000), f"RuntimeError: {'x' * 986}..."),
    ],
)
def test_others_errors_become_one_line(error: BaseException, said: str) -> None:
    with pytest.raises(LoadError) as caught, load_errors.explained():
        raise error
    assert str(caught.value) == said
    assert not isinstance(caught.value, load_errors.REPORTED_AS_ANOTHER)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("one line"), FileNotFoundError(2, "No such file", "labels.json")])
def test_plain_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, load_errors.explained():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_what_ends_the_process_ends_it(error: BaseException) -> None:
    with pytest.raises(type(error)), load_errors.explained():
        raise error
