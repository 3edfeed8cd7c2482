"""Prompt in, frames out, for as long as anybody watches."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from streamstill.codec.video import VideoCodec, to_frames
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.rollout import Sampling, stream_chunks
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


class Session:
    """One endless video. Memory does not grow; the prompt may change at any time, from the next chunk on.

    The past is kept when the prompt changes; ``restart`` begins a new video.
    """

    def __init__(self, student: Streamer, prompt: str, *, sampling: Sampling, seed: int = 0) -> None:
        self._student, self._sampling, self._seed = student, sampling, seed
        self._text_BLD = self._encode(prompt)
        self._prompt = prompt
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
        """Forget the video so far; the same seed makes the same video again."""
        self._seed = self._seed if seed is None else seed
        self._chunks = self._stream()

    def next_chunk(self) -> Frames:
        """The next frames, uint8 of shape (frames, 3, height, width)."""
        return next(self._chunks)

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
        )
        state: Any = None
        while True:
            with torch.inference_mode():  # entered per chunk: a generator must not leave it switched on for its caller
                latents_BFCHW = next(chunks)
                pixels_BFCHW, state = self._student.codec.decode(latents_BFCHW, state)
            yield to_frames(pixels_BFCHW[0])
