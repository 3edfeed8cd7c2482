"""Sizes by name, all from one dial: the depth fixes the width, the width of a head, and the layout."""

from dataclasses import dataclass

from streamstill.config import require_one_of
from streamstill.student.layout import hourglass, sandwich
from streamstill.student.sandwich import SandwichConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A depth, and the latents and text that it is meant for; ``preset`` makes a network's config of it."""

    depth: int
    mlp_ratio: float = 3
    chunk_frames: int
    latent_channels: int
    latent_height: int
    latent_width: int
    patch: int
    text_width: int
    text_tokens: int


_WORLD = Preset(
    depth=4,
    chunk_frames=2,
    latent_channels=96,  # PatchCodec: 2 frames of 4x4 pixels
    latent_height=16,
    latent_width=16,
    patch=1,
    text_width=64,
    text_tokens=24,
)
_WAN = Preset(
    depth=32,
    chunk_frames=3,
    latent_channels=16,  # Wan's autoencoder, 4x8x8: 512x288 pixels
    latent_height=36,
    latent_width=64,
    patch=2,
    text_width=768,  # CLIP-ViT-L
    text_tokens=77,
)

PRESETS = {
    "nano": _WORLD,
    "micro": Preset(**{**vars(_WORLD), "depth": 8}),
    "small": Preset(**{**vars(_WAN), "depth": 16}),
    "phone": _WAN,
    "server": Preset(**{**vars(_WAN), "depth": 40}),
}
"""What each size is for: nano and micro for the embedded world, the others for latents of Wan's autoencoder.

``phone`` has the facts of the S2DiT paper: about 1.8 billion parameters, 512x288, 3 latent frames a chunk, heads of
128, a window of 2 chunks. Its width, depth, patch and layout were not found; these are ours.
"""


def preset(
    name: str,
    *,
    latent_channels: int | None = None,
    text_width: int | None = None,
    patch: int | None = None,
    layout: str | None = None,
) -> SandwichConfig:
    """The network of a preset; what is left out is the preset's own.

    Args:
        layout: letters, or one of ``LAYOUTS`` for the depth of the preset.

    Raises:
        ValueError: an unknown name, or a layout that has not as many blocks as the preset.
    """
    require_one_of(name, tuple(PRESETS), "preset")
    size = PRESETS[name]
    width, head_dim = width_of(size.depth)
    return SandwichConfig(
        layout=_layout(layout, name, size.depth),
        latent_channels=latent_channels or size.latent_channels,
        chunk_frames=size.chunk_frames,
        patch=patch or size.patch,
        width=width,
        head_dim=head_dim,
        mlp_ratio=size.mlp_ratio,
        text_width=text_width or size.text_width,
        window_chunks=2,
        full_window_chunks=7,
        sink_chunks=0,
        retention=0.6,
        theta=100.0,
    )


def width_of(depth: int) -> tuple[int, int]:
    """The width that goes with a depth, and the width of a head: 96 and 32 at depth 4, 2048 and 128 at depth 32."""
    wanted = 96 * (depth / 4) ** 1.4716
    head_dim = 32 if wanted < 200 else 64 if wanted < 600 else 128
    return max(round(wanted / head_dim), 1) * head_dim, head_dim


LAYOUTS = ("sandwich", "hourglass", "lcha-only", "ssa-only", "full")
"""The layouts of S2DiT Table 4 by name, for any depth."""


def named_layout(name: str, depth: int) -> str:
    """The letters of one of ``LAYOUTS``.

    Raises:
        ValueError: an unknown name.
    """
    require_one_of(name, LAYOUTS, "layout")
    if name in ("sandwich", "hourglass"):
        return (sandwich if name == "sandwich" else hourglass)(depth)
    return {"lcha-only": "L", "ssa-only": "S", "full": "F"}[name] * depth


def _layout(given: str | None, name: str, depth: int) -> str:
    if given is None:
        return sandwich(depth)
    letters = named_layout(given, depth) if given in LAYOUTS else given.replace(" ", "")
    if len(letters) != depth:
        raise ValueError(
            f"the layout {given!r} has {len(letters)} blocks, the preset {name} has a budget of {depth}; "
            f"write {depth} letters, or one of {', '.join(LAYOUTS)}"
        )
    return letters
