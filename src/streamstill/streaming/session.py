"""Prompt in, frames out, for as long as anybody watches."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from streamstill.codec.counting import pixel_frames, sizes_of
from streamstill.codec.video import VideoCodec, to_frames, to_pixels
from streamstill.flow.times import Sampling
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.rollout import stream_chunks
from streamstill.types import Frames


class Streamer(Protocol):
    """What a session needs of a student."""

    @property
    def network(self) -> StreamingModel[Any]:
        """The network that makes chunks."""
        ...

    @property
    def codec(self) -> VideoCodec:
        """The codec of its latents."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent frames, C, H, W."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the prompts."""
        ...


@torch.no_grad()
def still_opening(student: Streamer, first_frame: Frames, *, device: torch.device) -> Tensor:
    """A picture as one clean chunk in which nothing moves, shape (1, chunk_frames, C, H, W), on the device.

    Args:
        first_frame: uint8 of shape (3, height, width), the student's size.

    Raises:
        ValueError: another shape or dtype.
    """
    _, per_row, per_column = student.codec.compression
    wanted = (3, student.latent_shape[2] * per_row, student.latent_shape[3] * per_column)
    if first_frame.shape != wanted or first_frame.dtype != np.uint8:
        raise ValueError(
            f"the first frame of this student's videos must be uint8 of shape {wanted}, got {first_frame.dtype} of "
            f"shape {first_frame.shape}; media.read_image reads a picture at any size"
        )
    still = to_pixels(first_frame).expand(1, pixel_frames(student.codec, student.network.chunk_frames), *wanted)
    weight = next(student.codec.parameters(), None) if isinstance(student.codec, nn.Module) else None
    return student.codec.encode(still.to(device) if weight is None else still.to(weight)).to(device)


class Session:
    """One endless video. Memory does not grow; the prompt may change at any time, from the next chunk on.

    The past is kept when the prompt changes; ``restart`` begins a new video.

    Args:
        first_frame: a picture that the video begins with, uint8 of shape (3, height, width); the first chunk shows
            it standing still, and the video goes on from there.
        codec: decodes in place of the student's own, on the student's device: a ``LightCodec``.

    Raises:
        ValueError: the prompt has no word in it, the picture is not uint8 of the student's size, or the codec has
            latents of other sizes than the student's.
    """

    def __init__(
        self,
        student: Streamer,
        prompt: str,
        *,
        sampling: Sampling,
        seed: int = 0,
        first_frame: Frames | None = None,
        codec: VideoCodec | None = None,
    ) -> None:
        self._student, self._sampling, self._seed = student, sampling, seed
        self._codec = student.codec if codec is None else _fitting(codec, student.codec)
        self._text_BLD = self._encode(prompt)
        self._prompt = prompt
        self._opening = None
        if first_frame is not None:
            self._opening = still_opening(student, first_frame, device=self._text_BLD.device)
        self._chunks = self._stream()

    @property
    def prompt(self) -> str:
        """The prompt of the next chunk."""
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str) -> None:
        self._text_BLD = self._encode(prompt)
        self._prompt = prompt

    def restart(self, *, seed: int | None = None) -> None:
        """Forget the video so far but not its first frame; the same seed makes the same video again."""
        self._seed = self._seed if seed is None else seed
        self._chunks = self._stream()

    def next_chunk(self) -> Frames:
        """The next frames, uint8 of shape (frames, 3, height, width).

        Raises:
            RuntimeError: an error, or Ctrl-C, broke an earlier chunk off: its past is lost.
        """
        try:
            return next(self._chunks)
        except StopIteration:
            raise RuntimeError("this video was broken off in an earlier chunk; call restart() to begin anew") from None

    def frames(self) -> Iterator[Frames]:
        """Frames one by one, uint8 of shape (3, height, width), without end."""
        while True:
            yield from self.next_chunk()

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        return self._student.encode_prompts([prompt])

    def _texts(self) -> Iterator[Tensor]:
        while True:
            yield self._text_BLD

    def _stream(self) -> Iterator[Frames]:
        chunks = stream_chunks(
            self._student.network,
            self._texts(),
            latent_shape=self._student.latent_shape[1:],
            sampling=self._sampling,
            generator=torch.Generator().manual_seed(self._seed),
            opening_BFCHW=self._opening,
        )
        if self._opening is not None:
            chunks = chain([self._opening], chunks)
        state: Any = None
        while True:
            with torch.inference_mode():  # entered per chunk: a generator must not leave it switched on for its caller
                latents_BFCHW = next(chunks)
                pixels_BFCHW, state = self._codec.decode(latents_BFCHW, state)
            yield to_frames(pixels_BFCHW[0])


def _fitting(codec: VideoCodec, own: VideoCodec) -> VideoCodec:
    given, wanted = sizes_of(codec), sizes_of(own)
    if given != wanted:
        raise ValueError(
            f"the codec has latents of {given} (channels, compression, first frames) and the student's own of {wanted};"
            " give one that decodes the student's latents"
        )
    return codec
