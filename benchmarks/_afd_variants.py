"""Every method of ``afd_world.py`` by its name: its objective, its numbers, and how its rollouts are compared."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamstill.recipes.methods import Methods
from streamstill.recipes.quickstart import SEEN, Quickstart
from streamstill.training.objectives.afd import advantages
from streamstill.training.objectives.rehearsal import RehearsalConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.policies import OldSchedule

PAIRS = 32  # that a discriminator learns from in a step of its warm-up, however few the prompts are
JUDGED = ("afd", "gan", "reward-weighted")  # methods that ask a discriminator


def shuffled(score: Tensor) -> Tensor:
    """The true advantages, dealt to other rollouts."""
    true = advantages(score)
    return true.flatten()[torch.randperm(true.numel())].view_as(true)


def constant(score: Tensor) -> Tensor:
    """No advantage for anybody: reward 1/2."""
    return torch.zeros_like(score)


def methods_of(corner: str) -> Methods:
    """The comparison's numbers: AFD's are the quickstart's, slower to follow, with a replay and beta 1; rates fall."""
    plain, afd = Methods(prompts_per_update=4), Quickstart().afd
    adversary = replace(afd.adversary, steps_per_turn=2, replay=10 * PAIRS)
    afd = replace(afd, beta=1.0, adversary=adversary, old=OldSchedule(decay=0.9), spare_first_chunk=corner == "open")
    few = replace(SEEN, rollouts_per_prompt=2)
    return replace(
        plain,
        sft=replace(plain.sft, optim=falling(5e-4)),
        afd=afd,
        gan=replace(plain.gan, adversary=few, optim=falling(3e-5)),
        score=replace(plain.score, optim=falling(5e-4)),
        dmd=replace(plain.dmd, optim=falling(3e-5)),
        reward_weighted=replace(plain.reward_weighted, adversary=afd.adversary, optim=falling(2e-4)),
    )


def falling(lr: float) -> OptimConfig:
    """A rate that rises for 10 updates and then falls to a tenth at the end of the run, as AFD's in the quickstart."""
    return replace(Quickstart().afd.optim, lr=lr)


def with_afd(config: Methods, **changes: Any) -> Methods:
    """The same with other numbers of AFD; ``adversary`` holds changes of the adversary's."""
    adversary = replace(config.afd.adversary, **changes.pop("adversary", {}))
    return replace(config, afd=replace(config.afd, adversary=adversary, **changes))


def rate(lr: float) -> dict[str, OptimConfig]:
    """The discriminator's learning rate."""
    return {"optim": OptimConfig(lr=lr, weight_decay=0.01)}


def many(config: Methods) -> Methods:
    """More prompts in an update: what does not compare rollouts of one prompt needs fewer of each."""
    return replace(config, prompts_per_update=16)


def ending(config: Methods, **changes: Any) -> Methods:
    """Learning rollouts whose chunks end otherwise."""
    rehearsal = RehearsalConfig(micro_batch=8, **changes)
    return replace(config, gan=replace(config.gan, rehearsal=rehearsal), dmd=replace(config.dmd, rehearsal=rehearsal))


Variant = tuple[str, Callable[[Methods], Methods], Callable[[Tensor], Tensor]]
VARIANTS: dict[str, Variant] = {
    "sft": ("sft", lambda m: m, advantages),
    "sft, lr 1e-3": ("sft", lambda m: replace(m, sft=replace(m.sft, optim=falling(1e-3))), advantages),
    "afd": ("afd", lambda m: m, advantages),
    "gan": ("gan", many, advantages),
    "gan, anchored": ("gan", lambda m: replace(many(m), gan=replace(m.gan, anchor=1.0)), advantages),
    "gan, one last step": ("gan", lambda m: ending(many(m), ends="shared"), advantages),
    "gan, whole chunks": ("gan", lambda m: ending(many(m), ends="final", depth=4), advantages),
    "dmd": ("dmd", many, advantages),
    "dmd, one last step": ("dmd", lambda m: ending(many(m), ends="shared"), advantages),
    "dmd, whole chunks": ("dmd", lambda m: ending(many(m), ends="final", depth=4), advantages),
    "reward-weighted": ("reward-weighted", lambda m: m, advantages),
    "afd, shuffled rewards": ("afd", lambda m: m, shuffled),
    "afd, rewards 1/2": ("afd", lambda m: m, constant),
    "afd, anchored": ("afd", lambda m: with_afd(m, anchor=1.0), advantages),
    "afd, larger updates": (
        "afd",
        lambda m: with_afd(replace(m, prompts_per_update=16), optim=falling(1e-3)),
        advantages,
    ),
    "afd, newest judge": ("afd", lambda m: with_afd(m, adversary={"ema_decay": None}), advantages),
    "afd, no average": ("afd", lambda m: with_afd(m, ema_decay=None), advantages),
    "afd, off-policy": ("afd", lambda m: with_afd(m, rollouts="start"), advantages),
    "afd, frozen discriminator": ("afd", lambda m: with_afd(m, freeze_after=0), advantages),
    "afd, discriminator lr 3e-4": ("afd", lambda m: with_afd(m, adversary=rate(3e-4)), advantages),
    "afd, discriminator lr 3e-2": ("afd", lambda m: with_afd(m, adversary=rate(3e-2)), advantages),
    "afd, gan loss": ("afd", lambda m: with_afd(m, adversary={"loss": "gan"}), advantages),
    "afd, groups of 2": (
        "afd",
        lambda m: with_afd(replace(m, prompts_per_update=16), adversary={"rollouts_per_prompt": 2}),
        advantages,
    ),
    "afd, quick to follow": ("afd", lambda m: with_afd(m, old=OldSchedule()), advantages),
    "afd, no replay": ("afd", lambda m: with_afd(m, adversary={"replay": 0}), advantages),
    "afd, first chunk too": ("afd", lambda m: with_afd(m, spare_first_chunk=False), advantages),
    "afd, first chunk spared": ("afd", lambda m: with_afd(m, spare_first_chunk=True), advantages),
    "afd, own normaliser": ("afd", lambda m: with_afd(m, normaliser="own"), advantages),
    "afd, not self-normalised": ("afd", lambda m: with_afd(m, self_normalise=False), advantages),
    "afd, min-max": ("afd", lambda m: with_afd(m, reward_map="min_max"), advantages),
    "afd, noisy context": ("afd", lambda m: with_afd(m, context="noisy"), advantages),
    "afd, one look": ("afd", lambda m: with_afd(m, adversary={"looks": 1}), advantages),
}
MAIN = ("sft", "afd", "gan", "gan, anchored", "dmd", "reward-weighted", "afd, shuffled rewards", "afd, rewards 1/2")
