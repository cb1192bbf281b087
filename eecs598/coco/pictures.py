"""Preprocessing photographs of any mode, shape and format that Pillow reads."""

import contextlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from eecs598.coco.captions import DataError, shorten_error
from eecs598.coco.threads import map_in_order

FITS = ("stretch", "crop")
Image.MAX_IMAGE_PIXELS = 250_000_000  # Pillow rejects twice as many; phones take pictures of 200 megapixels
LARGE = 50_000_000  # pixels above which a JPEG is decoded at reduced size
_TURN = Image.Transpose
UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
           6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # by EXIF orientation  # fmt: skip


def prepare_image(picture, image_size=112, fit="stretch"):
    """Preprocess a picture for a model: a uint8 RGB tensor (3, image_size, image_size).

    picture: a path, a binary file or a PIL image, of any mode and shape. EXIF rotation is applied, the first frame of
    an animation is used, transparency is put over white, 16-bit grey is scaled to 8 bits, and 32-bit grey by its
    largest value: up to 1, 255 or 65,535. fit: "stretch" (the whole picture, with its aspect ratio changed) or "crop"
    (the largest centred square). Raises DataError.
    """
    if fit not in FITS or image_size < 1:
        raise DataError(f"image_size {image_size}, fit {fit!r}: wanted 1 or more and {' or '.join(FITS)}")
    given = isinstance(picture, Image.Image)
    is_path = isinstance(picture, (str, os.PathLike))
    name = picture if is_path else getattr(picture, "filename" if given else "name", "") or "the picture"
    place = ImageOps.fit if fit == "crop" else Image.Image.resize
    try:
        if given:
            rgb = _to_rgb(picture)
        else:
            with Image.open(picture) as opened:
                if opened.width * opened.height > LARGE:
                    opened.draft("RGB", (4 * image_size, 4 * image_size))
                rgb = _to_rgb(opened)
        placed = place(rgb, (image_size, image_size), Image.Resampling.BILINEAR)  # antialiased
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not a picture in a format that Pillow reads") from None
    except Exception as error:  # damaged pictures may raise anything: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: cannot be read as a picture ({shorten_error(error)})") from None
    return torch.from_numpy(np.array(placed)).permute(2, 0, 1).contiguous()


def _to_rgb(image):
    """An upright RGB copy of a PIL image of any mode."""
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips at 255
        grey, transparent = np.asarray(image, dtype=np.float64), image.info.get("transparency")
        scaled = (grey * _grey_scale(image.mode, grey)).round().astype(np.uint8)
        scaled[grey == transparent] = 255
        image = Image.fromarray(scaled)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image):
    """The image, rotated and mirrored as its EXIF orientation says.

    Pillow's exif_transpose also writes all other entries again, and fails if one of them is damaged.
    """
    orientation = None
    with contextlib.suppress(Exception):  # a damaged entry may raise anything
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _grey_scale(mode, grey):
    """The factor that scales grey values to 0..255. In 32-bit modes, the white level is guessed from the values."""
    if mode.startswith("I;16"):
        return 255 / 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= 65535):  # NaN, too
        raise DataError(f"grey values range from {low:g} to {high:g}; they must be in [0, 1], [0, 255] or [0, 65535]")
    return 255 / (1 if mode == "F" and high <= 1 else 255 if high <= 255 else 65535)


def prepare_in_order(pictures, image_size, fit, workers):
    """Yield each picture's tensor, or its DataError, in order, while threads prepare the next few pictures.

    Threads are enough, since Pillow releases the GIL to decode and resize.
    """

    def prepare(picture):
        try:
            return prepare_image(picture.path, image_size, fit)
        except DataError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd EXIF entries, in pictures that can be read
        yield from map_in_order(pool, prepare, pictures, ahead=2 * workers)
