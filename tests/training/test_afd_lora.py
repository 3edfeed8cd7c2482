"""AFD with adapters: the same method, one copy of the weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamstill.config import from_dict, to_dict, with_overrides
from streamstill.streaming.rollout import rollout
from streamstill.student.student import Student
from streamstill.testing import tiny_student, tiny_wan_student
from streamstill.training.checkpoint import read_state
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.lora import Lora
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig, Verdict, negative_aware_error
from streamstill.training.optim import OptimConfig
from streamstill.training.policies import Adapters, OldSchedule, WeightCopies
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, BY_HEART, CONFIG, Brightness, afd, dice, disturb, group, weights
from tests.training.lora_parts import LORA, by_hand


def with_adapters(**changes: Any) -> AdversarialFlowDistillation:
    return afd(lora=LORA, **changes)


def moved_apart(objective: AdversarialFlowDistillation) -> Adapters:
    """The objective's adapters, which now differ from each other and from nothing."""
    assert isinstance(objective.policies, Adapters)
    disturb(objective.policies.trained, seed=5, scale=0.1)
    disturb(objective.memory["old"], seed=6, scale=0.1)
    return objective.policies


def run_afd(folder: Path, steps: int = 3, **changes: Any) -> AdversarialFlowDistillation:
    objective = with_adapters(prior=0.1, **changes)
    Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder).run()
    return objective


def state(folder: Path) -> Path:
    return folder / "training" / "state.safetensors"


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    run_afd(folder)
    return folder


def test_without_a_shape_for_adapters_all_weights_learn() -> None:
    assert isinstance(afd().policies, WeightCopies)
    assert isinstance(with_adapters().policies, Adapters)


def test_adapters_are_chosen_on_the_command_line_and_survive_a_file() -> None:
    config = with_overrides(AfdConfig(), ['lora={"rank": 8, "alpha": 4}', "old.kind=type1", "credit=chunk"])
    assert config.lora == Lora(rank=8, alpha=4)
    assert config.old == OldSchedule(kind="type1")
    assert from_dict(AfdConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match="unknown schedule of the lagged student 'type3'"):
        OldSchedule(kind="type3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0; 0 copies the student every time"):
        OldSchedule(decay=1.0)


@pytest.mark.parametrize("stop", [1, 2])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, never_stopped: Path, stop: int) -> None:
    run_afd(tmp_path, steps=stop)
    run_afd(tmp_path)
    assert state(tmp_path).read_bytes() == state(never_stopped).read_bytes()


def test_a_checkpoint_holds_the_adapters_and_no_weight_of_the_network(never_stopped: Path) -> None:
    names = {name for name in read_state(state(never_stopped)).tensors if not name.startswith("discriminator/")}
    own = {name for name in names if name.startswith("student/module/")}
    assert own == {f"student/module/{name}" for name in with_adapters().policies.trained.state_dict()}
    assert {name.rsplit("/", 1)[0] for name in names if name.startswith("student/optimiser/")} == {
        name.replace("/module/", "/optimiser/") for name in own
    }
    assert {name for name in names if not name.startswith("student/")} == {
        name.replace("student/module/", "memory/old/") for name in own
    }


def test_a_finished_run_gives_its_adapters_back_and_they_become_an_ordinary_student(
    tmp_path: Path, never_stopped: Path
) -> None:
    again = run_afd(never_stopped)
    assert isinstance(again.policies, Adapters)
    expected = by_hand(again.policies, tiny_student().network, "student")
    assert again.policies.merged() is again.student.network
    again.student.save_pretrained(tmp_path)
    saved = Student.from_pretrained(tmp_path).network
    torch.testing.assert_close(weights(saved), weights(expected))
    assert (weights(saved) - weights(tiny_student().network)).abs().max() > 1e-4


@pytest.mark.parametrize("wan", [False, True], ids=["sandwich", "wan"])
def test_a_step_moves_both_adapters_and_no_weight_of_the_network(tmp_path: Path, wan: bool) -> None:
    if wan:
        pytest.importorskip("diffusers", reason='install the wan extra: pip install "streamstill[wan]"')
    student = tiny_wan_student() if wan else tiny_student()
    torch.manual_seed(1)
    objective = AdversarialFlowDistillation(student, MotionDiscriminator(16), replace(CONFIG, lora=LORA, prior=0.1))
    parts = (objective.policies.trained, objective.memory["old"])
    before = [weights(part) for part in parts]
    with objective.policies.start() as network:
        held = {name: tensor.clone() for name, tensor in network.state_dict().items() if ".lora_" not in name}
    Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    assert all(not torch.equal(weights(part), was) for part, was in zip(parts, before, strict=True))
    assert all(torch.equal(student.network.state_dict()[name], was) for name, was in held.items())


def test_the_lagged_adapter_makes_the_rollouts() -> None:
    objective = with_adapters()
    adapters = moved_apart(objective)
    made = objective.begin(group(), 0, dice()).round.rollouts_PKFCHW.flatten(0, 1)
    for name in ("old", "student"):
        by_whom = rollout(
            by_hand(adapters, tiny_student().network, name),
            objective.student.encode_prompts(group().prompts).repeat_interleave(4, dim=0).detach(),
            frames=4,
            latent_shape=objective.student.latent_shape[1:],
            sampling=objective.adversary.sampling,
            generator=dice(),
        )
        assert torch.allclose(made, by_whom, atol=1e-4) is (name == "old")
    assert not made.requires_grad


def test_the_loss_is_that_of_three_ordinary_networks_and_teaches_the_student_alone() -> None:
    objective = with_adapters(prior=0.3, beta=0.5)
    adapters, plain = moved_apart(objective), tiny_student().network
    networks = {"student": by_hand(adapters, plain, "student"), "old": by_hand(adapters, plain, "old"), "start": plain}
    (verdict, *_) = objective.micro_batches("student", objective.begin(group(), 0, dice()), dice(1))
    assert isinstance(verdict, Verdict)
    t = verdict.t_BK.repeat_interleave(2, dim=1)[..., None, None, None]
    clean, text_BLD = verdict.rollouts_BFCHW, objective.student.encode_prompts(verdict.prompts)
    x_t = (1 - t) * clean + t * verdict.noise_BFCHW
    velocity = {
        name: network.velocity_in_context(x_t, verdict.t_BK, text_BLD, context_BFCHW=clean)
        for name, network in networks.items()
    }
    error_B = negative_aware_error(
        x_t - t * velocity["student"],
        x_t - t * velocity["old"],
        clean,
        verdict.worth_BC[:, 0],
        beta=0.5,
    )
    drift = (velocity["student"] - velocity["start"]).square().mean()
    loss = objective.loss("student", verdict).value
    torch.testing.assert_close(loss, error_B.mean() + 0.3 * drift, rtol=1e-3, atol=1e-5)
    loss.backward()
    taught = {name for name, parameter in objective.student.named_parameters() if parameter.grad is not None}
    assert taught
    assert all(".student." in name for name in taught)
    assert len(taught) == len(list(adapters.trained.parameters()))


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_the_rollouts_become_what_the_judge_likes(tmp_path: Path, target: float) -> None:
    adversary = replace(
        ADVERSARY, optim=BY_HEART, steps_per_turn=1, rollouts_per_prompt=12, blindfold=Blindfold(noise=0)
    )
    optim = OptimConfig(lr=3e-3)
    objective = with_adapters(judge=Brightness(target), optim=optim, adversary=adversary, micro_batch=24)

    def brightness() -> float:
        with objective.policies.student() as network:
            made = objective.adversary.roll_out(network, group(), dice(99)).rollouts_PKFCHW
        return float(objective.student.codec.decode(made.flatten(0, 1))[0].clamp(-1, 1).mean())

    before = brightness()
    Trainer(objective, group, TrainerConfig(steps=5), tmp_path).run()
    assert (brightness() - before) * target > 0.008


@pytest.mark.parametrize("lora", [None, LORA], ids=["copies", "adapters"])
def test_the_lag_follows_the_students_own_updates_which_begin_after_the_warm_up(lora: Any) -> None:
    objective = afd(lora=lora, warmup_turns=3, old=OldSchedule(kind="type1"))
    disturb(objective.policies.trained, seed=5)
    old, new = weights(objective.memory["old"]), weights(objective.policies.trained)
    turn = objective.begin(group(), 2, dice())
    assert objective.end(turn, 2) == {}
    assert torch.equal(weights(objective.memory["old"]), old)
    objective.end(replace(turn, warming_up=False), 102)
    torch.testing.assert_close(weights(objective.memory["old"]), 0.1 * old + 0.9 * new)
