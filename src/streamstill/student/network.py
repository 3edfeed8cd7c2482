"""The families of networks that a student can be made of, and how one is built from its config."""

from streamstill.student.sandwich import SandwichConfig, SandwichDiT
from streamstill.student.wan import CausalWan, CausalWanConfig

Network = SandwichDiT | CausalWan
NetworkConfig = SandwichConfig | CausalWanConfig


def build_network(config: NetworkConfig) -> Network:
    """The network that a config describes, with fresh weights.

    Raises:
        ModuleNotFoundError: the config is Wan's, and diffusers is not installed.
    """
    return CausalWan(config) if isinstance(config, CausalWanConfig) else SandwichDiT(config)
