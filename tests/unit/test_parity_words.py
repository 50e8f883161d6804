"""What packaging says of the parity gate, in words."""

from __future__ import annotations

import pytest

from archive.parity import ParityResult


@pytest.mark.parametrize(
    ("samples", "decided", "agreement", "words"),
    [
        (16, 16, 1.0, "same likeliest class as fp32 for 16 of 16 samples"),
        (
            16,
            8,
            0.875,
            "same likeliest class as fp32 for 7 of 8 samples whose answer is not nearly a tie; 8 near ties left out",
        ),
        (2, 1, 1.0, "for 1 of 1 samples whose answer is not nearly a tie; 1 near tie left out"),
        (3, 0, 1.0, "no likeliest class to compare; 3 near ties left out"),
    ],
)
def test_agreement(samples: int, decided: int, agreement: float, words: str) -> None:
    found = ParityResult(True, samples, "cpu", max_relative_error=4.9e-3, agreement=agreement, decided=decided)
    assert str(found).startswith("passed: relative error 4.9e-03, ")
    assert str(found).endswith(words)
