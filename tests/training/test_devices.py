"""Training away from the CPU: every objective finds its tensors on one device, and gives the bits of the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.recipes.methods import METHODS, Method, Methods, build_method, score_of
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.training.batches import Examples, PromptGroup
from streamstill.training.devices import CPU, moved
from streamstill.training.discriminators.augmentation import Augmentation
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.discriminators.centroid import CentroidConfig
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.health import Checkup, HealthConfig
from streamstill.training.lora import Lora
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig
from streamstill.training.objectives.score import StudentScore
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.far_device import FAR, Far, far_device

STEPS = 2
ALL_AT_ONCE = AfdConfig(  # as many of AFD's parts as fit into one run
    adversary=AdversaryConfig(
        rollouts_per_prompt=2,
        replay=8,
        looks=2,
        r1=0.1,
        r2=0.1,
        ema_decay=0.5,
        augmentation=Augmentation(blur=(0.5, 1)),
    ),
    prior=0.1,
    anchor=0.1,
    ema_decay=0.5,
    self_normalise=True,
    spare_first_chunk=True,
)


def examples() -> Examples:
    shape = tiny_student().latent_shape
    latents = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    return Examples(latents, tuple(f"prompt number {number // 2}" for number in range(8)))


def method(name: str, device: torch.device, numbers: Methods) -> tuple[Student, Method]:
    student = tiny_student().to(device)
    judge = build_discriminator(CentroidConfig(), codec=student.codec, seed=0)
    real = StudentScore(tiny_student(seed=1).to(device).requires_grad_(False)) if name == "dmd" else None
    if name == "score":
        return student, score_of(student, examples(), numbers, seed=0)
    return student, build_method(name, student, judge, examples(), numbers, seed=0, real=real)


def taught(name: str, device: torch.device, numbers: Methods, folder: Path) -> tuple[Mapping[str, Tensor], Any]:
    """The student's weights afterwards, and what was logged."""
    student, made = method(name, device, numbers)
    trainer = Trainer(made.objective, made.batches, TrainerConfig(steps=STEPS), folder)
    logged = [trainer.turn(step) for step in range(STEPS)]
    trainer.save(STEPS)
    return {name: tensor.cpu() for name, tensor in student.state_dict().items()}, logged


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", [*METHODS, "score"])
def test_every_method_learns_on_another_device_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    numbers = Methods(batch=2, prompts_per_update=2, afd=ALL_AT_ONCE)
    near = taught(name, CPU, numbers, tmp_path / "near")
    with far_device() as device:
        far = taught(name, device, numbers, tmp_path / "far")
    assert near[1] == far[1]
    assert same(near[0], far[0])
    states = [tmp_path / who / "training" / "state.safetensors" for who in ("near", "far")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_adapters_learn_on_another_device_as_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    numbers = Methods(prompts_per_update=2, afd=replace(ALL_AT_ONCE, lora=Lora(rank=2)))
    near = taught("afd", CPU, numbers, tmp_path / "near")
    with far_device() as device:
        far = taught("afd", device, numbers, tmp_path / "far")
    assert near[1] == far[1]
    assert same(near[0], far[0])


def test_a_run_goes_on_on_another_device(tmp_path: Path) -> None:
    numbers = Methods(batch=2)
    whole, _ = taught("sft", CPU, numbers, tmp_path / "whole")
    student, made = method("sft", CPU, numbers)
    first = Trainer(made.objective, made.batches, TrainerConfig(steps=STEPS), tmp_path / "parted")
    first.turn(0)
    first.save(1)
    with far_device() as device:
        student, made = method("sft", device, numbers)
        trainer = Trainer(made.objective, made.batches, TrainerConfig(steps=STEPS), tmp_path / "parted")
        assert trainer.restore() == 1
        trainer.turn(1)
        assert same(whole, {name: tensor.cpu() for name, tensor in student.state_dict().items()})


def test_a_checkup_finds_the_same_on_another_device() -> None:
    def vitals(device: torch.device) -> Any:
        student = tiny_student().to(device)
        judge = build_discriminator(MotionConfig(), codec=student.codec, seed=0)
        group = PromptGroup(examples().latents_BFCHW[:4, None], ("one", "two", "three", "four"))
        afd = AdversarialFlowDistillation(student, judge, AfdConfig(adversary=AdversaryConfig(rollouts_per_prompt=2)))
        return Checkup.of(afd, group, HealthConfig()).examine(0, {})

    near = vitals(CPU)
    with far_device() as device:
        assert vitals(device) == near


def test_copies_of_a_student_stay_where_it_is() -> None:
    with far_device() as device:
        student = tiny_student().to(device)
        longer = replace(student.config.geometry, frames=2 * student.config.geometry.frames)
        assert {one.device for one in (student, student.with_steps(2), student.resized(longer))} == {FAR}
    assert tiny_student().device == CPU


@dataclass(frozen=True)
class Batch:
    parts: tuple[Tensor, str]
    named: Mapping[str, Any]
    nothing: None = None


def test_batches_of_any_make_are_moved_and_others_stay_the_same_object() -> None:
    batch = Batch((torch.zeros(2), "prompt"), {"one": [torch.ones(1), 3], "two": examples()})
    assert moved(batch, CPU) is batch
    with far_device() as device:
        there = moved(batch, device)
        assert isinstance(there.parts[0], Far)
        assert there.parts[1] == "prompt"
        assert isinstance(there.named["one"][0], Far)
        assert there.named["one"][1] == 3
        assert isinstance(there.named["two"].latents_BFCHW, Far)
        assert there.named["two"].prompts == batch.named["two"].prompts
        assert moved(there, device) is there


def test_the_far_device_refuses_what_a_gpu_would() -> None:
    with far_device() as device:
        far, near = torch.ones(2, 3, device=device), torch.ones(2, 3)
        assert float((far + far).sum()) == 12
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            far + near
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            far.numpy()
        weight = torch.nn.Linear(3, 1).to(device)
        weight(far).cpu().square().sum().backward()
        assert isinstance(weight.weight.grad, Far)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device=FAR)  # which is not there any more
