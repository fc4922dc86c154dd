"""Every picture that diffopt reads, whatever wrote it, as all its readers take it: upright, in 8 bits of sRGB, on white.

Turned as its camera was; palettes looked up; what is transparent laid on white; 16 bits a channel scaled to 8; CMYK, and RGB
of another colour space, converted by the profile that the file has, CMYK without one by Pillow's formula. What has no such
form, as floating-point values, whose white nobody knows, is refused with what it is.
"""

import logging
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

log = logging.getLogger("diffopt")

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow and `upright` raise of a file that is no picture, or half of one, or of one that has no 8-bit form."""
ORIENTATION, BITS, INK = 0x0112, 258, 262
"""Tags of EXIF and TIFF: how the camera was held; BitsPerSample; PhotometricInterpretation, 0 where zero is white."""
ALONE = ("MPO",)
"""Formats whose further pictures belong to the first: a phone's preview or depth map."""


MOST = 8192 * 8192
"""Pixels of a picture that is read. A few larger ones would fill a machine's memory."""


def check(picture: Image.Image) -> None:
    """Raises ValueError for a picture that is too large, before it is decoded."""
    if (pixels := picture.width * picture.height) > MOST:
        raise ValueError(
            f"has {picture.width} x {picture.height} = {pixels} pixels, and at most {MOST} are read; make it smaller"
        )


def opened(file: Path | str | BytesIO) -> Image.Image:
    """The picture of a file, in RGB. Raises one of BROKEN, a ValueError also for an animation, of which no frame is meant."""
    with Image.open(file) as picture:
        if (many := getattr(picture, "n_frames", 1)) > 1 and picture.format not in ALONE:
            raise ValueError(f"has {many} frames or pages; save the one that is meant as a picture")
        check(picture)
        return upright(picture)


def pixels(file: Path | str) -> np.ndarray:
    """The same, as a writable uint8 [height, width, 3]: torch warns of what is read-only."""
    return np.array(opened(file))


def extent(file: Path | str) -> tuple[int, int]:
    """Width and height of a picture as `opened` gives it, without decoding it."""
    with Image.open(file) as picture:
        check(picture)
        if picture.format == "TIFF":  # which Pillow turns itself, as it decodes
            picture.load()
            return picture.size
        width, height = picture.size
        turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)  # those that lie on a side
        return (height, width) if turned else (width, height)


def upright(picture: Image.Image) -> Image.Image:
    """One that Pillow has opened, in RGB. Raises one of BROKEN."""
    profile = picture.info.get("icc_profile")
    bits, ink = _stored(picture)
    turned = ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION, 1) != 1 else picture
    if turned.mode == "RGB" and not turned.has_transparency_data:
        return _in_srgb(turned, profile)
    if turned.mode.startswith("I;16") or (turned.mode == "I" and picture.format in ("PNG", "PPM")):
        return _eight_bits(turned, bits, ink)
    if turned.mode in ("I", "F"):
        what = "floating-point" if turned.mode == "F" else "32-bit"
        raise ValueError(f"has {what} values, of which nobody knows which is white; save it with 8 or 16 bits a channel")
    if turned.mode == "LAB":
        raise ValueError("is in the colour space LAB; save it in RGB")
    if turned.has_transparency_data:
        shown = turned.convert("RGBA")
        return _in_srgb(Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB"), profile)
    return _in_srgb(turned, profile)


def _stored(picture: Image.Image) -> tuple[int, int]:
    """Bits of a grey value, and TIFF's number for what zero is."""
    tags: Any = getattr(picture, "tag_v2", None)
    if picture.format != "TIFF" or tags is None:
        return 16, 1
    return int(tags.get(BITS, (16,))[0]), int(tags.get(INK, 1))


def _eight_bits(picture: Image.Image, bits: int, ink: int) -> Image.Image:
    """Grey of up to 16 bits: Pillow's own conversion cuts at 255, which leaves one colour of almost every picture."""
    most = 2**bits - 1
    grey = np.asarray(picture).astype(np.float64).clip(0, most) * (255 / most)
    return Image.fromarray((255 - grey if ink == 0 else grey).round().astype(np.uint8)).convert("RGB")


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """By the profile of the file, if it has one that is another than sRGB; a broken one is left out, as browsers do."""
    if profile and picture.mode in ("RGB", "CMYK"):
        try:
            theirs = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "srgb" in ImageCms.getProfileDescription(theirs).lower():
                return picture.convert("RGB")
            ours = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(picture, theirs, ours, outputMode="RGB")
            assert found is not None  # it is None for a conversion in place alone
            return found
        except (ImageCms.PyCMSError, OSError) as e:
            log.info("a picture's colour profile is left out, as it cannot be applied (%s)", e)
    return picture.convert("RGB")
