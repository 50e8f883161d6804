"""TIFF layouts as tifffile, a reader that shares no code with Pillow and libtiff, finds them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.images import formats
from handlers.protocol.errors import UnsupportedMediaType
from tests.unit.tiffs import tiff

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")

COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}
RNG = np.random.default_rng(0)


def theirs(data: bytes) -> NDArray[Any]:
    """8-bit RGB from tifffile's samples."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        values: NDArray[Any] = page.asarray().astype(np.float64) * 255 / (2**page.bitspersample - 1)
        photometric, planar = int(page.photometric), int(page.planarconfig)
    if values.ndim == 2:
        values = values[..., None]
    elif planar == 2:
        values = values.transpose(1, 2, 0)
    if photometric in (0, 1):
        grey = values[..., :1] if photometric else 255 - values[..., :1]
        return np.repeat(grey, 3, axis=2)
    if photometric == 5:
        inks: NDArray[Any] = values / 255
        values = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:4])
    return values[..., :3]


def read_together(photometric: int, bits: int, extra: tuple[int, ...]) -> bool:
    """Whether Pillow reads samples that lie together, with this one beyond the colours."""
    if not extra:
        return True
    return photometric == 2 or (photometric == 1 and bits == 8) or (photometric, bits, extra) == (5, 8, (0,))


@pytest.mark.parametrize("photometric", COLOURS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("extra", [(), (0,), (2,)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rows": 5},
        {"tile": (16, 32)},
        {"compression": 8},
        {"compression": 8, "tile": (32, 16), "big": True},
        {"compression": 32946, "rows": 3},
        {"compression": 32773, "big": True},
    ],
    ids=str,
)
def test_as_tifffile_reads_it_or_refused(
    photometric: int, bits: int, order: str, planar: int, extra: tuple[int, ...], options: dict[str, Any]
) -> None:
    values = RNG.integers(0, 2**bits, (24, 40, COLOURS[photometric] + len(extra)))
    data = tiff(values, bits=bits, photometric=photometric, order=order, planar=planar, extra=extra, **options)
    if planar == 1 and not read_together(photometric, bits, extra):
        with pytest.raises(UnsupportedMediaType, match="layout is not read"):
            formats.decode(data, 10**6)
        return
    found = np.asarray(formats.decode(data, 10**6)).astype(float)
    assert abs(found - theirs(data)).max() <= (3 if photometric == 5 else 1)
