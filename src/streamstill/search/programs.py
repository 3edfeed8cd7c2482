"""What all targets share that run a network as a program of its own: a flat call, quiet, a proof."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from streamstill.search.probes import Inputs
from streamstill.state import map_tensors
from streamstill.student.sandwich import SandwichDiT

TOLERANCE = 1e-3  # of the largest value: float32 in another order stays a hundred times below, a wrong program does not


class FlatVelocity(nn.Module):
    """The velocity pass as the one call that an exporter knows, every tensor of the state an argument of its own.

    Args:
        like: how the arguments are nested when the network is called.
    """

    def __init__(self, network: SandwichDiT, like: Inputs) -> None:
        super().__init__()
        self.network, self.like = network, like

    def forward(self, *flat: Tensor) -> Tensor:
        """The velocity for ``tensors_of`` the inputs, in this order; shape (B, F, C, H, W)."""
        given = iter(flat)
        return self.network.velocity(*map_tensors(lambda _: next(given), self.like))


def require_packages(*modules: str, extra: str) -> None:
    """Raise a ``ModuleNotFoundError`` with the pip line unless all of these modules are installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f'{module} is not installed; run: pip install "streamstill[{extra}]"')


def require_parity(found: Tensor, network: SandwichDiT, inputs: Inputs, *, program: str) -> None:
    """Raise a ``RuntimeError`` unless a program's answer is the network's velocity, to float tolerance."""
    with torch.no_grad():
        expected = network.velocity(*inputs)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:  # nor if it is no number
        raise RuntimeError(
            f"the {program} program of a network {network.config.layout} computes something else: it is off by "
            f"{error:.1e} of the largest velocity, allowed is {TOLERANCE:.0e}; its times say nothing, please report it"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without an exporter's talk about its own insides and about packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
