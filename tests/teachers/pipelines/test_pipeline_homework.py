"""End to end: a tiny Wan pipeline does its homework, and a small student learns from it through latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichDiT
from streamstill.student.student import Student
from streamstill.teachers.homework import Assignment, HomeworkStore
from streamstill.teachers.homework_collection import collect_homework
from streamstill.teachers.pipelines.opened import pipeline_teacher
from streamstill.testing import TEXT, tiny_student
from streamstill.training.homework_batches import homework_batches
from streamstill.training.objectives.knowledge import KnowledgeConfig, KnowledgeDistillation
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from streamstill.types import Geometry
from tests.teachers.pipelines.asking import OTHER, PROMPT, Saved, config_of, request

SIZE = Geometry(frames=13, height=32, width=32, fps=8)  # 4 latent frames: two chunks of the student


def student_for(channels: int) -> Student:
    """The nano preset made small, for latents of so many channels; its own codec is not asked."""
    student = tiny_student()
    network = replace(
        preset("nano", latent_channels=channels, text_width=TEXT.width), layout="LSL", width=32, head_dim=16
    )
    torch.manual_seed(0)
    student.network = SandwichDiT(network)
    return student


def test_a_student_learns_from_a_wan_pipeline(saved: Saved, tmp_path: Path) -> None:
    teacher = pipeline_teacher(config_of(saved("wan"), geometry=SIZE, steps=2))
    assignment = Assignment(shift=8.0, velocities=2, path_levels=2, path_steps=2, text=True)
    store = HomeworkStore.open(tmp_path / "homework")
    requests = [request(seed, prompt, SIZE) for seed, prompt in enumerate((PROMPT, OTHER))]
    assert collect_homework(teacher, requests, store, assignment).asked == 2
    assert collect_homework(teacher, requests, store, assignment).asked == 0
    (one, _) = store.get(store.keys(teacher=teacher.name))
    assert one.latents_FCHW.shape == (4, 16, 4, 4)
    assert one.text_LD is not None
    assert one.text_LD.shape == (48, 32)

    student, losses = student_for(16), list[float]()
    before = student.network.state_dict()["head.weight"].clone()
    objective = KnowledgeDistillation(student, KnowledgeConfig(optim=OptimConfig(lr=5e-3)))
    batches = homework_batches(store, store.keys(), batch=2, seed=0)
    config = TrainerConfig(steps=2)
    Trainer(objective, batches, config, tmp_path, on_step=lambda _, said: losses.append(said["student/kd"])).run()
    assert len(losses) == 2
    assert torch.isfinite(torch.tensor(losses)).all()
    assert not torch.equal(before, student.network.state_dict()["head.weight"])


def test_a_velocity_of_homework_is_the_networks_at_its_noised_clip(saved: Saved, tmp_path: Path) -> None:
    teacher = pipeline_teacher(config_of(saved("wan"), geometry=SIZE, steps=2))
    store = HomeworkStore.open(tmp_path / "homework")
    collect_homework(teacher, [request(4, size=SIZE)], store, Assignment(shift=8.0, dtype="float32"))
    (one,) = store.get(store.keys())
    for index in range(2):
        x_t, t_B = one.x_t_FCHW(index)[None], one.t_V[index : index + 1]
        told = teacher.velocity(x_t, t_B, [PROMPT])  # type: ignore[attr-defined]
        torch.testing.assert_close(told[0], one.velocity_VFCHW[index], rtol=1e-5, atol=1e-5)


def test_without_velocities_a_black_box_is_refused_before_anything_is_made(saved: Saved, tmp_path: Path) -> None:
    teacher, store = pipeline_teacher(config_of(saved("cogvideox"))), HomeworkStore.open(tmp_path / "homework")
    with pytest.raises(TypeError, match="homework needs an open teacher, and 'pipeline/cogvideox@"):
        collect_homework(teacher, [request()], store, Assignment(shift=8.0))
    assert len(store) == 0
