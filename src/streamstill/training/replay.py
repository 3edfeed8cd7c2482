"""Pairs of a teacher's clip and a rollout from the last turns, for a discriminator that learns more often than rollouts
are made.

A rollout costs many times what a step of a small discriminator does, and a discriminator that sees one turn alone
follows its few prompts; ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PROMPT_BYTES = 4096  # of the longest prompt, in UTF-8


class ReplayBuffer(nn.Module):
    """The last ``capacity`` pairs, in ordinary memory. All of it are buffers, so a checkpoint keeps it.

    Args:
        latent_shape: (F, C, H, W) of one clip.
    """

    teacher_NFCHW: Tensor
    student_NFCHW: Tensor
    prompts_NB: Tensor
    added: Tensor

    def __init__(self, capacity: int, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("teacher_NFCHW", torch.zeros(capacity, *latent_shape))
        self.register_buffer("student_NFCHW", torch.zeros(capacity, *latent_shape))
        self.register_buffer("prompts_NB", torch.zeros(capacity, PROMPT_BYTES, dtype=torch.uint8))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.added), self.capacity)

    @torch.no_grad()
    def add(self, teacher_BFCHW: Tensor, student_BFCHW: Tensor, prompts: Sequence[str]) -> None:
        """Remember these pairs in the place of the oldest; of more than fit, the last.

        Raises:
            ValueError: clips of another shape, or a prompt that is too long.
        """
        shape = tuple(self.teacher_NFCHW.shape[1:])
        if tuple(teacher_BFCHW.shape[1:]) != shape or tuple(student_BFCHW.shape[1:]) != shape:
            raise ValueError(
                f"the replay buffer holds latents of shape {shape}, got {tuple(teacher_BFCHW.shape[1:])} of the "
                f"teacher and {tuple(student_BFCHW.shape[1:])} of the student; give clips as long as the student's"
            )
        first = max(0, len(prompts) - self.capacity)
        rows = (int(self.added) + torch.arange(first, len(prompts))) % self.capacity
        written = torch.stack([_as_bytes(prompt) for prompt in prompts[first:]])
        self.teacher_NFCHW[rows] = teacher_BFCHW[first:].to(self.teacher_NFCHW)
        self.student_NFCHW[rows] = student_BFCHW[first:].to(self.student_NFCHW)
        self.prompts_NB[rows] = written
        self.added += len(prompts)

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """``count`` different pairs, or all there are if these are fewer: teacher, student, prompts."""
        rows = torch.randperm(len(self), generator=generator)[:count]
        prompts = tuple(_as_text(self.prompts_NB[row]) for row in rows)
        return self.teacher_NFCHW[rows], self.student_NFCHW[rows], prompts


def _as_bytes(prompt: str) -> Tensor:
    written = prompt.encode()
    if len(written) > PROMPT_BYTES:
        raise ValueError(
            f"the replay buffer keeps prompts of at most {PROMPT_BYTES} bytes and this one has {len(written)}: "
            f"{prompt[:60]!r}...; shorten it, or set adversary.replay=0"
        )
    return torch.frombuffer(bytearray(written.ljust(PROMPT_BYTES, b"\0")), dtype=torch.uint8)


def _as_text(prompt_B: Tensor) -> str:
    return prompt_B.numpy().tobytes().rstrip(b"\0").decode()
