"""Every family of networks learns by the same objectives, which know none of them by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamstill.training
from streamstill.streaming.model import BidirectionalModel, TeachableModel
from streamstill.streaming.rollout import rollout
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student, build_student
from streamstill.testing import tiny_student, tiny_wan_student
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import CONFIG, dice, group, weights
from tests.training.clips import examples


def full_attention_student() -> Student:
    """The usual causal diffusion transformer: full attention in every block."""
    config = tiny_student().config
    assert isinstance(config.network, SandwichConfig)
    return build_student(replace(config, network=replace(config.network, layout="FFF")), seed=0).eval()


def wan_student() -> Student:
    pytest.importorskip("diffusers", reason='install the wan extra: pip install "streamstill[wan]"')
    return tiny_wan_student()


Family = Callable[[], Student]
every_family = pytest.mark.parametrize(
    "family", [tiny_student, full_attention_student, wan_student], ids=["sandwich", "full attention", "wan"]
)


@every_family
def test_flow_matching_lowers_the_loss_on_one_batch(family: Family, tmp_path: Path) -> None:
    objective = FlowMatching(family(), FlowMatchingConfig(optim=OptimConfig(lr=3e-3)))
    (same,) = objective.micro_batches("student", examples(), dice(7))  # noise and times that no step has seen

    def loss() -> float:
        with torch.no_grad():
            return float(objective.loss("student", same).value)

    before, start = loss(), weights(objective.student)
    Trainer(objective, lambda _: examples(), TrainerConfig(steps=40), tmp_path).run()
    assert not torch.equal(weights(objective.student), start)
    assert loss() < 0.9 * before


@every_family
def test_a_step_of_afd_moves_the_network_the_copy_that_lags_and_the_judge(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(1)
    objective = AdversarialFlowDistillation(family(), MotionDiscriminator(16), replace(CONFIG, prior=0.1))
    memory, judge = objective.memory, objective.adversary.discriminator
    parts = (objective.student.network, memory["old"], judge, memory["start"])
    before = [weights(part) for part in parts]
    Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    changed = [not torch.equal(weights(part), was) for part, was in zip(parts, before, strict=True)]
    assert changed == [True, True, True, False]
    assert torch.isfinite(weights(objective.student)).all()


def answers_every_contract(network: TeachableModel[Any], looking_both_ways: BidirectionalModel) -> object:
    """Whether a network has the contracts of a teachable and of a bidirectional model is a question of types."""
    return network, looking_both_ways


@every_family
@torch.no_grad()
def test_every_family_streams_by_the_one_loop_and_sees_the_future_only_when_asked(family: Family) -> None:
    student = family()
    network = student.network
    answers_every_contract(network, network)
    text_BLD, shape = student.encode_prompts(["a red ball", "a blue box"]), student.latent_shape

    def made(frames: int) -> Tensor:
        return rollout(
            network,
            text_BLD,
            frames=frames,
            latent_shape=shape[1:],
            sampling=student.config.sampling,
            generator=dice(),
        )

    clips = made(4)
    torch.testing.assert_close(clips[:, :2], made(2))
    changed = torch.cat([clips[:, :2], clips[:, 2:] + 1], dim=1)
    t = torch.full((2, 2), 0.5)
    causal = [network.velocity_in_context(x, t, text_BLD, context_BFCHW=x)[:, :2] for x in (clips, changed)]
    both_ways = [network.velocity_bidirectional(x, t[:, 0], text_BLD)[:, :2] for x in (clips, changed)]
    assert torch.equal(causal[0], causal[1])
    assert not torch.allclose(both_ways[0], both_ways[1])


def test_the_objectives_know_no_family() -> None:
    (folder,) = streamstill.training.__path__
    for path in Path(folder).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not any(name in source for name in ("SandwichDiT", "CausalWan", "diffusers")), path
