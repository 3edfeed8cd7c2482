"""A network of one number per time, for objectives whose optimum on Gaussian clips is known."""

import torch
from torch import Tensor, nn

from streamstill.student.student import Student
from streamstill.testing import tiny_student


class Table(nn.Module):
    """The clean estimate is ``factor(t) * x_t`` with a factor for each of some times; at any other it is refused."""

    chunk_frames = 2

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times)
        self.factor = nn.Parameter(torch.zeros(len(times), dtype=torch.float64))

    def velocity_in_context(self, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor) -> Tensor:
        return self._velocity(x_t, t_BK.repeat_interleave(self.chunk_frames, dim=1))

    def velocity_bidirectional(self, x_t: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        return self._velocity(x_t, t_B[:, None].expand(x_t.shape[:2]))

    def _velocity(self, x_t: Tensor, t_BF: Tensor) -> Tensor:
        gap, index_BF = (t_BF[..., None] - self.get_buffer("times")).abs().min(dim=-1)
        assert gap.max() < 1e-6
        factor_BF = self.factor[index_BF][..., None, None, None]
        return (1 - factor_BF) * x_t / t_BF.clamp_min(1e-9)[..., None, None, None]


class Slope(nn.Module):
    """The velocity is ``slope * x_t / t`` in the bidirectional mode and ``causal * x_t / t`` in the other."""

    chunk_frames = 2

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.causal = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def velocity_bidirectional(self, x_t: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        return self.slope * x_t / t_B[:, None, None, None, None].clamp_min(1e-9)

    def velocity_in_context(self, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor) -> Tensor:
        t_BF = t_BK.repeat_interleave(self.chunk_frames, dim=1)
        return self.causal * x_t / t_BF[..., None, None, None].clamp_min(1e-9)


def student_with(network: nn.Module) -> Student:
    """A tiny student around a toy network."""
    student = tiny_student().double()
    student.network = network  # type: ignore[assignment]
    return student
