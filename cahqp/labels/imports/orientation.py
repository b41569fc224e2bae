"""Boxes drawn on the upright view of an image with an EXIF orientation."""

from __future__ import annotations

from cahqp.coco.decoding import Header

Corners = tuple[float, float, float, float]


def to_stored(box: Corners, header: Header) -> Corners:
    """Return a box in stored pixels from one drawn on the upright view.

    Args:
        box: Corners in pixels of the upright view.
        header: Header of the image. Orientations are those of the EXIF 2.32 standard, section 4.6.4.
    """
    height, width = header.size
    x1, y1, x2, y2 = box
    turned = {
        2: (width - x2, y1, width - x1, y2),
        3: (width - x2, height - y2, width - x1, height - y1),
        4: (x1, height - y2, x2, height - y1),
        5: (y1, x1, y2, x2),
        6: (y1, height - x2, y2, height - x1),
        7: (width - y2, height - x2, width - y1, height - x1),
        8: (width - y2, x1, width - y1, x2),
    }
    return turned.get(header.orientation, box)
