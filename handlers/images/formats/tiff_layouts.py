"""Which TIFF layouts Pillow decodes right, by the values of the tags that describe samples.

Source: TIFF 6.0, its supplements 1 and 2. tests/parity/test_tiff_parity.py checks the layouts.
"""

from __future__ import annotations

from typing import NamedTuple

from handlers.images.formats import ifd

GREYS, RGB, PALETTE, CMYK, YCBCR = (0, 1), 2, 3, 5, 6  # PhotometricInterpretation; 0: white is zero
COLOURS = {0: 1, 1: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_PHOTOMETRICS = {0: "white-is-zero", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_FORMATS = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex signed", 6: "complex float"}
JPEG, FAX, _PREDICTED = 7, (2, 3, 4), (5, 8, 32946)
_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "fax 3",
    4: "fax 4",
    5: "LZW",
    6: "JPEG of TIFF 6.0",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
}
_READ = (1, *FAX, 5, JPEG, 8, 32773, 32946)
# Layouts whose pixels' samples lie together: (colour space, bits per sample) -> the ExtraSamples that Pillow reads.
_TOGETHER: dict[tuple[int, int], list[tuple[int, ...]]] = {
    **{(grey, bits): [()] for grey in GREYS for bits in (1, 2, 4, 16)},
    **{(PALETTE, bits): [()] for bits in (1, 2, 4)},
    (0, 8): [()],
    (1, 8): [(), (0,), (2,)],
    (1, 32): [()],  # decoding refuses values beyond 16 bits
    (PALETTE, 8): [(), (0,), (2,)],
    (RGB, 8): [(), (0,), (1,), (2,), (0, 0), (1, 0), (2, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)],
    (RGB, 16): [(), (0,), (1,), (2,)],
    (CMYK, 8): [(), (0,), (0, 0)],
    (CMYK, 16): [()],
    (YCBCR, 8): [()],
}


class Layout(NamedTuple):
    """How the samples of a picture are stored: values of TIFF's tags of these names."""

    photometric: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    samples: int
    extra: tuple[int, ...]
    planar: int
    compression: int
    predictor: int
    fill: int

    def is_supported(self) -> bool:
        """Whether Pillow is known to decode this layout right."""
        bits, apart = self.bits[0], self.planar == 2 and self.samples > 1
        alike = len({*self.bits}) == 1 and len({*self.formats}) == 1
        if not alike or self.planar not in (1, 2) or self.compression not in _READ:
            return False
        if self.formats[0] != 1 and (self.formats[0], self.photometric, bits) != (2, 1, 32):
            return False
        if apart:
            known = 1 not in self.extra and (1 if self._colours > 1 else self.photometric, bits) in _TOGETHER
        else:
            known = self.extra in _TOGETHER.get((self.photometric, bits), [])
        return known and self._packing(bits, apart)

    @property
    def _colours(self) -> int:
        return COLOURS.get(self.photometric, 0)

    def _packing(self, bits: int, apart: bool) -> bool:
        one_bit = self.photometric in GREYS and bits == 1 and self.samples == 1
        if self.fill != 1 and not (self.fill == 2 and one_bit):
            return False
        if self.predictor != 1 and not (
            self.predictor == 2 and self.compression in _PREDICTED and bits in (8, 16) and self.photometric != PALETTE
        ):
            return False
        if self.compression == JPEG:
            return bits == 8 and not apart and not self.extra and self.photometric in (1, RGB, CMYK, YCBCR)
        return self.photometric != YCBCR and (one_bit or self.compression not in FAX)

    def description(self) -> str:
        """The layout in words, for a message."""
        bits, formats = "/".join(map(str, sorted({*self.bits}))), sorted({*self.formats})
        kinds = "/".join(_FORMATS.get(kind, f"format {kind}") for kind in formats)
        parts = [
            _PHOTOMETRICS.get(self.photometric, f"photometric {self.photometric}"),
            f"{self.samples} samples a pixel of {bits} {kinds} bits",
            f"extra samples {list(self.extra)[:8]}" if self.extra else "",
            "in planes" if self.planar == 2 else "",
            f"compression {_COMPRESSIONS.get(self.compression, self.compression)}",
            f"predictor {self.predictor}" if self.predictor != 1 else "",
            f"fill order {self.fill}" if self.fill != 1 else "",
        ]
        return ", ".join(filter(None, parts))


def each_sample(directory: ifd.Directory, tag: int, default: int, samples: int) -> tuple[int, ...]:
    """One number per sample; a single number in the file holds for all samples."""
    numbers = directory.numbers(tag, (default,))
    if len(numbers) == 1:
        return numbers * samples
    if len(numbers) < samples:
        raise ValueError(f"tag {tag} has {len(numbers)} values for {samples} samples")
    return numbers[:samples]


def extra_samples(directory: ifd.Directory, photometric: int, samples: int) -> tuple[int, ...]:
    """The kind of each sample beyond the colours; 0 (unspecified) if no tag says it. Corel writes 999 for alpha."""
    beyond = samples - COLOURS.get(photometric, samples)
    extra = tuple(2 if kind == 999 else kind for kind in directory.numbers(338, (0,) * max(beyond, 0)))
    if len(extra) != beyond:
        raise ValueError(f"{samples} samples, {len(extra)} of them extra, for photometric {photometric}")
    return extra
