"""Wan chunk by chunk: diffusers' WanTransformer3DModel with its own weights, made causal in chunks of latent frames."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamstill.codec.pretrained import library
from streamstill.config import from_dict, require_positive
from streamstill.state import StreamState
from streamstill.student.checks import check_step
from streamstill.student.mixer import RunMixer, lesson, look, noised_clips, stream
from streamstill.student.positions import Turns
from streamstill.student.wan_block import WanSelfAttention, WanTokens, modulated, remembered_by, through, wan_turns
from streamstill.student.window import Window

TIMESTEPS = 1000  # Wan was trained with times from 0 to 1000


@dataclass(frozen=True, kw_only=True)
class CausalWanConfig:
    """Everything that rebuilds a CausalWan: arguments of WanTransformer3DModel under their own names, and the window.

    The defaults are Wan2.1-T2V-1.3B. Its clips have 21 latent frames: the chunk at hand and 6 chunks of the past.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 8960
    num_layers: int = 30
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: float = 1e-6
    rope_max_seq_len: int = 1024
    chunk_frames: int = 3
    window_chunks: int = 6  # what every block sees of the past
    sink_chunks: int = 0  # chunks at the start of the video that no block forgets

    def __post_init__(self) -> None:
        counts = ("num_attention_heads", "attention_head_dim", "in_channels", "text_dim", "freq_dim", "ffn_dim")
        require_positive(self, *counts, "num_layers", "rope_max_seq_len", "chunk_frames")
        frames, rows, columns = self.patch_size
        if frames != 1 or rows != columns or rows < 1:
            raise ValueError(
                f"patch_size {self.patch_size} cannot stream: a patch is one latent frame of p x p latents, (1, p, p)"
            )
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim must be even for rotary positions, got {self.attention_head_dim}")
        _refuse_images(vars(self))
        if self.window.slots + self.chunk_frames > self.rope_max_seq_len:
            raise ValueError(
                f"the window holds {self.window.slots} latent frames, Wan's positions end at {self.rope_max_seq_len}; "
                "use a smaller window_chunks or sink_chunks"
            )

    @property
    def window(self) -> Window:
        """What every block sees of the past."""
        return Window(frames=self.window_chunks * self.chunk_frames, sink=self.sink_chunks * self.chunk_frames)

    @property
    def transformer_arguments(self) -> dict[str, Any]:
        """The part of the config that WanTransformer3DModel takes."""
        return {name: value for name, value in vars(self).items() if name not in _OURS}


_OURS = ("chunk_frames", "window_chunks", "sink_chunks")


class CausalWan(nn.Module):
    """Wan's transformer as a network that streams; it answers ``StreamingModel``, and the teachable and bidirectional.

    ``transformer`` is diffusers' own module, so its weights and its ``save_pretrained`` are diffusers'. A noised
    chunk attends to itself and to the clean chunks before it, which are shown at time 0. Wan predicts
    ``noise - clean`` at timestep ``1000 t``, which is our velocity. Positions are counted from the chunk at hand:
    rotary attention only sees differences, so a stream never runs out of them.

    Args:
        transformer: a loaded model to use as it is; without one, fresh weights. ``of`` finds the config for it.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """

    def __init__(self, config: CausalWanConfig, transformer: Any = None) -> None:
        super().__init__()
        self.config = config
        fresh = transformer is None
        self.transformer = _model_class()(**config.transformer_arguments) if fresh else transformer

    @classmethod
    def of(cls, transformer: Any, *, chunk_frames: int, window_chunks: int, sink_chunks: int = 0) -> "CausalWan":
        """A loaded WanTransformer3DModel as a network that streams; the weights are shared, not copied.

        Raises:
            ValueError: the model is conditioned on images, or its patches span several latent frames.
        """
        given = dict(transformer.config)
        _refuse_images(given)
        known = {field.name: given[field.name] for field in fields(CausalWanConfig) if field.name in given}
        ours = {"chunk_frames": chunk_frames, "window_chunks": window_chunks, "sink_chunks": sink_chunks}
        return cls(from_dict(CausalWanConfig, {**known, **ours}, where="the transformer's config"), transformer)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        subfolder: str | None = "transformer",
        chunk_frames: int,
        window_chunks: int,
        sink_chunks: int = 0,
        dtype: torch.dtype | None = None,
    ) -> "CausalWan":
        """The weights of a Wan pipeline that diffusers saved, in a folder or on a hub.

        Args:
            subfolder: where in it the transformer lies; None if the folder is the transformer's own.
            dtype: of the weights; the few that diffusers keeps in float32 stay so, which ``.to(dtype)`` forgets.

        Raises:
            ModuleNotFoundError: diffusers is not installed, or accelerate, by which it reads weights.
            OSError: there is no such model.
            ValueError: the model is conditioned on images, or its patches span several latent frames.
        """
        model = _model_class("accelerate")
        _refuse_images(model.load_config(path_or_repo, subfolder=subfolder))  # before gigabytes of weights are read
        transformer = model.from_pretrained(path_or_repo, subfolder=subfolder, torch_dtype=dtype)
        return cls.of(transformer, chunk_frames=chunk_frames, window_chunks=window_chunks, sink_chunks=sink_chunks)

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together."""
        return self.config.chunk_frames

    @property
    def latent_step(self) -> int:
        """Latent height and width must be multiples of this."""
        return self.config.patch_size[1]

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StreamState:
        """The state before the first chunk, for latents of this height and width.

        Raises:
            ValueError: the latents cannot be cut into the patches of this network, or are too large for its positions.
        """
        return self._state(self.config.window, batch, height, width, like)

    def forward(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """One chunk: its velocity, and the state as it would be were ``x_t`` the chunk that was shown.

        ``velocity`` and ``remember`` give one of the two, for less.

        Args:
            t: a time for each chunk, shape (B,), or for each latent frame, shape (B, F).

        Raises:
            ValueError: a shape, dtype or device that does not fit the network, or a state of another one.
        """
        self._check(x_t_BFCHW, t, text_BLD, state)
        return self._velocity(x_t_BFCHW, t, text_BLD, state, stream)

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> Tensor:
        """The velocity of one noised chunk: the first answer of ``forward``."""
        self._check(x_t_BFCHW, t, text_BLD, state)
        return self._velocity(x_t_BFCHW, t, text_BLD, state, look)[0]

    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: StreamState) -> StreamState:
        """The state after a clean chunk: the second answer of ``forward`` at t=0, without what only the first needs."""
        t_B = clean_BFCHW.new_zeros(clean_BFCHW.shape[0])
        self._check(clean_BFCHW, t_B, text_BLD, state)
        tokens = self._tokens(clean_BFCHW, t_B, text_BLD)
        return self._blocks(tokens, state, stream, memory_only=True)[1]

    def velocity_bidirectional(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
        """The velocity of a whole clip in which every latent frame sees every other: Wan as diffusers runs it.

        Args:
            t: a time for each clip, shape (B,), or for each latent frame, shape (B, F): frames at t=0 are given.
        """
        batch, _, _, height, width = x_t_BFCHW.shape
        nothing = self._state(Window(frames=0), batch, height, width, x_t_BFCHW)
        return self._velocity(x_t_BFCHW, t, text_BLD, nothing, look)[0]

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
        return noised_clips(self._velocity(x_RFCHW, t_R, text_BLD, state, run)[0], chunks=t_BK.shape[1])

    def _check(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState) -> None:
        if torch.compiler.is_compiling():  # a program has its shapes; they were checked where it was made
            return
        channels, text_width = self.config.in_channels, self.config.text_dim
        weight = self.transformer.patch_embedding.weight  # Wan may keep others in float32
        check_step(self, x_t_BFCHW, t, text_BLD, state, channels=channels, text_width=text_width, weight=weight)

    def _state(self, window: Window, batch: int, height: int, width: int, like: Tensor) -> StreamState:
        step, config = self.latent_step, self.config
        if height % step or width % step or max(height, width) > step * config.rope_max_seq_len:
            raise ValueError(
                f"latents of {height}x{width} do not fit this network; latent height and width must be divisible by "
                f"{step} and at most {step * config.rope_max_seq_len}"
            )
        tokens, heads, head_dim = height * width // step**2, config.num_attention_heads, config.attention_head_dim
        return StreamState(tuple(window.empty(batch, tokens, heads, head_dim, like) for _ in range(config.num_layers)))

    def _velocity(
        self, x_t_RFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StreamState, run: RunMixer
    ) -> tuple[Tensor, StreamState]:
        """The velocity of every row."""
        wan, patch = self.transformer, self.latent_step
        tokens = self._tokens(x_t_RFCHW, t, text_BLD)
        x_RFHWD, after = self._blocks(tokens, state, run)
        shift, scale = (wan.scale_shift_table + tokens.time_RFD.unsqueeze(2))[:, :, None, None].unbind(-2)
        cells_RFHWE = wan.proj_out(modulated(wan.norm_out, x_RFHWD, shift, scale))
        cells = cells_RFHWE.unflatten(-1, (patch, patch, -1)).permute(0, 1, 6, 2, 4, 3, 5)  # R F C h p w p
        return cells.flatten(5, 6).flatten(3, 4).to(x_t_RFCHW.dtype), after

    def _tokens(self, x_t_RFCHW: Tensor, t: Tensor, text_BLD: Tensor) -> WanTokens:
        wan = self.transformer
        x_RFHWD = wan.patch_embedding(x_t_RFCHW.transpose(1, 2)).permute(0, 2, 3, 4, 1).contiguous()
        times = (t.to(torch.promote_types(t.dtype, torch.float32)) * TIMESTEPS).reshape(t.shape[0], -1)
        time_RFD, modulation, text_BLD, _ = wan.condition_embedder(
            times.flatten(), text_BLD, None, timestep_seq_len=times.shape[1]
        )
        return WanTokens(x_RFHWD, time_RFD, modulation.unflatten(-1, (6, -1)), text_BLD)

    def _blocks(
        self, tokens: WanTokens, state: StreamState, run: RunMixer, *, memory_only: bool = False
    ) -> tuple[Tensor, StreamState]:
        """Blocks in order.

        Args:
            memory_only: stop as soon as the last block has remembered; the tokens are then not the output.
        """
        window, turns = self.config.window, self._turns(tokens.x_RFHWD, state)
        after = []
        for block, past in zip(self.transformer.blocks, state.blocks, strict=True):
            mixer = WanSelfAttention(block.attn1, window, turns)
            if memory_only and block is self.transformer.blocks[-1]:
                after.append(remembered_by(block, mixer, tokens, past))
                break
            if self.transformer.gradient_checkpointing and torch.is_grad_enabled():
                x_RFHWD, remembered = checkpoint(through, block, mixer, tokens, past, run, use_reentrant=False)
            else:
                x_RFHWD, remembered = through(block, mixer, tokens, past, run)
            tokens = tokens._replace(x_RFHWD=x_RFHWD)
            after.append(remembered)
        return tokens.x_RFHWD, StreamState(tuple(after))

    def _turns(self, x_RFHWD: Tensor, state: StreamState) -> Turns:
        """Turns of all keys: those of the cache lie at negative positions, the chunk begins at 0."""
        _, frames, height, width, _ = x_RFHWD.shape
        past: Any = state.blocks[0]
        if frames > self.config.rope_max_seq_len:
            raise ValueError(f"Wan's positions end at {self.config.rope_max_seq_len} latent frames, got {frames}")
        return wan_turns(self.transformer.rope, range(-past.key_BWSNE.shape[1], frames), height, width)


def _refuse_images(given: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if a config of WanTransformer3DModel wants images beside the text."""
    channels = given.get("in_channels")
    answer = given.get("out_channels") or channels  # diffusers allows to leave it out
    if given.get("image_dim") or given.get("added_kv_proj_dim") or channels != answer:
        raise ValueError(
            f"this Wan model is conditioned on images (image_dim={given.get('image_dim')}, in_channels={channels}, "
            f"out_channels={answer}); only text-to-video models can stream here, for example Wan2.1-T2V-1.3B"
        )


def _model_class(*also_needed: str) -> Any:
    return library("diffusers", "wan", *also_needed).WanTransformer3DModel
