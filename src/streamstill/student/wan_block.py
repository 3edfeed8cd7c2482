"""A block of Wan's transformer with a window of the past: the same weights and arithmetic as diffusers' own."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from streamstill.state import KVCache
from streamstill.student.mixer import RunMixer
from streamstill.student.positions import Turns
from streamstill.student.window import Window, WindowChunk


class WanTokens(NamedTuple):
    """What goes through the blocks; times by latent frame, or one for all frames of a row."""

    x_RFHWD: Tensor
    time_RFD: Tensor
    modulation_RF6D: Tensor
    text_BLD: Tensor


@dataclass(frozen=True, eq=False)
class WanSelfAttention:
    """Self-attention of one of Wan's blocks, from a chunk to itself and to the past in a window; a ``Mixer``."""

    attention: Any
    window: Window
    turns: Turns

    def project(self, x_RFHWD: Tensor) -> WindowChunk:
        """Normed and rotated queries, normed keys, and values."""
        attention, x_RFSD = self.attention, x_RFHWD.flatten(2, 3)
        query, key = attention.norm_q(attention.to_q(x_RFSD)), attention.norm_k(attention.to_k(x_RFSD))
        heads = (attention.heads, -1)
        query_RSNE = query.unflatten(-1, heads).flatten(1, 2)
        turned_RSNE = rotate_pairs(query_RSNE, self.turns.last(query_RSNE.shape[1]))
        value_RFSNE = attention.to_v(x_RFSD).unflatten(-1, heads)
        return WindowChunk(turned_RSNE, key.unflatten(-1, heads), value_RFSNE, x_RFHWD[..., :0])

    def mix(self, chunk: WindowChunk, past: KVCache) -> Tensor:
        """Attention over the window, shape (R, F, H, W, D)."""
        mixed_RSD = self.window.attend(chunk, past, lambda keys: rotate_pairs(keys, self.turns))
        project_out, dropout = self.attention.to_out
        return dropout(project_out(mixed_RSD)).reshape(*chunk.grid_RFHW0.shape[:4], -1)

    def remember(self, chunk: WindowChunk, past: KVCache) -> KVCache:
        """Append the chunk to the window."""
        return self.window.append(chunk, past)


def rotate_pairs(x: Tensor, turns: Turns) -> Tensor:
    """Rotate the last axis of ``x`` as Wan does: even features are the real parts, odd ones the imaginary."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = [real * turns.cos - imaginary * turns.sin, real * turns.sin + imaginary * turns.cos]
    return torch.stack(turned, dim=-1).flatten(-2).type_as(x)


def wan_turns(rope: Any, frames: range, height: int, width: int) -> Turns:
    """Turns of all tokens of some latent frames from the tables of WanRotaryPosEmbed, in the order frame, row, column.

    The tables begin at 0; at a negative position the cosines are those of the positive one, the sines change sign.
    """
    time = torch.arange(frames.start, frames.stop, device=rope.freqs_cos.device)
    cos_t, cos_h, cos_w = _by_axis(rope.freqs_cos)
    sin_t, sin_h, sin_w = _by_axis(rope.freqs_sin)
    sign = time.sign().unsqueeze(1)
    return Turns(
        _grid(cos_t[time.abs()], cos_h[:height], cos_w[:width]),
        _grid(sin_t[time.abs()] * sign, sin_h[:height], sin_w[:width]),
    )


def _by_axis(table: Tensor) -> tuple[Tensor, ...]:
    """Columns of time, height and width; the tables hold every column twice."""
    pairs = table.shape[1] // 2
    return table[:, ::2].split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)


def _grid(time_FE: Tensor, rows_HE: Tensor, columns_WE: Tensor) -> Tensor:
    """All combinations, shape (F * H * W, 1, E)."""
    shape = (len(time_FE), len(rows_HE), len(columns_WE), -1)
    parts = (time_FE[:, None, None], rows_HE[None, :, None], columns_WE[None, None, :])
    return torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(0, 2).unsqueeze(1)


def through(block: Any, mixer: WanSelfAttention, tokens: WanTokens, past: Any, run: RunMixer) -> tuple[Tensor, Any]:
    """What WanTransformerBlock does, float32 where it has float32, with ``mixer`` in the place of its attention."""
    x_RFHWD, text_BLD = tokens.x_RFHWD, tokens.text_BLD
    shift_mix, scale_mix, gate_mix, shift_mlp, scale_mlp, gate_mlp = _modulation(block, tokens)
    mixed, after = run(mixer, modulated(block.norm1, x_RFHWD, shift_mix, scale_mix), past)
    x_RFHWD = (x_RFHWD.float() + mixed * gate_mix).type_as(x_RFHWD)
    query_BSD = block.norm2(x_RFHWD.float()).type_as(x_RFHWD).reshape(text_BLD.shape[0], -1, x_RFHWD.shape[-1])
    x_RFHWD = x_RFHWD + block.attn2(query_BSD, text_BLD).reshape(x_RFHWD.shape)
    widened = block.ffn(modulated(block.norm3, x_RFHWD, shift_mlp, scale_mlp))
    return (x_RFHWD.float() + widened.float() * gate_mlp).type_as(x_RFHWD), after


def remembered_by(block: Any, mixer: WanSelfAttention, tokens: WanTokens, past: Any) -> KVCache:
    """What the block's attention remembers, without the rest of the block."""
    shift, scale, *_ = _modulation(block, tokens)
    return mixer.remember(mixer.project(modulated(block.norm1, tokens.x_RFHWD, shift, scale)), past)


def _modulation(block: Any, tokens: WanTokens) -> tuple[Tensor, ...]:
    """Six tensors of shape (R, F or 1, 1, 1, D)."""
    return (block.scale_shift_table + tokens.modulation_RF6D.float())[:, :, None, None].unbind(-2)


def modulated(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Norm and modulation in float32, as diffusers has them; the dtype of ``x``."""
    return (norm(x.float()) * (1 + scale) + shift).type_as(x)
