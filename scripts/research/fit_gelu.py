"""Fit the polynomial in the erf GELU of handlers/kernels/linear.py: its coefficients and its error.

gelu(x) = x * Phi(x) = max(x, 0) - |x| * Phi(-|x|). log2 Phi(-|x|) is smooth, and nearly a parabola, so a polynomial
replaces it. Where the power of two is practically zero, the polynomial only has to fall.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np
import torch
from numpy.polynomial import Polynomial, chebyshev
from numpy.typing import NDArray

DEGREE, END = 5, 5.0  # as in the kernel
POINTS, ROUNDS = 1000, 500

Floats = NDArray[np.float64]


def fit(degree: int = DEGREE, end: float = END) -> list[float]:
    """The coefficients with the least absolute error of the GELU on [0, end], lowest power first, rounded to fp32.

    This is Lawson's algorithm: repeated least squares, each point weighted by its errors so far.
    """
    at = end / 2 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))  # (P,)
    exponent = torch.special.log_ndtr(torch.from_numpy(-at)).numpy() / math.log(2)  # (P,)
    counts = at * np.exp2(exponent)  # (P,): how much an error of the exponent changes the GELU
    basis = chebyshev.chebvander(2 * at / end - 1, degree)  # (P, degree + 1)
    weights, found = np.ones_like(at), np.zeros(degree + 1)
    for _ in range(ROUNDS):
        root = np.sqrt(weights) * counts
        found = np.linalg.lstsq(basis * root[:, None], exponent * root, rcond=None)[0]
        weights *= at * np.abs(np.exp2(basis @ found) - np.exp2(exponent)) + 1e-300
        weights /= weights.sum()
    powers = Polynomial(chebyshev.cheb2poly(found))(Polynomial([-1, 2 / end]))
    return [float(value) for value in powers.coef.astype(np.float32)]


def gelu(x: torch.Tensor, coefficients: list[float]) -> torch.Tensor:
    """The GELU in fp32, with the same steps as the kernel."""
    size = x.abs()
    exponent = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        exponent = exponent * size + coefficient
    return x.clamp(min=0) - size * torch.exp2(exponent)


def worst(coefficients: list[float]) -> float:
    """The largest absolute error on a grid from -10 to 10, against PyTorch in fp64."""
    x = torch.linspace(-10, 10, 400_001)
    wanted = torch.nn.functional.gelu(x.double())
    return float((gelu(x, coefficients).double() - wanted).abs().max())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/research/fit_gelu.py",
        description="Fit the polynomial in the erf GELU of handlers/kernels/linear.py; prints its coefficients from "
        "the highest power down, as the kernel takes them, and the largest absolute error in fp32.",
    )
    parser.add_argument("--degree", type=int, default=DEGREE, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--end", type=float, default=END, metavar="X", help="fit on [0, X] (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.degree < 1 or not 1 <= chosen.end <= 10:
        parser.error(f"degree {chosen.degree}, end {chosen.end}; wanted: 1 or more, and 1 to 10")
    coefficients = fit(chosen.degree, chosen.end)
    print(*reversed(coefficients), sep="\n")
    print(f"largest error: {worst(coefficients):.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
