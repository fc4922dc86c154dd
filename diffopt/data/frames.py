"""Pictures and frames of videos as files have them, decoded and cut to what a model draws."""

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diffopt.data.extent import Extent
from diffopt.data.picture import check, upright


def fitted(picture: Image.Image, extent: Extent) -> np.ndarray:
    """Scaled by Lanczos until it just covers the extent, and its middle cut out: uint8 [height, width, 3]."""
    return np.asarray(ImageOps.fit(upright(picture), (extent.width, extent.height), Image.Resampling.LANCZOS))


def frames(stored: Any, many: int | None) -> Iterator[Image.Image]:
    """The first `many` frames of a video, which is a list of pictures or one with several; of a picture the one. In RGB.

    `stored` is as the library `datasets` keeps it: the file's content in `bytes`, or its `path`. Raises one of BROKEN.
    """
    listed = isinstance(stored, list)
    for one in islice(stored if listed else [stored], many or 1):
        with _opened(one) as file, Image.open(file) as picture:
            check(picture)
            for i in range(1 if listed else min(getattr(picture, "n_frames", 1), many or 1)):
                picture.seek(i)
                picture.load()
                yield upright(picture)


def _opened(stored: Any) -> Any:
    import fsspec

    if stored is None:
        raise OSError("there is no picture in this row")
    if stored.get("bytes") is not None:
        return io.BytesIO(stored["bytes"])
    return fsspec.open(stored["path"], "rb")
