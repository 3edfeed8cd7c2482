"""The student, the one that lags and the start: the same answers as copies and as adapters on one copy."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.training.lora import Lora
from streamstill.training.policies import Adapters, OldSchedule, Policies, WeightCopies, build_policies
from tests.training.afd_parts import disturb, weights
from tests.training.lora_parts import LORA, by_hand, disturbed, every_network, lesson_of, sandwich


@every_network
@torch.no_grad()
def test_every_view_is_the_network_with_the_matching_weights(make: Callable[[], Network]) -> None:
    adapters, plain = disturbed(make), make()
    expected = {
        adapters.student: by_hand(adapters, plain, "student"),
        adapters.old: by_hand(adapters, plain, "old"),
        adapters.start: plain,
    }
    answers = []
    for view, network in expected.items():
        with view() as shown:
            answers.append(lesson_of(shown))
        torch.testing.assert_close(answers[-1], lesson_of(network), rtol=1e-4, atol=1e-5)
    assert torch.equal(answers[2], lesson_of(plain))
    assert all(not torch.allclose(answers[i], answers[j], atol=1e-3) for i, j in ((0, 1), (1, 2), (2, 0)))


def test_all_three_begin_as_the_same_network() -> None:
    network = sandwich()
    before = lesson_of(network).detach()
    adapters = Adapters(network, LORA)
    for view in (adapters.student, adapters.old, adapters.start):
        with view() as shown:
            assert torch.equal(lesson_of(shown), before)
    assert adapters.follow(0.5) == 0.0


def test_outside_of_every_block_and_after_an_error_the_network_is_the_student() -> None:
    adapters = disturbed(sandwich)
    with adapters.student() as network:
        student = lesson_of(network).detach()
    with adapters.old(), adapters.start():
        assert not torch.equal(lesson_of(network), student)
    with pytest.raises(KeyError), adapters.old():
        raise KeyError
    assert torch.equal(lesson_of(network), student)


def test_who_requires_a_gradient_is_not_changed_by_looking() -> None:
    adapters = disturbed(sandwich)
    for learns in (True, False):  # a trainer freezes the student while others move
        adapters.trained.requires_grad_(learns)
        for view in (adapters.old, adapters.start, adapters.student):
            with view():
                assert all(factor.requires_grad is learns for factor in adapters.trained.parameters())
            assert all(factor.requires_grad is learns for factor in adapters.trained.parameters())
            assert not any(factor.requires_grad for factor in adapters.memory["old"].parameters())


def test_a_look_at_the_others_between_forward_and_backward_loses_no_gradient() -> None:
    gradients = []
    for looks in (False, True):
        adapters = disturbed(sandwich)
        with adapters.student() as network:
            loss = lesson_of(network).square().mean()
        if looks:
            with torch.no_grad(), adapters.old() as network:
                lesson_of(network)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapters.trained.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def apart(policies: Policies) -> float:
    """The distance of student and lagged one over all weights, measured on ordinary networks."""
    plain = []
    for view in (policies.student, policies.old):
        with view() as network:
            plain.append({name: p.detach().clone() for name, p in network.named_parameters() if ".lora_" not in name})
    if isinstance(policies, Adapters):
        for name in policies.layers.layers:
            for who, own in zip(("student", "old"), plain, strict=True):
                own[f"{name}.base_layer.weight"] += policies.layers.change(name, who)
    return sum(float((plain[0][name] - plain[1][name]).square().sum()) for name in plain[0]) ** 0.5


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("lora", [None, LORA], ids=["copies", "adapters"])
def test_the_lagged_one_follows_by_its_decay_and_says_how_far_it_was(lora: Lora | None, decay: float) -> None:
    policies = build_policies(sandwich(), lora, keep_start=False)
    disturb(policies.trained, seed=1)
    disturb(policies.memory["old"], seed=2)
    expected, new, old = apart(policies), weights(policies.trained), weights(policies.memory["old"])
    assert policies.follow(decay) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(weights(policies.memory["old"]), decay * old + (1 - decay) * new)
    assert torch.equal(weights(policies.trained), new)
    if decay == 0:
        assert torch.equal(weights(policies.memory["old"]), new)
        assert policies.follow(decay) == 0


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (OldSchedule(), {1: 0.5, 1000: 0.5}),
        (OldSchedule(decay=0.9), {1: 0.9, 5: 0.9}),
        (OldSchedule(kind="type0"), {1: 0, 1000: 0}),
        (OldSchedule(kind="type1"), {1: 0.001, 100: 0.1, 500: 0.5, 5000: 0.5}),
        (OldSchedule(kind="type2"), {1: 0, 74: 0, 75: 0, 76: 0.0075, 175: 0.75, 208: 0.9975, 209: 0.999, 9999: 0.999}),
    ],
)
def test_the_schedules_are_those_of_diffusion_nft(schedule: OldSchedule, kept: dict[int, float]) -> None:
    assert {updates: schedule.at(updates) for updates in kept} == pytest.approx(kept)


def test_copies_keep_the_start_only_where_it_is_wanted() -> None:
    network = sandwich()
    with_start, without = WeightCopies(network, keep_start=True), WeightCopies(network, keep_start=False)
    disturb(network, seed=3)
    with with_start.start() as start:
        assert torch.equal(weights(start), weights(sandwich()))
    with pytest.raises(ValueError, match="the start was not kept; make the copies with keep_start=True"):
        without.start()
    assert set(without.memory) == {"old"}
    assert without.merged() is network


@every_network
@torch.no_grad()
def test_merged_weights_answer_as_the_adapter_did_and_nothing_is_left_of_it(make: Callable[[], Network]) -> None:
    adapters, plain = disturbed(make), make()
    with adapters.student() as network:
        before = lesson_of(network)
    merged = adapters.merged()
    assert merged is network
    torch.testing.assert_close(lesson_of(merged), before, rtol=1e-4, atol=1e-5)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert all(type(a) is type(b) for a, b in zip(merged.modules(), plain.modules(), strict=True))


def test_a_merged_student_is_saved_as_an_ordinary_one(tmp_path: Path) -> None:
    student = tiny_student()
    adapters = Adapters(student.network, LORA)
    disturb(adapters.trained, seed=0, scale=0.1)
    adapters.merged()
    student.save_pretrained(tmp_path)
    again = Student.from_pretrained(tmp_path)
    assert torch.equal(lesson_of(again.network), lesson_of(student.network))
    assert not torch.equal(weights(again), weights(tiny_student()))


def test_after_the_fold_there_is_nothing_to_look_at_and_new_adapters_can_come() -> None:
    network = sandwich()
    adapters = Adapters(network, LORA)
    with pytest.raises(ValueError, match="this network has adapters already; fold them"):
        Adapters(network, LORA)
    adapters.merged()
    with pytest.raises(ValueError, match="the adapters were folded into the weights"), adapters.start():
        pass
    assert len(Adapters(network, LORA).trained.state_dict()) == 46
