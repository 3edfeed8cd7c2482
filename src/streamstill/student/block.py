"""One transformer block: a mixer of any kind, cross-attention to the text, an MLP, modulated by time and prompt."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.student.layout import BlockKind
from streamstill.student.lcha import LinearConvAttention
from streamstill.student.linear import LinearAttention
from streamstill.student.local import CausalConv
from streamstill.student.mixer import RunMixer
from streamstill.student.ssa import WindowedSelfAttention
from streamstill.student.window import Window

SandwichMixer = LinearConvAttention | WindowedSelfAttention

MODULATIONS = 6  # shift, scale and gate for the mixer, then for the MLP
GATES = [2, 5]


class TextAttention(nn.Module):
    """Cross-attention from the tokens of all rows of a clip to the clip's text."""

    def __init__(self, width: int, *, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_RFHWD: Tensor, text_BLD: Tensor) -> Tensor:
        """What the text adds to each token."""
        tokens_BSD = self.norm(x_RFHWD).reshape(text_BLD.shape[0], -1, x_RFHWD.shape[-1])
        query = self.query(tokens_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(text_BLD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2)).reshape(x_RFHWD.shape)


def build_mixer(
    kind: BlockKind, width: int, *, head_dim: int, window: Window, retention: float, chunk_frames: int, theta: float
) -> SandwichMixer:
    """The mixer of a kind of block.

    Raises:
        ValueError: the width is no multiple of twice the head_dim, which the kind with wide heads needs.
    """
    if kind in (BlockKind.SSA, BlockKind.FULL, BlockKind.COMPRESSED):
        compress = kind is BlockKind.COMPRESSED
        return WindowedSelfAttention(width, head_dim=head_dim, window=window, theta=theta, compress=compress)
    if kind is BlockKind.WIDE_HEADS:
        head_dim *= 2
        if width % head_dim:
            raise ValueError(f"blocks of kind {kind.letter} have heads of {head_dim}; {width} is no multiple of it")
    linear = LinearAttention(
        width,
        head_dim=head_dim,
        retention=retention,
        chunk_frames=chunk_frames,
        theta=theta,
        feature_map="relu" if kind is BlockKind.RELU else "softplus",
    )
    return LinearConvAttention(
        width,
        linear=None if kind is BlockKind.LOCAL else linear,
        local=None if kind is BlockKind.LINEAR else CausalConv(width),
        gated=kind is not BlockKind.UNGATED,
    )


class Block(nn.Module):
    """norm, modulate, mix; attend to the text; norm, modulate, MLP: each added to the stream."""

    def __init__(
        self,
        mixer: SandwichMixer,
        width: int,
        *,
        text_width: int,
        text_heads: int,
        mlp_width: int,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.text = TextAttention(width, text_width=text_width, heads=text_heads)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.SiLU(), nn.Linear(mlp_width, width))
        modulation = torch.randn(MODULATIONS, width) * width**-0.5
        modulation[GATES] += 1  # every part counts from the start
        self.modulation = nn.Parameter(modulation)

    def forward(
        self,
        x_RFHWD: Tensor,
        condition_RF6D: Tensor,
        text_BLD: Tensor,
        past: Any,
        run: RunMixer,
    ) -> tuple[Tensor, Any]:
        """The stream after this block, and what its mixer remembers; one condition a latent frame, or one for all."""
        shift_mix, scale_mix, gate_mix, shift_mlp, scale_mlp, gate_mlp = self._modulation(condition_RF6D)
        mixed, after = run(self.mixer, torch.addcmul(shift_mix, self.mixer_norm(x_RFHWD), 1 + scale_mix), past)
        x_RFHWD = torch.addcmul(x_RFHWD, gate_mix, mixed)
        x_RFHWD = x_RFHWD + self.text(x_RFHWD, text_BLD)
        widened = self.mlp(torch.addcmul(shift_mlp, self.mlp_norm(x_RFHWD), 1 + scale_mlp))
        return torch.addcmul(x_RFHWD, gate_mlp, widened), after

    def remember(self, x_RFHWD: Tensor, condition_RF6D: Tensor, past: Any) -> Any:
        """What the mixer remembers, without the rest of the block."""
        shift_mix, scale_mix, *_ = self._modulation(condition_RF6D)
        chunk = self.mixer.project(torch.addcmul(shift_mix, self.mixer_norm(x_RFHWD), 1 + scale_mix))
        return self.mixer.remember(chunk, past)  # type: ignore[arg-type]

    def _modulation(self, condition_RF6D: Tensor) -> tuple[Tensor, ...]:
        """Six tensors of shape (R, F or 1, 1, 1, D)."""
        return (condition_RF6D + self.modulation)[:, :, :, None, None].unbind(2)
