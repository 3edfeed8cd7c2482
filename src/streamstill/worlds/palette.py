"""The colours of the stage: six vivid body colours, four muted backgrounds, one neutral grey. All are 8-bit RGB."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamstill.types import Frames

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (222, 38, 52),
    "green": (48, 176, 72),
    "blue": (44, 96, 238),
    "yellow": (248, 224, 48),
    "purple": (164, 56, 204),
    "orange": (250, 136, 20),
}
NEUTRAL: Color = (132, 134, 140)  # ramps, rods and pivots

# Top and bottom colour of each background; the striped one alternates between the two instead.
_BACKGROUNDS: dict[str, tuple[Color, Color]] = {
    "dark": ((26, 28, 34), (26, 28, 34)),
    "light": ((214, 215, 220), (214, 215, 220)),
    "gradient": ((22, 24, 32), (92, 95, 104)),
    "striped": ((44, 46, 54), (66, 68, 76)),
}
BACKGROUNDS = tuple(_BACKGROUNDS)
_STRIPE_WIDTH = 0.125  # stage heights


@lru_cache(maxsize=64)
def background(name: str, height: int, width: int) -> Frames:
    """The empty stage as uint8 of shape (height, width, 3), read-only."""
    first, second = (np.array(color, dtype=np.float64) for color in _BACKGROUNDS[name])
    share_HW = _striped(height, width) if name == "striped" else _shaded(height, width)
    image = np.rint(first + share_HW[..., None] * (second - first)).astype(np.uint8)
    image.setflags(write=False)
    return image


def _shaded(height: int, width: int) -> NDArray[np.float64]:
    """How much of the second colour each pixel has: 0 at the top, 1 at the bottom."""
    rows = (np.arange(height) + 0.5) / height
    return np.repeat(rows[:, None], width, axis=1)


def _striped(height: int, width: int) -> NDArray[np.float64]:
    """Vertical stripes with exact box coverage at their edges, so that every size shows the same stage."""
    edges = np.arange(width + 1) / height / (2 * _STRIPE_WIDTH)
    filled = np.floor(edges) * 0.5 + np.minimum(edges % 1.0, 0.5)  # integral of the stripe pattern
    columns = np.diff(filled) * 2 * _STRIPE_WIDTH * height
    return np.repeat(columns[None, :], height, axis=0)
