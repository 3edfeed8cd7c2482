"""SandwichDiT: blocks of any kind in any order, two resolutions, a long skip (S2DiT section 3.3, eqs. 2-6)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamstill.flow.path import velocity_from_clean
from streamstill.state import KVCache, LchaState, StreamState
from streamstill.student.block import MODULATIONS, Block, build_mixer
from streamstill.student.checks import check_step
from streamstill.student.layout import BlockKind, parse_layout, ways_down
from streamstill.student.mixer import RunMixer, lesson, look, noised_clips, stream
from streamstill.student.positions import PLACE_FEATURES, place_features
from streamstill.student.resize import STRIDE, downsample, strided_mean, upsample
from streamstill.student.window import Window


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
    window_chunks: int  # what S and K blocks see of the past
    full_window_chunks: int  # what F blocks see of it
    sink_chunks: int  # chunks at the start of the video that S, K and F blocks never forget
    retention: float
    theta: float

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

    @property
    def kinds(self) -> tuple[BlockKind, ...]:
        """The blocks of the layout."""
        return parse_layout(self.layout)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLPs."""
        return int(self.mlp_ratio * self.width)

    def window(self, kind: BlockKind) -> Window:
        """What the softmax blocks of this kind see of the past."""
        chunks = self.full_window_chunks if kind is BlockKind.FULL else self.window_chunks
        return Window(frames=chunks * self.chunk_frames, sink=self.sink_chunks * self.chunk_frames)


class SandwichDiT(nn.Module):
    """A causal video diffusion transformer that works chunk by chunk; it answers ``StreamingModel``.

    The network predicts the clean latents; callers see a velocity (design.md, decisions). A chunk has at most
    ``chunk_frames`` latent frames; a shorter one is a video's last, or its first when a still image opens it.
    """

    def __init__(self, config: SandwichConfig) -> None:
        super().__init__()
        self.config = config
        self.kinds = config.kinds
        width = config.width
        token_width = config.latent_channels * config.patch**2
        self.embed = nn.Linear(token_width, width)
        self.place = nn.Linear(PLACE_FEATURES, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.prompt = nn.Linear(config.text_width, width)
        self.condition = nn.Linear(width, MODULATIONS * width)
        self.blocks = nn.ModuleList(_block(kind, config) for kind in self.kinds)
        self.down = nn.ModuleDict({str(index): strided_mean(width) for index in ways_down(self.kinds)})
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
        strided = any(kind.low or kind is BlockKind.COMPRESSED for kind in self.kinds)
        return self.config.patch * (STRIDE if strided else 1)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StreamState:
        """The state before the first chunk, for latents of this height and width.

        Raises:
            ValueError: the latents cannot be cut into the patches and strides of this network.
        """
        rows, columns = self._token_grid(height, width)
        states: list[LchaState | KVCache] = []
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            stride = STRIDE if kind.low else 1
            states.append(block.mixer.empty(batch, rows // stride, columns // stride, like))  # type: ignore[union-attr, operator]
        return StreamState(tuple(states))

    def forward(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """One chunk: its velocity, and the state as it would be were ``x_t`` the chunk that was shown.

        ``velocity`` and ``remember`` give one of the two, for less.

        Args:
            t: a time for each chunk, shape (B,), or for each latent frame, shape (B, F).

        Raises:
            ValueError: a shape, dtype or device that does not fit the network, or a state of another one.
        """
        self._check(x_t_BFCHW, t, text_BLD, state)
        clean, after = self._clean(x_t_BFCHW, t, text_BLD, state, stream)
        return velocity_from_clean(x_t_BFCHW, clean, t), after

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> Tensor:
        """The velocity of one noised chunk: the first answer of ``forward``."""
        self._check(x_t_BFCHW, t, text_BLD, state)
        return velocity_from_clean(x_t_BFCHW, self._clean(x_t_BFCHW, t, text_BLD, state, look)[0], t)

    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: StreamState) -> StreamState:
        """The state after a clean chunk: the second answer of ``forward`` at t=0, without what only the first needs."""
        t_B = clean_BFCHW.new_zeros(clean_BFCHW.shape[0])
        self._check(clean_BFCHW, t_B, text_BLD, state)
        tokens_RFHWD, condition_RFD = self._tokens(clean_BFCHW), self._condition(t_B, text_BLD)
        modulations = self._modulations(condition_RFD)
        return self.through_blocks(tokens_RFHWD, modulations, text_BLD, state, stream, memory_only=True)[1]

    def velocity_bidirectional(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
        """The velocity of a whole clip in which every latent frame sees every other: one chunk as long as the clip.

        Only the local convolutions stay causal: their weights are those of streaming.

        Args:
            t: a time for each clip, shape (B,), or for each latent frame, shape (B, F): frames at t=0 are given.
        """
        batch, _, _, height, width = x_t_BFCHW.shape
        state = _without_window(self.initial_state(batch, height, width, x_t_BFCHW))
        clean, _ = self._clean(x_t_BFCHW, t, text_BLD, state, look)
        return velocity_from_clean(x_t_BFCHW, clean, t)

    def velocity_in_context(
        self, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor
    ) -> Tensor:
        """The velocity of every chunk of a clip in one pass: chunk k sees the clean context of chunks before it.

        Equal to streaming: what ``forward`` returns for chunk k after it was shown the context's chunks 0..k-1.

        Args:
            t_BK: a time for each of the clip's chunks.
        """
        state = self.initial_state(x_t_BFCHW.shape[0], x_t_BFCHW.shape[3], x_t_BFCHW.shape[4], x_t_BFCHW)
        x_RFCHW, t_R, run = lesson(x_t_BFCHW, t_BK, context_BFCHW=context_BFCHW, chunk_frames=self.chunk_frames)
        clean = noised_clips(self._clean(x_RFCHW, t_R, text_BLD, state, run)[0], chunks=t_BK.shape[1])
        return velocity_from_clean(x_t_BFCHW, clean, t_BK.repeat_interleave(self.chunk_frames, dim=1))

    def parameter_count(self) -> int:
        """How many weights and biases the network has."""
        from streamstill.student import costs  # it counts what is built here

        return costs.parameter_count(self.config)

    def flops(self, height: int, width: int, *, text_tokens: int, batch: int = 1, frames: int | None = None) -> int:
        """Floating point operations of one velocity pass over latents of this height and width (``costs.Cost``).

        Args:
            frames: latent frames of the chunk; a whole chunk unless told.

        Raises:
            ValueError: a size that the network would refuse.
        """
        from streamstill.student import costs

        self._token_grid(height, width)
        frames = self.chunk_frames if frames is None else frames
        work = costs.Workload(height=height, width=width, frames=frames, text_tokens=text_tokens, batch=batch)
        return costs.network_cost(self.config, work).flops

    def state_bytes(self, height: int, width: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of ``initial_state``, and of every state after it, for latents of this size and dtype.

        Raises:
            ValueError: a size that the network would refuse.
        """
        from streamstill.student import costs

        self._token_grid(height, width)
        size = {"height": height, "width": width, "batch": batch, "value_bytes": dtype.itemsize}
        return costs.network_cost(self.config, costs.Workload(**size, frames=1, text_tokens=1)).state_bytes

    def _check(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> None:
        if torch.compiler.is_compiling():  # a program has its shapes; they were checked where it was made
            return
        self._token_grid(*x_t_BFCHW.shape[-2:])
        channels, text_width = self.config.latent_channels, self.config.text_width
        weight = self.embed.weight
        check_step(self, x_t_BFCHW, t, text_BLD, state, channels=channels, text_width=text_width, weight=weight)

    def _clean(
        self, x_t_RFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState, run: RunMixer
    ) -> tuple[Tensor, StreamState]:
        """The predicted clean chunk of every row."""
        condition_RFD = self._condition(t, text_BLD)
        tokens_RFHWD, condition_RF6D = self._tokens(x_t_RFCHW), self._modulations(condition_RFD)
        x_RFHWD, after = self.through_blocks(tokens_RFHWD, condition_RF6D, text_BLD, state, run)
        shift, scale = self.final_condition(condition_RFD)[:, :, None, None].chunk(2, dim=-1)
        latents = self._latents(self.head(torch.addcmul(shift, self.final_norm(x_RFHWD), 1 + scale)))
        return latents.to(x_t_RFCHW.dtype), after

    def through_blocks(
        self,
        x_RFHWD: Tensor,
        condition_RF6D: Tensor,
        text_BLD: Tensor,
        state: StreamState,
        run: RunMixer,
        *,
        memory_only: bool = False,
    ) -> tuple[Tensor, StreamState]:
        """Blocks in order; switches of resolution where it changes, with the long skip of eqs. (3)-(4).

        Args:
            memory_only: stop as soon as the last block has remembered; the tokens are then not the output.
        """
        skip, is_low = x_RFHWD, False
        after = []
        for index, (kind, block) in enumerate(zip(self.kinds, self.blocks, strict=True)):
            if kind.low and not is_low:
                skip, x_RFHWD = x_RFHWD, downsample(self.down[str(index)], x_RFHWD)
            elif is_low and not kind.low:
                x_RFHWD = upsample(x_RFHWD) + skip
            is_low, past = kind.low, state.blocks[index]
            if memory_only and index == len(self.kinds) - 1:
                after.append(block.remember(x_RFHWD, condition_RF6D, past))  # type: ignore[operator]
                break
            x_RFHWD, remembered = block(x_RFHWD, condition_RF6D, text_BLD, past, run)
            after.append(remembered)
        return upsample(x_RFHWD) if is_low else x_RFHWD, StreamState(tuple(after))  # eq. (6)

    def _modulations(self, condition_RFD: Tensor) -> Tensor:
        """What every block's own modulation is added to."""
        return self.condition(torch.nn.functional.silu(condition_RFD)).unflatten(-1, (MODULATIONS, -1))

    def _condition(self, t: Tensor, text_BLD: Tensor) -> Tensor:
        """Time and prompt, shape (R, F, D), with F = 1 if one time is given for all frames of a row."""
        prompt_BD = self.prompt(text_BLD.mean(dim=1))
        rows_per_clip = t.shape[0] // prompt_BD.shape[0]
        prompt_R1D = prompt_BD.repeat_interleave(rows_per_clip, dim=0).unsqueeze(1)
        return self.time(_time_features(t.reshape(t.shape[0], -1)).to(prompt_BD.dtype)) + prompt_R1D

    def _tokens(self, x_RFCHW: Tensor) -> Tensor:
        p = self.config.patch
        cells = x_RFCHW.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # R F C h p w p
        tokens_RFHWD = self.embed(cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4))
        height, width = tokens_RFHWD.shape[2:4]
        return tokens_RFHWD + self.place(place_features(height, width, like=tokens_RFHWD))

    def _latents(self, tokens_RFHWD: Tensor) -> Tensor:
        p = self.config.patch
        cells = tokens_RFHWD.unflatten(-1, (-1, p, p))  # R F h w C p p
        return cells.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _token_grid(self, height: int, width: int) -> tuple[int, int]:
        step = self.latent_step
        if height % step or width % step:
            raise ValueError(
                f"latents of {height}x{width} cannot be cut into patches of {self.config.patch} with stride {STRIDE}; "
                f"latent height and width must be divisible by {step}"
            )
        return height // self.config.patch, width // self.config.patch


TIME_FEATURES = 64


def _time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t at frequencies from 1 to 1000 radians per unit of time; one more axis than ``t``."""
    frequencies = torch.logspace(0, 3, TIME_FEATURES // 2, device=t.device, dtype=torch.float32)
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _block(kind: BlockKind, config: SandwichConfig) -> Block:
    mixer = build_mixer(
        kind,
        config.width,
        head_dim=config.head_dim,
        window=config.window(kind),
        retention=config.retention,
        chunk_frames=config.chunk_frames,
        theta=config.theta,
    )
    heads = config.width // config.head_dim
    return Block(mixer, config.width, text_width=config.text_width, text_heads=heads, mlp_width=config.mlp_width)


def _without_window(state: StreamState) -> StreamState:
    """The same state with caches that have no slots, so that nothing is masked."""
    return StreamState(
        tuple(
            KVCache(block.key_BWSNE[:, :0], block.value_BWSNE[:, :0], block.seen_B)
            if isinstance(block, KVCache)
            else block
            for block in state.blocks
        )
    )
