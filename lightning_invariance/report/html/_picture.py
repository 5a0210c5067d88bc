"""What the head of a picture says of its size."""

from __future__ import annotations

import struct

_CSS_PIXELS_A_METRE = 96 / 0.0254


def size_of_png(image: bytes) -> tuple[int, int]:
    """Width and height in CSS pixels, by the resolution that it states; where it states none, its own pixels.

    Raises:
        ValueError: if the head is not whole.
    """
    width = height = 0
    scale, place = 1.0, 8
    while place + 8 <= len(image):
        length, kind = struct.unpack_from(">I4s", image, place)
        content = image[place + 8 : place + 8 + length]
        if len(content) < length or kind == b"IDAT":
            break
        if kind == b"IHDR" and length == 13:
            width, height = struct.unpack_from(">II", content)
        elif kind == b"pHYs" and length == 9:
            per_metre, _, unit = struct.unpack(">IIB", content)
            if unit == 1 and per_metre:
                scale = _CSS_PIXELS_A_METRE / per_metre
        place += 12 + length  # the length, the kind and a check sum
    if not width or not height:
        raise ValueError("Expected `image` to be the content of a PNG file but its head is not whole.")
    return max(1, round(width * scale)), max(1, round(height * scale))
