"""Clean latent frames that a video begins with: they are given, not made."""

from torch import Tensor


def placed_opening(opening_BFCHW: Tensor | None, text_BLD: Tensor, *, latent_shape: tuple[int, int, int]) -> Tensor:
    """The opening in the dtype and on the device of the text; no opening is one of 0 latent frames.

    Raises:
        ValueError: the opening has no frame, or another batch or size than the video.
    """
    batch = text_BLD.shape[0]
    if opening_BFCHW is None:
        return text_BLD.new_zeros(batch, 0, *latent_shape)
    given = tuple(opening_BFCHW.shape)
    if len(given) != 5 or given[0] != batch or given[1] < 1 or given[2:] != tuple(latent_shape):
        wanted = f"({batch}, 1 or more, {', '.join(map(str, latent_shape))})"
        raise ValueError(f"the opening of this video needs the shape {wanted}, got {given}; encode it at that size")
    return opening_BFCHW.to(text_BLD)


def frames_to_make(frames: int, opening_BFCHW: Tensor) -> int:
    """How many of a video's latent frames the opening leaves to make.

    Raises:
        ValueError: none.
    """
    given = opening_BFCHW.shape[1]
    if frames <= given:
        raise ValueError(
            f"a video of {frames} latent frames that begins with {given} given ones has nothing left to make; "
            f"ask for at least {given + 1}"
        )
    return frames - given


def opening_chunks(opening_BFCHW: Tensor, *, chunk_frames: int) -> list[Tensor]:
    """The opening as chunks; a short one comes first, so that what is made follows whole chunks."""
    whole, short = divmod(opening_BFCHW.shape[1], chunk_frames)
    sizes = [short] * (short > 0) + [chunk_frames] * whole
    return list(opening_BFCHW.split(sizes, dim=1)) if sizes else []
