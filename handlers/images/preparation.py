"""One input's file -> what the batch takes, on the CPU.

The steps and their order are those of transformers' image processors (`image_utils.load_image`, then resize,
centre crop, rescale, normalise), so a network sees here what it sees there.
"""

from __future__ import annotations

from handlers.images.cropping import Crop, crop
from handlers.images.formats import decode
from handlers.images.npy_files import Normalised, is_npy, read_npy
from handlers.images.preprocess import Preprocess

Prepared = Crop | Normalised


def prepare(data: bytes, preprocess: Preprocess, max_pixels: int, *, exact: bool = True) -> list[Prepared]:
    """Decode, resize and crop one input's file; normalising is left to the batch.

    Args:
        data: an image file or a .npy file.
        preprocess: the archive's settings.
        max_pixels: of one image, width x height.
        exact: as `crop` takes it.

    Returns:
        One crop for an image; one or more images for a .npy file.

    Raises InvalidImage, PayloadTooLarge or UnsupportedMediaType.
    """
    if is_npy(data):
        return read_npy(data, preprocess, max_pixels, exact=exact)
    return [crop(decode(data, max_pixels), preprocess, exact=exact)]
