"""Every method by name: it is built, makes a turn, and moves the student and nobody else's start."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.recipes.methods import METHODS, Methods, build_method, score_of
from streamstill.testing import tiny_student
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.score import StudentScore
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.clips import examples

FEW = AdversaryConfig(rollouts_per_prompt=2)
PLAIN = Methods(batch=2, prompts_per_update=2, answers=1)
TINY = replace(
    PLAIN,
    afd=replace(PLAIN.afd, adversary=FEW),
    gan=replace(PLAIN.gan, adversary=FEW),
    reward_weighted=replace(PLAIN.reward_weighted, adversary=FEW),
)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_a_turn_of_every_method_moves_the_student(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, clips = tiny_student(), examples()
    real = None
    if name == "dmd":
        fit = score_of(student, clips, TINY, seed=0)
        assert not {id(p) for p in fit.averaged.parameters()} & {id(p) for p in student.parameters()}
        Trainer(fit.objective, fit.batches, TrainerConfig(steps=1), tmp_path).turn(0)
        assert isinstance(fit.averaged, type(student))
        real = StudentScore(fit.averaged)
    method = build_method(name, student, MotionDiscriminator(16), clips, TINY, seed=0, real=real)
    before = weights(student.network)
    metrics = Trainer(method.objective, method.batches, TrainerConfig(steps=2), tmp_path).turn(0)
    assert not torch.equal(weights(student.network), before)
    assert torch.isfinite(weights(student.network)).all()
    assert "student/loss" in metrics
    assert method.averaged in (student, student.network)


def test_dmd_without_a_score_and_unknown_names_are_refused() -> None:
    student, clips = tiny_student(), examples()
    with pytest.raises(ValueError, match="score_of"):
        build_method("dmd", student, MotionDiscriminator(16), clips, TINY, seed=0)
    with pytest.raises(ValueError, match="method"):
        build_method("magic", student, MotionDiscriminator(16), clips, TINY, seed=0)


def test_numbers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch"):
        Methods(batch=0)
