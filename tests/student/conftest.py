from dataclasses import replace

import pytest
import torch

from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichConfig, SandwichDiT


def tiny(layout: str = "LSL", **changes: object) -> SandwichConfig:
    """The nano preset made smaller still, for tests in float64."""
    config = replace(preset("nano", latent_channels=6, text_width=10), layout=layout, width=32, head_dim=16)
    return replace(config, **changes)  # type: ignore[arg-type]


def build(config: SandwichConfig, seed: int = 0) -> SandwichDiT:
    """A network in float64 in which no path starts switched off."""
    torch.manual_seed(seed)
    network = SandwichDiT(config).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture
def network() -> SandwichDiT:
    return build(tiny())
