"""Every method by name: it is built, makes a turn, and moves the student and nobody else's start."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.recipes.methods import METHODS, Method, Methods, build_method, score_of, teach, turns_worth
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.lora import Lora
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.score import StudentScore
from streamstill.training.objectives.self_forcing import SelfForcing
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


def test_the_fake_score_begins_as_the_real_one_where_it_can() -> None:
    """Then the two differ by what the student makes; a causal student's copy has never seen whole clips."""
    student, clips = tiny_student(), examples()
    knowing = tiny_student(seed=3)
    method = build_method(
        "dmd", student, MotionDiscriminator(16), clips, TINY, seed=0, real=StudentScore(knowing, guidance=2.0)
    )
    assert isinstance(method.objective, SelfForcing)
    fake = method.objective.fake
    assert torch.equal(weights(fake.module), weights(knowing.network))
    assert not {id(p) for p in fake.module.parameters()} & {id(p) for p in knowing.parameters()}
    assert all(p.requires_grad for p in fake.module.parameters())
    assert isinstance(fake, StudentScore)
    assert fake.guidance == 1


def test_dmd_without_a_score_and_unknown_names_are_refused() -> None:
    student, clips = tiny_student(), examples()
    with pytest.raises(ValueError, match="score_of"):
        build_method("dmd", student, MotionDiscriminator(16), clips, TINY, seed=0)
    with pytest.raises(ValueError, match="method"):
        build_method("magic", student, MotionDiscriminator(16), clips, TINY, seed=0)


def test_numbers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch"):
        Methods(batch=0)


def test_to_teach_is_what_the_trainer_does_with_the_average_in_the_end(tmp_path: Path) -> None:
    numbers = replace(TINY, sft=replace(TINY.sft, ema_decay=0.5))
    (one, other), clips = (tiny_student(), tiny_student()), examples()
    discriminator = MotionDiscriminator(16)
    seconds = teach(build_method("sft", one, discriminator, clips, numbers, seed=0), 3, seed=7)
    method = build_method("sft", other, discriminator, clips, numbers, seed=0)
    trainer = Trainer(method.objective, method.batches, TrainerConfig(steps=3, seed=7), tmp_path)
    for step in range(3):
        trainer.turn(step)
    average = trainer.ema("student")
    assert average is not None
    assert not torch.equal(weights(one), weights(other))
    average.copy_to(method.averaged)
    assert torch.equal(weights(one), weights(other))
    assert seconds > 0


def test_turns_in_which_the_student_rests_are_not_taken_for_the_price() -> None:
    student, clips = tiny_student(), examples()
    config = replace(TINY, gan=replace(TINY.gan, warmup_turns=30))
    method = build_method("gan", student, MotionDiscriminator(16), clips, config, seed=0)
    before = weights(student.network)
    turns_worth(1.0, method)
    assert not torch.equal(weights(student.network), before)  # it was among those that were timed


def test_adapters_are_part_of_the_weights_after_teaching(tmp_path: Path) -> None:
    student, clips = tiny_student(), examples()
    config = replace(TINY, afd=replace(TINY.afd, lora=Lora(rank=2)))
    teach(build_method("afd", student, MotionDiscriminator(16), clips, config, seed=0), 1, seed=0)
    student.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    assert torch.equal(weights(again.network), weights(student.network))


def test_twice_the_time_pays_for_twice_the_turns() -> None:
    def trial() -> Method:
        return build_method("sft", tiny_student(), MotionDiscriminator(16), examples(), TINY, seed=0)

    price = teach(trial(), 20, seed=0) / 20
    turns = turns_worth(200 * price, trial())
    assert 50 < turns < 800  # a shared machine is not exact
    assert turns_worth(1e-9, trial()) == 1
