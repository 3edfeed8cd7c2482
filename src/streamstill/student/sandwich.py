"""SandwichDiT: LCHA and SSA blocks in any order, two resolutions, a long skip (S2DiT section 3.3, eqs. 2-6)."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from streamstill.flow.path import velocity_from_clean
from streamstill.state import StreamState
from streamstill.student.block import MODULATIONS, Block, RunMixer
from streamstill.student.layout import BlockKind, parse_layout
from streamstill.student.lcha import LinearConvAttention
from streamstill.student.mixer import stream, teach
from streamstill.student.ssa import StridedSelfAttention

STRIDE = 2  # SSA sees every second row and column (s2dit.md 2)


@dataclass(frozen=True, kw_only=True)
class SandwichConfig:
    """Everything that fixes the shape of a SandwichDiT; the clip size is not part of it."""

    layout: str
    latent_channels: int
    chunk_frames: int
    patch: int
    width: int
    head_dim: int
    mlp_ratio: float
    text_width: int
    window_chunks: int
    retention: float
    theta: float
    t_min: float

    def __post_init__(self) -> None:
        parse_layout(self.layout)
        counts = ("latent_channels", "chunk_frames", "patch", "width", "head_dim", "text_width")
        too_low = [f"{name}={getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if too_low or self.width % self.head_dim or self.head_dim % 2:
            raise ValueError(
                f"a SandwichDiT needs positive sizes and a width that is a multiple of an even head_dim, "
                f"got width={self.width}, head_dim={self.head_dim} {' '.join(too_low)}".rstrip()
            )
        if not 0 <= self.retention <= 1:
            raise ValueError(f"retention must lie in [0, 1], got {self.retention}; 1 keeps the whole past")


class SandwichDiT(nn.Module):
    """A causal video diffusion transformer that works chunk by chunk; it answers ``StreamingModel``.

    The network predicts the clean latents; callers see a velocity (design.md, decisions).
    """

    def __init__(self, config: SandwichConfig) -> None:
        super().__init__()
        self.config = config
        self.kinds = parse_layout(config.layout)
        width = config.width
        token_width = config.latent_channels * config.patch**2
        self.embed = nn.Linear(token_width, width)
        self.place = nn.Linear(PLACE_FEATURES, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.prompt = nn.Linear(config.text_width, width)
        self.condition = nn.Linear(width, MODULATIONS * width)
        self.blocks = nn.ModuleList(_block(kind, config) for kind in self.kinds)
        self.down = nn.ModuleDict({str(i): _down(width) for i in self._switches(BlockKind.SSA)})
        self.final_condition = nn.Linear(width, 2 * width)
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, token_width)

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together."""
        return self.config.chunk_frames

    @property
    def latent_step(self) -> int:
        """Latent height and width must be multiples of this."""
        return self.config.patch * (STRIDE if BlockKind.SSA in self.kinds else 1)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StreamState:
        """The state before the first chunk, for latents of this height and width.

        Raises:
            ValueError: the latents cannot be cut into the patches and strides of this network.
        """
        rows, columns = self._token_grid(height, width)
        states: list[Any] = []
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind is BlockKind.LCHA:
                states.append(block.mixer.empty(batch, rows, columns, like))  # type: ignore[union-attr, operator]
            else:
                tokens = self.chunk_frames * (rows // STRIDE) * (columns // STRIDE)
                states.append(block.mixer.empty(batch, tokens, like))  # type: ignore[union-attr, operator]
        return StreamState(tuple(states))

    def forward(
        self, x_t_BFCHW: Tensor, t_B: Tensor, text_BLD: Tensor, state: StreamState
    ) -> tuple[Tensor, StreamState]:
        """One chunk: its velocity, and the state as it would be were ``x_t`` the chunk that was shown.

        Call it with the noised chunk for the velocity, then once with the clean chunk and t=0 for the state.
        """
        self._check_chunk(x_t_BFCHW)
        clean, after = self._clean(x_t_BFCHW, t_B, text_BLD, state, stream)
        return velocity_from_clean(x_t_BFCHW, clean, t_B, t_min=self.config.t_min), after

    def velocity_in_context(
        self, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor
    ) -> Tensor:
        """The velocity of every chunk of a clip in one pass: chunk k sees the clean context of chunks before it.

        Equal to streaming: what ``forward`` returns for chunk k after it was shown the context's chunks 0..k-1.

        Args:
            t_BK: a time for each of the clip's chunks.
        """
        chunks = t_BK.shape[1]
        both = torch.stack([context_BFCHW, x_t_BFCHW], dim=1).unflatten(2, (chunks, self.chunk_frames))
        times = torch.stack([torch.zeros_like(t_BK), t_BK], dim=1)
        state = self.initial_state(x_t_BFCHW.shape[0], x_t_BFCHW.shape[3], x_t_BFCHW.shape[4], x_t_BFCHW)
        run = partial(teach, chunks=chunks)
        rows, _ = self._clean(both.flatten(0, 2), times.flatten(), text_BLD, state, run)
        clean = rows.unflatten(0, (-1, 2, chunks))[:, 1].flatten(1, 2)
        t_BF = t_BK.repeat_interleave(self.chunk_frames, dim=1)
        return velocity_from_clean(x_t_BFCHW, clean, t_BF, t_min=self.config.t_min)

    def _clean(
        self, x_t_RFCHW: Tensor, t_R: Tensor, text_BLD: Tensor, state: StreamState, run: RunMixer
    ) -> tuple[Tensor, StreamState]:
        """The predicted clean chunk of every row."""
        condition_RD = self._condition(t_R, text_BLD)
        condition_R6D = self.condition(torch.nn.functional.silu(condition_RD)).unflatten(-1, (MODULATIONS, -1))
        tokens_RFHWD = self._tokens(x_t_RFCHW)
        tokens_RFHWD = tokens_RFHWD + self.place(_place_features(tokens_RFHWD))
        x_RFHWD, after = self._sandwich(tokens_RFHWD, condition_R6D, text_BLD, state, run)
        shift, scale = self.final_condition(condition_RD)[:, None, None, None].chunk(2, dim=-1)
        return self._latents(self.head(self.final_norm(x_RFHWD) * (1 + scale) + shift)).to(x_t_RFCHW.dtype), after

    def _sandwich(
        self, x_RFHWD: Tensor, condition_R6D: Tensor, text_BLD: Tensor, state: StreamState, run: RunMixer
    ) -> tuple[Tensor, StreamState]:
        """Blocks in order; switches of resolution where the kind changes, with the long skip of eqs. (3)-(4)."""
        skip, at = x_RFHWD, BlockKind.LCHA
        after = []
        for index, (kind, block) in enumerate(zip(self.kinds, self.blocks, strict=True)):
            if (at, kind) == (BlockKind.LCHA, BlockKind.SSA):
                skip, x_RFHWD = x_RFHWD, _downsample(self.down[str(index)], x_RFHWD)
            elif (at, kind) == (BlockKind.SSA, BlockKind.LCHA):
                x_RFHWD = _upsample(x_RFHWD) + skip
            x_RFHWD, remembered = block(x_RFHWD, condition_R6D, text_BLD, state.blocks[index], run)
            after.append(remembered)
            at = kind
        if at is BlockKind.SSA:
            x_RFHWD = _upsample(x_RFHWD)  # eq. (6)
        return x_RFHWD, StreamState(tuple(after))

    def _condition(self, t_R: Tensor, text_BLD: Tensor) -> Tensor:
        prompt_BD = self.prompt(text_BLD.mean(dim=1))
        rows_per_clip = t_R.shape[0] // prompt_BD.shape[0]
        return self.time(_time_features(t_R).to(prompt_BD.dtype)) + prompt_BD.repeat_interleave(rows_per_clip, dim=0)

    def _tokens(self, x_RFCHW: Tensor) -> Tensor:
        p = self.config.patch
        cells = x_RFCHW.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # R F C h p w p
        return self.embed(cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4))

    def _latents(self, tokens_RFHWD: Tensor) -> Tensor:
        p = self.config.patch
        cells = tokens_RFHWD.unflatten(-1, (-1, p, p))  # R F h w C p p
        return cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _switches(self, to: BlockKind) -> list[int]:
        kinds = (BlockKind.LCHA, *self.kinds)
        return [i for i, (a, b) in enumerate(pairwise(kinds)) if a is not b and b is to]

    def _token_grid(self, height: int, width: int) -> tuple[int, int]:
        step = self.latent_step
        if height % step or width % step:
            raise ValueError(
                f"latents of {height}x{width} cannot be cut into patches of {self.config.patch} with stride {STRIDE}; "
                f"latent height and width must be divisible by {step}"
            )
        return height // self.config.patch, width // self.config.patch

    def _check_chunk(self, x_t_BFCHW: Tensor) -> None:
        frames, channels = x_t_BFCHW.shape[1:3]
        if (frames, channels) != (self.chunk_frames, self.config.latent_channels):
            raise ValueError(
                f"a chunk has {self.chunk_frames} latent frames of {self.config.latent_channels} channels, "
                f"got {frames} of {channels}"
            )


TIME_FEATURES = 64
PLACE_FEATURES = 18


def _time_features(t_R: Tensor) -> Tensor:
    """Sines and cosines of t at frequencies from 1 to 1000 radians per unit of time."""
    frequencies = torch.logspace(0, 3, TIME_FEATURES // 2, device=t_R.device, dtype=torch.float32)
    angles = t_R.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _place_features(tokens_RFHWD: Tensor) -> Tensor:
    """Where in the frame each token lies, shape (H, W, features): rotary positions only tell distances.

    Coordinates run from -1 to 1 over the frame, whatever its size in tokens.
    """
    height, width = tokens_RFHWD.shape[2:4]
    device = tokens_RFHWD.device
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    places_HW2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    angles = (places_HW2.unsqueeze(-1) * torch.pi * 2.0 ** torch.arange(4, device=device)).flatten(-2)
    return torch.cat([places_HW2, angles.cos(), angles.sin()], dim=-1).to(tokens_RFHWD.dtype)


def _block(kind: BlockKind, config: SandwichConfig) -> Block:
    width, heads = config.width, config.width // config.head_dim
    mixer = (
        LinearConvAttention(width, heads=heads, retention=config.retention, theta=config.theta)
        if kind is BlockKind.LCHA
        else StridedSelfAttention(width, heads=heads, window=config.window_chunks, theta=config.theta)
    )
    mlp_width = int(config.mlp_ratio * width)
    return Block(mixer, width, text_width=config.text_width, text_heads=heads, mlp_width=mlp_width)


def _down(width: int) -> nn.Conv2d:
    """A depthwise strided convolution, starting as the mean of each 2x2 cell."""
    conv = nn.Conv2d(width, width, STRIDE, stride=STRIDE, groups=width)
    nn.init.constant_(conv.weight, 1 / STRIDE**2)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _downsample(conv: nn.Module, x_RFHWD: Tensor) -> Tensor:
    planes = conv(x_RFHWD.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return planes.unflatten(0, x_RFHWD.shape[:2])


def _upsample(x_RFHWD: Tensor) -> Tensor:
    """Nearest: every low-resolution token is copied to its 2x2 cell."""
    return x_RFHWD.repeat_interleave(STRIDE, dim=2).repeat_interleave(STRIDE, dim=3)
