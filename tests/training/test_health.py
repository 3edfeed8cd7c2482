"""The monitor beside real runs: what it sees, what it tells, what it leaves alone."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamstill.student.sandwich import SandwichDiT
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.training.batches import PromptGroup
from streamstill.training.health import (
    LOG,
    Checkup,
    HealthConfig,
    HealthMonitor,
    Weights,
    health_summary,
    read_history,
    verdict,
)
from streamstill.training.health_vitals import START
from streamstill.training.lora import Lora
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.optim import OptimConfig
from streamstill.training.progress import SilentProgress
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, CONFIG, Indifferent, afd, disturb, group, weights
from tests.training.clips import latents
from tests.training.health_parts import own_clips

EVERY = HealthConfig(every=1)
OTHER = PromptGroup(latents(4, seed=9).unflatten(0, (2, 2)), ("a box is thrown to the right", "a ball hits a box"))


class Notes(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def watched(folder: Path, objective: AdversarialFlowDistillation, notes: Notes | None = None) -> HealthMonitor:
    return HealthMonitor(Checkup.of(objective, OTHER, EVERY), folder, notes)


def run(folder: Path, steps: int, *, monitored: bool = True, **changes: Any) -> AdversarialFlowDistillation:
    objective = afd(**changes)
    monitor = watched(folder, objective) if monitored else None
    trainer = Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder, on_step=monitor)
    if monitor is not None:
        monitor.begin(resumed=trainer.state_path.exists())
    trainer.run()
    return objective


def without_seconds(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    run(folder, 3)
    return folder


def test_watching_changes_no_bit_of_the_run(tmp_path: Path, finished: Path) -> None:
    """Weights, optimisers, lagged copies: the whole state after training, and the metrics."""
    run(tmp_path, 3, monitored=False)
    state = Path("training") / "state.safetensors"
    assert (tmp_path / state).read_bytes() == (finished / state).read_bytes()
    assert not (tmp_path / LOG).exists()


def test_a_run_that_was_stopped_has_the_history_of_one_that_was_not(tmp_path: Path, finished: Path) -> None:
    for steps in (1, 2, 3):
        run(tmp_path, steps)
    assert without_seconds(tmp_path) == without_seconds(finished)
    assert [checkup.step for checkup in read_history(finished / LOG)] == [START, 0, 1, 2]


def test_a_finished_run_is_not_examined_again(finished: Path) -> None:
    before = (finished / LOG).read_bytes()
    run(finished, 3)
    assert (finished / LOG).read_bytes() == before


def test_the_numbers_of_a_run(finished: Path) -> None:
    start, *later = read_history(finished / LOG)
    assert (start.distance_to_start, start.distance_to_old) == (0, 0)
    assert start.moves.reward is None
    for before, after in pairwise([start, *later]):
        assert before.distance_to_start is not None
        assert after.distance_to_start is not None
        assert after.distance_to_start > before.distance_to_start  # few steps, far from their goal
        assert after.distance_to_old is not None
        assert 0 < after.distance_to_old < after.distance_to_start
        assert after.teacher == start.teacher
        assert after.student != before.student
        assert after.held_out_error != before.held_out_error
        assert after.judgement is not None
        assert 0 <= after.judgement.pair_accuracy <= 1
        assert after.moves.reward == pytest.approx(0.5, abs=0.1)
        assert after.moves.student_grad_norm is not None
        assert after.moves.student_grad_norm > 0


def test_two_checkups_of_one_student_are_equal_and_leave_its_mode_alone() -> None:
    objective = afd()
    objective.student.network.train()
    head(objective.student).eval()
    modes = [part.training for part in objective.student.modules()]
    checkup = Checkup.of(objective, OTHER, HealthConfig())
    torch.manual_seed(3)
    drawn = torch.random.get_rng_state()
    assert checkup.examine(0, {}) == checkup.examine(0, {})
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert [part.training for part in objective.student.modules()] == modes
    assert all(p.grad is None for p in objective.student.parameters())


def test_another_seed_is_other_noise() -> None:
    objective = afd()
    one, other = (Checkup.of(objective, OTHER, HealthConfig(seed=seed)).examine(0, {}) for seed in (0, 1))
    assert one.student != other.student
    assert one.teacher == other.teacher


def test_a_student_beside_its_own_clips_looks_like_them() -> None:
    """Other noise, the same student: the two looks are those of one distribution."""
    student = tiny_student()
    seen = Checkup(student=student, held_out=own_clips(student)).examine(0, {})
    for name in ("sharpness", "motion", "moving", "flicker"):
        assert getattr(seen.student, name) == pytest.approx(getattr(seen.teacher, name), rel=0.1)
    assert seen.judgement is None
    assert seen.distance_to_start is None


def head(student: Student) -> nn.Linear:
    """The layer that paints: it writes clean latents, which are blocks of 2 frames of 4x4 pixels."""
    assert isinstance(student.network, SandwichDiT)
    return student.network.head


@torch.no_grad()
def blur(student: Student) -> None:
    """Every pixel of what it paints becomes the mean of its 4x4 patch, frame by frame and colour by colour."""
    for parameter in head(student).parameters():
        pixels = parameter.view(3 * 2, 16, -1)
        pixels.copy_(pixels.mean(dim=1, keepdim=True).expand_as(pixels))


@torch.no_grad()
def freeze(student: Student) -> None:
    """It paints one picture whatever it is asked: a random 4x4 patch everywhere, the same in both frames."""
    patch = torch.rand(3, 1, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    head(student).weight.zero_()
    head(student).bias.copy_(patch.expand(3, 2, 16).flatten())


@pytest.mark.parametrize(("harm", "alarm"), [(blur, "blur_drift"), (freeze, "motion_collapse")])
def test_a_student_that_is_harmed_on_purpose_is_told_of(
    tmp_path: Path, harm: Callable[[Student], None], alarm: str
) -> None:
    student, notes = tiny_student(), Notes()
    monitor = HealthMonitor(Checkup(student=student, held_out=own_clips(student), config=EVERY), tmp_path, notes)
    monitor.begin(resumed=False)
    monitor(0, {})
    monitor(1, {})
    assert notes.said == []
    harm(student)
    for step in (2, 3, 4):
        monitor(step, {})
    assert [line.split(":")[:2] for line in notes.said] == [["health", f" {alarm} after step 3"]]
    assert health_summary(tmp_path)["alarms"] == {alarm: [3, 4]}
    assert monitor.verdict() == f"health: {alarm} after step 3 in 5 checkups"


def test_what_was_frozen_stands_still_and_what_was_blurred_does_not() -> None:
    student = tiny_student()
    own = own_clips(student)
    for harm, still in ((blur, False), (freeze, True)):
        harmed = tiny_student()
        harm(harmed)
        seen = Checkup(student=harmed, held_out=own).examine(0, {})
        assert (seen.student.motion < 1e-4) == still
        assert (seen.student.sharpness > 0.9 * seen.teacher.sharpness) == still


def test_a_discriminator_with_an_absurd_learning_rate_is_saturated(tmp_path: Path) -> None:
    reckless = replace(ADVERSARY, optim=OptimConfig(lr=0.3, max_grad_norm=None), steps_per_turn=4)
    objective, notes = afd(adversary=reckless), Notes()
    monitor = watched(tmp_path, objective, notes)
    monitor.begin(resumed=False)
    Trainer(objective, group, TrainerConfig(steps=4), tmp_path, on_step=monitor).run()
    assert any("health: discriminator_saturated after step" in line for line in notes.said), notes.said
    last = read_history(tmp_path / LOG)[-1].judgement
    assert last is not None
    assert not 0.05 <= last.mean_r <= 0.95


def test_a_calm_discriminator_is_not(finished: Path) -> None:
    assert "discriminator_saturated" not in health_summary(finished)["alarms"]


def test_a_discriminator_without_an_opinion_is_told_of(tmp_path: Path) -> None:
    objective, notes = afd(Indifferent()), Notes()
    monitor = watched(tmp_path, objective, notes)
    monitor.begin(resumed=False)
    for step in range(2):
        monitor(step, {})
    assert [line.split(":")[:2] for line in notes.said] == [["health", " noise_only after step 1"]]


def test_the_blindfolds_noise_makes_scores_less_reliable() -> None:
    def reliability(noise: float) -> float:
        blindfold = replace(ADVERSARY.blindfold, noise=noise)
        objective = afd(adversary=replace(ADVERSARY, blindfold=blindfold))
        judged = Checkup.of(objective, OTHER, EVERY).examine(0, {}).judgement
        assert judged is not None
        return judged.reliability

    assert reliability(0.0) == pytest.approx(1)
    assert reliability(0.01) > 0.9
    assert reliability(10.0) < 0.5


def test_only_every_few_steps_are_examined(tmp_path: Path) -> None:
    student = tiny_student()
    checkup = Checkup(student=student, held_out=OTHER, config=HealthConfig(every=3))
    monitor = HealthMonitor(checkup, tmp_path)
    monitor.begin(resumed=False)
    for step in range(7):
        monitor(step, {})
    assert [each.step for each in monitor.history] == [START, 2, 5]


def test_a_fresh_run_forgets_what_an_earlier_one_left(tmp_path: Path) -> None:
    student = tiny_student()
    checkup = Checkup(student=student, held_out=OTHER, config=EVERY)
    for seed in (0, 1):
        disturb(student.network, seed)
        monitor = HealthMonitor(checkup, tmp_path)
        monitor.begin(resumed=False)
        assert [each.step for each in read_history(tmp_path / LOG)] == [START]
        assert monitor.history[0] == checkup.examine(START, {})
        monitor(0, {})


def test_a_line_that_was_cut_off_and_lines_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    checkup = Checkup(student=tiny_student(), held_out=OTHER, config=EVERY)
    first = HealthMonitor(checkup, tmp_path)
    first.begin(resumed=False)
    for step in range(3):
        first(step, {})
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 3, "seco')
    assert health_summary(tmp_path)["checkups"] == 3
    again = HealthMonitor(checkup, tmp_path)
    again.begin(resumed=True)
    assert again.history == first.history
    again(1, {})  # the checkpoint was that after step 0
    assert [each.step for each in read_history(tmp_path / LOG)] == [START, 0, 1] == [v.step for v in again.history]


def test_a_resumed_run_that_nobody_watched_gets_its_start(tmp_path: Path) -> None:
    monitor = HealthMonitor(Checkup(student=tiny_student(), held_out=OTHER, config=EVERY), tmp_path)
    monitor.begin(resumed=True)
    assert [each.step for each in monitor.history] == [START]


def test_the_summary_is_plain_json(finished: Path) -> None:
    summary = health_summary(finished)
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary) == {"checkups", "seconds", "start", "last", "alarms"}
    assert summary["checkups"] == 3
    assert summary["last"]["student/sharpness"] == read_history(finished / LOG)[-1].student.sharpness
    assert all(math.isfinite(value) for value in summary["last"].values())
    assert not any(name.startswith("alarm/") for name in summary["last"])


def test_the_verdict_is_one_line() -> None:
    assert verdict({"checkups": 4, "alarms": {}}) == "health: no alarm in 4 checkups"
    assert verdict({"checkups": 4, "alarms": {"noise_only": [3, 5], "blur_drift": [5]}}) == (
        "health: noise_only after step 3, blur_drift after step 5 in 4 checkups"
    )


def test_a_stage_that_was_not_watched_has_no_summary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no health\.jsonl: the stage was not watched"):
        health_summary(tmp_path)


@pytest.mark.parametrize("line", ["no json", "[1, 2]", '{"seconds": 1}'])
def test_a_damaged_log_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"health\.jsonl is not a log of checkups"):
        read_history(tmp_path / LOG)
    with pytest.raises(ValueError, match=r"line 1 of .*health\.jsonl"):
        HealthMonitor(Checkup(student=tiny_student(), held_out=OTHER), tmp_path).begin(resumed=True)


def test_distances_count_from_before_the_first_step() -> None:
    network, old = nn.Linear(2, 2), nn.Linear(2, 2)
    old.load_state_dict(network.state_dict())
    own = Weights(network, old=old)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.zero_()
    assert (own.to_start(), own.to_old()) == pytest.approx((1, 1))
    assert Weights(network, old=old, start=old).to_start() == pytest.approx(1)
    assert not any(parameter.requires_grad for parameter in own.start.parameters())


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_the_start_is_kept_whether_or_not_the_method_keeps_it(prior: float) -> None:
    objective = afd(prior=prior)
    before = weights(objective.student.network)
    checkup = Checkup.of(objective, OTHER, HealthConfig())
    disturb(objective.student.network, 1)
    assert checkup.weights is not None
    moved = float((weights(objective.student.network) - before).norm() / before.norm())
    assert checkup.weights.to_start() == pytest.approx(moved, rel=1e-4) == checkup.weights.to_old()


def test_adapters_are_watched_by_their_factors() -> None:
    pytest.importorskip("peft")
    objective = afd(lora=Lora(rank=2))
    checkup = Checkup.of(objective, OTHER, HealthConfig())
    start = checkup.examine(START, {})
    assert (start.distance_to_start, start.distance_to_old) == (0, 0)
    disturb(objective.policies.trained, 1)
    after = checkup.examine(0, {})
    assert after.distance_to_start is not None
    assert after.distance_to_start > 0
    assert after.distance_to_old == after.distance_to_start
    assert after.student != start.student


@pytest.mark.parametrize(
    ("change", "message"),
    [({"every": 0}, "every must be at least 1, got 0"), ({"rollouts_per_prompt": 1}, "it must be at least 2")],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HealthConfig(**change)


def test_the_reward_of_the_run_is_what_the_trainer_logged(finished: Path) -> None:
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    seen = read_history(finished / LOG)[1:]
    assert [each.moves.reward for each in seen] == [line["student/reward"] for line in logged]
    assert [each.moves.pair_accuracy for each in seen] == [line["discriminator/pair_accuracy"] for line in logged]
    assert CONFIG.adversary.rollouts_per_prompt > EVERY.rollouts_per_prompt
