"""Sizes by name."""

from streamstill.student.sandwich import SandwichConfig


def nano(*, latent_channels: int, text_width: int, patch: int = 1) -> SandwichConfig:
    """At most a million parameters, for the embedded world and for machines without a GPU."""
    return SandwichConfig(
        layout="LSSL",
        latent_channels=latent_channels,
        chunk_frames=2,
        patch=patch,
        width=96,
        head_dim=32,
        mlp_ratio=3,
        text_width=text_width,
        window_chunks=2,
        retention=0.6,
        theta=100.0,
        t_min=0.05,
    )
