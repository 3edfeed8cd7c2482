"""How good a codec's pixels are and what they cost: PSNR, SSIM, and the share of decoding in making a video."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from streamstill.codec.video import to_frames
from streamstill.flow.times import Sampling
from streamstill.metrics import interval, psnr, ssim
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.rollout import stream_chunks
from streamstill.streaming.timing import Spread, Stopwatch, in_turns
from streamstill.types import Clip

MOST_DB = 100.0  # what the PSNR of equal clips counts as, so that means stay finite
WARMUP_CHUNKS = 2  # that are made and thrown away


class Decoder(Protocol):
    """What turns latents into pixels, piece by piece: a codec, or a light decoder."""

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Pixels of these latent frames, and what the next call needs."""
        ...


@dataclass(frozen=True, kw_only=True)
class DecodingTime:
    """Milliseconds of one chunk: the network's steps, and latents to uint8 frames."""

    network_ms: Spread
    decode_ms: Spread

    @property
    def share(self) -> float:
        """Of the time of a chunk from noise to frames, what decoding takes; of medians."""
        return self.decode_ms.median / (self.network_ms.median + self.decode_ms.median)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"network_ms": asdict(self.network_ms), "decode_ms": asdict(self.decode_ms), "share": self.share}


def likeness(made: Sequence[Clip], wanted: Sequence[Clip]) -> dict[str, dict[str, float | int]]:
    """``psnr`` (dB) and ``ssim`` over pairs of clips, each with its 95 % interval over the clips, as plain values.

    Raises:
        ValueError: there is no pair, or a pair of different sizes.
    """
    pairs = list(zip(made, wanted, strict=True))
    found = {"psnr": [min(psnr(*pair), MOST_DB) for pair in pairs], "ssim": [ssim(*pair) for pair in pairs]}
    return {name: asdict(interval(values)) for name, values in found.items()}


@torch.inference_mode()
def decoded(decoder: Decoder, latents_BFCHW: Tensor, *, fps: float) -> list[Clip]:
    """The clips of these latents, decoded one by one."""
    pixels = (decoder.decode(latents_FCHW[None])[0][0] for latents_FCHW in latents_BFCHW)
    return [Clip(frames_FCHW=to_frames(pixels_FCHW), fps=fps) for pixels_FCHW in pixels]


@torch.inference_mode()
def time_decoders(
    model: StreamingModel[Any],
    text_BLD: Tensor,
    decoders: Mapping[str, Decoder],
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    rounds: int,
) -> dict[str, DecodingTime]:
    """What each decoder takes beside the network, by name; all take turns in one video, so all meet the same machine.

    Args:
        text_BLD: of one clip, on the model's device.
        latent_shape: C, H, W of a latent frame.
        rounds: chunks that are timed.
    """
    bench = _Bench(model, text_BLD, latent_shape, sampling)
    turns: dict[str, Callable[[], float]] = {"": bench.chunk}
    turns |= {name: partial(bench.decode, name, decoder) for name, decoder in decoders.items()}
    in_turns(turns, rounds=WARMUP_CHUNKS)
    taken = in_turns(turns, rounds=rounds)
    network_ms = Spread.of(taken[""])
    return {name: DecodingTime(network_ms=network_ms, decode_ms=Spread.of(taken[name])) for name in decoders}


class _Bench:
    """One endless video, and what each decoder remembers of it; methods return milliseconds."""

    def __init__(
        self,
        model: StreamingModel[Any],
        text_BLD: Tensor,
        latent_shape: tuple[int, int, int],
        sampling: Sampling,
    ) -> None:
        self.chunks = stream_chunks(
            model,
            repeat(text_BLD),
            latent_shape=latent_shape,
            sampling=sampling,
            generator=torch.Generator().manual_seed(0),
        )
        self.latents_BFCHW = next(self.chunks)
        self.states: dict[str, Any] = {}
        self.now = Stopwatch(text_BLD.device)

    def chunk(self) -> float:
        """The next chunk's latents."""
        start = self.now()
        self.latents_BFCHW = next(self.chunks)
        return self.now() - start

    def decode(self, name: str, decoder: Decoder) -> float:
        """The newest chunk's frames."""
        start = self.now()
        pixels_BFCHW, self.states[name] = decoder.decode(self.latents_BFCHW, self.states.get(name))
        to_frames(pixels_BFCHW[0])
        return self.now() - start
