"""Can a classifier that the student never met tell its clips from the teacher's? Held-out accuracy, 0.5 is no."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from streamstill.metrics import Interval, interval
from streamstill.types import Clip

Floats = NDArray[np.float64]
Learn = Callable[[Tensor, Tensor, torch.Generator], nn.Module]

FEWEST = 8  # clips of each party
SMALLEST_SPREAD = 0.02  # in the features' own units: smaller differences are the tracker's as likely as the student's

_HIDDEN = 32
_MOTION_STEPS, _MOTION_LR, _MOTION_DECAY = 200, 1e-2, 0.1
_PIXEL_EPOCHS, _PIXEL_BATCH, _PIXEL_LR, _PIXEL_DECAY = 16, 16, 5e-3, 0.01


def accuracy_on_motion(teacher_ND: Floats, student_ND: Floats, *, seed: int = 0) -> Interval:
    """Held-out accuracy of a small network on motion features (``worlds.motion_features``), one row per clip.

    Row i of both answers the same request; half of the requests teach, the other half tests. All numbers are shaken
    by ``SMALLEST_SPREAD``: a softer edge moves the seen area by half a percent, which is no motion.

    Raises:
        ValueError: the tables differ in shape or have fewer than ``FEWEST`` rows.
    """
    dice = np.random.default_rng(seed)
    teacher, student = (
        torch.from_numpy(rows + SMALLEST_SPREAD * dice.normal(size=rows.shape)).float()
        for rows in (teacher_ND, student_ND)
    )
    return _held_out(teacher, student, _learn_motion, seed)


def accuracy_on_pixels(teacher: Sequence[Clip], student: Sequence[Clip], *, seed: int = 0) -> Interval:
    """Held-out accuracy of a small 3-D convolutional network on whole clips, which sees edges as well as motion.

    Clip i of both answers the same request; half of the requests teach, the other half tests.

    Raises:
        ValueError: the parties have not equally many clips of one size, or fewer than ``FEWEST``.
    """
    shapes = {clip.frames_FCHW.shape for clip in (*teacher, *student)}
    if len(shapes) > 1:
        raise ValueError(f"a classifier needs clips of one size, got {sorted(shapes)}; resample some of them first")
    return _held_out(_pixels(teacher), _pixels(student), _learn_pixels, seed)


def _held_out(teacher: Tensor, student: Tensor, learn: Learn, seed: int) -> Interval:
    if teacher.shape != student.shape or len(teacher) < FEWEST:
        raise ValueError(
            f"a fresh classifier needs equally many clips of teacher and student, at least {FEWEST} of each, got "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    known, unknown = torch.randperm(len(teacher), generator=generator).chunk(2)
    network = learn(*_labelled(teacher[known], student[known]), generator).eval()
    inputs, is_teacher_B = _labelled(teacher[unknown], student[unknown])
    with torch.no_grad():
        right_B = (network(inputs)[:, 0] > 0) == (is_teacher_B > 0.5)
    return interval(right_B.double().tolist(), seed=seed)


def _labelled(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([teacher, student]), torch.cat([torch.ones(len(teacher)), torch.zeros(len(student))])


def _learn_motion(inputs_BD: Tensor, is_teacher_B: Tensor, generator: torch.Generator) -> nn.Module:
    """All clips at once; features are brought to one scale by the clips that teach."""
    scale = nn.BatchNorm1d(inputs_BD.shape[1], affine=False, momentum=None)
    width = inputs_BD.shape[1]
    network = _fresh(lambda: [scale, nn.Linear(width, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, 1)], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_MOTION_LR, weight_decay=_MOTION_DECAY)
    for _ in range(_MOTION_STEPS):
        _step(network, optimizer, inputs_BD, is_teacher_B)
    return network


def _learn_pixels(inputs_BCFHW: Tensor, is_teacher_B: Tensor, generator: torch.Generator) -> nn.Module:
    """Mini-batches in random order; the learning rate falls to zero."""
    network = _fresh(_pixel_layers, generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_PIXEL_LR, weight_decay=_PIXEL_DECAY)
    batches = -(-len(inputs_BCFHW) // _PIXEL_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PIXEL_LR, total_steps=_PIXEL_EPOCHS * batches)
    for _ in range(_PIXEL_EPOCHS):
        for batch in torch.randperm(len(inputs_BCFHW), generator=generator).tensor_split(batches):
            _step(network, optimizer, inputs_BCFHW[batch], is_teacher_B[batch])
            schedule.step()
    return network


class _MeanAndMax(nn.Module):
    """Mean and maximum of every channel over the clip: how much there is of something, and whether there is any."""

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        return torch.cat([x_BCFHW.mean((2, 3, 4)), x_BCFHW.amax((2, 3, 4))], dim=1)


def _pixel_layers() -> list[nn.Module]:
    """Every convolution is normalised over its batch; without it soft edges were not found in 20 epochs."""
    return [
        *_convolution(3, 12, stride=(2, 2, 2)),
        *_convolution(12, 24, stride=(2, 2, 2)),
        *_convolution(24, 32, stride=(1, 2, 2)),
        _MeanAndMax(),
        nn.Linear(64, 1),
    ]


def _convolution(channels: int, width: int, *, stride: tuple[int, int, int]) -> list[nn.Module]:
    return [nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm3d(width), nn.GELU()]


def _fresh(layers: Callable[[], list[nn.Module]], generator: torch.Generator) -> nn.Sequential:
    """A network whose first weights come from the generator and leave torch's own one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return nn.Sequential(*layers())


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, is_teacher_B: Tensor) -> None:
    optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(network(inputs)[:, 0], is_teacher_B).backward()
    optimizer.step()


def _pixels(clips: Sequence[Clip]) -> Tensor:
    """Clips as (clips, 3, frames, height, width) within [-1, 1]."""
    if not clips:
        return torch.zeros(0)
    frames_BFCHW = torch.from_numpy(np.stack([clip.frames_FCHW for clip in clips]))
    return frames_BFCHW.transpose(1, 2).float() / 127.5 - 1
