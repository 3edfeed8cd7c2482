"""A clip that is easy to compress and easy to recognise."""

import numpy as np

from streamstill.types import Clip


def waves(*, frames: int, height: int, width: int, fps: float) -> Clip:
    """Waves that move, so that no two frames are alike."""
    f, c, y, x = np.ogrid[:frames, :3, :height, :width]
    light = np.sin(x / 9 + f * 0.7) + np.cos(y / 7 - f * 0.5 + c)
    return Clip(frames_FCHW=(127 + 60 * light).astype(np.uint8), fps=fps)
