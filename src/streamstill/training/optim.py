"""AdamW and its learning rate, as two functions of one config."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from torch import nn
from torch.optim import AdamW

Decay: TypeAlias = Literal["constant", "cosine", "linear"]

_FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How one player learns. Its steps are counted in the player's own optimiser steps, not in turns."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0  # on matrices and kernels only, never on vectors
    warmup_steps: int = 0
    decay: Decay = "constant"
    total_steps: int | None = None  # where the decay ends; None: with the run
    final_fraction: float = 0.0  # of lr, reached at total_steps
    max_grad_norm: float | None = 1.0  # None: the norm is logged and checked, not clipped

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.eps > 0 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(f"lr and eps must be positive, weight_decay and warmup_steps not negative, got {self}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}; usual values are (0.9, 0.95)")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must lie in [0, 1], got {self.final_fraction}; it is a fraction of lr")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {self.max_grad_norm}; None turns clipping off")
        if self.decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {list(get_args(Decay))}, got {self.decay!r}")
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"the decay ends at total_steps={self.total_steps}, which must exceed "
                f"warmup_steps={self.warmup_steps}; raise it, or leave it out to let the decay end with the run"
            )

    def over(self, steps: int) -> "OptimConfig":
        """The same for a run of ``steps`` optimiser steps: where the decay has no end of its own, it ends with it."""
        if self.decay == "constant" or self.total_steps is not None:
            return self
        return replace(self, total_steps=max(steps, self.warmup_steps + 1))


def lr_at(config: OptimConfig, step: int) -> float:
    """The learning rate of optimiser step ``step``, counted from 0: a linear warm-up, then the decay.

    Raises:
        ValueError: the config decays and does not say where; see ``OptimConfig.over``.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    return config.lr * (config.final_fraction + (1 - config.final_fraction) * _height(config, step))


def build_optimizer(module: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the parameters that require a gradient; vectors (biases, norms, gates) are not decayed.

    Raises:
        ValueError: no parameter of the module requires a gradient.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            f"no parameter of this {type(module).__name__} requires a gradient, so there is nothing to train; "
            "call requires_grad_(True) on the parameters that should learn"
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused kernels read memory linearly, so every tensor must be laid out plainly. They resume bit for bit.
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() and p.is_contiguous() for p in trainable)
    return AdamW(
        [group for group in groups if group["params"]],
        lr=lr_at(config, 0),
        betas=config.betas,
        eps=config.eps,
        fused=True if fused else None,
    )


def _height(config: OptimConfig, step: int) -> float:
    if config.decay == "constant":
        return 1.0
    if config.total_steps is None:
        raise ValueError(f"a {config.decay} decay needs total_steps; call over(steps) with the steps of the run")
    progress = min(1.0, (step - config.warmup_steps) / (config.total_steps - config.warmup_steps))
    return 1 - progress if config.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
