import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig, lr_at
from streamstill.training.trainer import Trainer, TrainerConfig, step_seed
from tests.training.toys import OPTIM, Duel, Regression, duel, rows


def trainer(objective: Regression | Duel, folder: Path, **fields: object) -> Trainer[Tensor, Tensor, Tensor]:
    config = replace(TrainerConfig(steps=5), **fields)  # type: ignore[arg-type]
    return Trainer(objective, rows, config, folder)


def test_a_regression_is_learnt(tmp_path: Path) -> None:
    seen: list[float] = []
    task = Regression(optim=replace(OPTIM, lr=0.1, weight_decay=0.0))
    config = TrainerConfig(steps=120)
    Trainer(task, rows, config, tmp_path, on_step=lambda step, metrics: seen.append(metrics["student/loss"])).run()
    assert len(seen) == 120
    assert seen[-1] < 0.01 * seen[0]


def test_the_loop_is_the_one_that_the_objective_documents(tmp_path: Path) -> None:
    """Against the same updates written out with plain torch."""
    task, plain = Regression(optim=replace(OPTIM, max_grad_norm=None)), Regression()
    trainer(task, tmp_path, steps=6).run()
    optimizer = torch.optim.AdamW(
        [
            {"params": [plain.module.weight], "weight_decay": OPTIM.weight_decay},
            {"params": [plain.module.bias], "weight_decay": 0.0},
        ],
        betas=OPTIM.betas,
    )
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(OPTIM, step)
        optimizer.zero_grad()
        plain.loss("student", rows(step)).value.backward()
        optimizer.step()
    torch.testing.assert_close(task.module.weight, plain.module.weight)
    torch.testing.assert_close(task.module.bias, plain.module.bias)


@pytest.mark.parametrize("micros", [2, 4, 8])
def test_accumulating_micro_batches_equals_one_large_batch(tmp_path: Path, micros: int) -> None:
    whole, parts = Regression(), Regression(micros=micros)
    trainer(whole, tmp_path / "whole").run()
    trainer(parts, tmp_path / "parts").run()
    torch.testing.assert_close(whole.module.weight, parts.module.weight)


def test_metrics_are_means_over_micro_batches(tmp_path: Path) -> None:
    whole = trainer(Regression(), tmp_path).turn(0)
    parts = trainer(Regression(micros=4), tmp_path).turn(0)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole.keys() == {"student/loss", "student/bias", "student/grad_norm", "student/lr"}
    assert whole["student/lr"] == lr_at(OPTIM, 0)


def test_the_gradient_is_clipped_and_its_norm_before_clipping_logged(tmp_path: Path) -> None:
    clipped = Regression(optim=replace(OPTIM, max_grad_norm=1e-3, eps=1.0))  # large eps: the step follows the gradient
    free = Regression(optim=replace(OPTIM, max_grad_norm=None, eps=1.0))
    start = free.module.bias.detach().clone()
    norms = [trainer(task, tmp_path).turn(0)["student/grad_norm"] for task in (clipped, free)]
    assert norms[0] == norms[1] > 1e-3
    moved = [(task.module.bias.detach() - start).norm().item() for task in (clipped, free)]
    assert 0 < moved[0] < 0.01 * moved[1]


def test_only_the_moving_player_gets_gradients_and_only_while_it_moves(tmp_path: Path) -> None:
    class Watched(Duel):
        seen: list[tuple[str, bool, bool]]

        def loss(self, player: str, micro: Tensor) -> Loss:
            self.seen.append((player, self.critic.weight.requires_grad, self.first.weight.requires_grad))
            loss = super().loss(player, micro)
            other = self.student if player == "critic" else self.critic
            assert all(parameter.grad is None for parameter in other.parameters())
            return loss

    task = Watched(rest_until=0)
    task.last.bias.requires_grad_(False)  # frozen on purpose
    task.seen = []
    trainer(task, tmp_path, steps=1).run()
    assert task.seen == [("critic", True, False)] * 4 + [("student", False, True)] * 2
    assert task.critic.weight.requires_grad
    assert task.first.weight.requires_grad
    assert not task.last.bias.requires_grad


def test_a_player_that_rests_does_not_move_and_its_schedule_waits(tmp_path: Path) -> None:
    task = Duel(rest_until=2)
    before = copy.deepcopy(task.student.state_dict()["0.weight"])
    trainer_ = trainer(task, tmp_path)
    assert not any(name.startswith("student/") for name in trainer_.turn(0))
    trainer_.turn(1)
    assert torch.equal(task.first.weight, before)
    assert trainer_.turn(2)["student/lr"] == lr_at(OPTIM, 0)
    assert not torch.equal(task.first.weight, before)


def test_the_average_belongs_to_its_player(tmp_path: Path) -> None:
    trainer_ = duel(tmp_path, steps=6)
    trainer_.run()
    ema = trainer_.ema("student")
    assert ema is not None
    assert ema.updates == 4  # it rested twice
    assert trainer_.ema("critic") is None
    with pytest.raises(ValueError, match=r"no player 'teacher'; the players are \['critic', 'student'\]"):
        trainer_.ema("teacher")


def test_autocast_computes_in_bfloat16_and_keeps_float32_parameters(tmp_path: Path) -> None:
    class Peeking(Regression):
        dtypes: list[torch.dtype]

        def begin(self, batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                self.dtypes = [self.module(batch).dtype]
            return batch

        def loss(self, player: str, micro: Tensor) -> Loss:
            with torch.no_grad():
                self.module(micro)  # a weight that was cast here must still pass gradients below
            self.dtypes.append(self.module(micro).dtype)
            return super().loss(player, micro)

    task = Peeking()
    metrics = trainer(task, tmp_path, autocast=True).turn(0)
    assert task.dtypes == [torch.bfloat16, torch.bfloat16]
    assert task.module.weight.dtype == torch.float32
    assert metrics["student/grad_norm"] > 0


class Poisoned(Regression):
    """From ``poison`` on, the second of two micro batches is not finite."""

    poison = 3
    what = "loss"

    def begin(self, batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
        self.step = step
        return batch

    def loss(self, player: str, micro: Tensor) -> Loss:
        loss = super().loss(player, micro)
        if self.step < self.poison or torch.equal(micro, rows(self.step)[:4]):
            return loss
        if self.what == "loss":
            return Loss(loss.value * float("nan"), {"flow": float("nan"), "anchor": 1.0})
        infinite_slope = torch.sqrt((self.module.bias - self.module.bias.detach()).square().sum())
        return Loss(loss.value + infinite_slope, loss.metrics)


def test_a_loss_that_is_not_finite_stops_with_nothing_stepped(tmp_path: Path) -> None:
    task = Poisoned(micros=2)
    trainer_ = trainer(task, tmp_path, checkpoint_every=2, autocast=True)
    with pytest.raises(FloatingPointError) as caught:
        trainer_.run()
    said = str(caught.value)
    for part in (
        "player 'student'",
        "at step 3",
        "student/loss = nan",
        "student/flow = nan",
        "micro batches [1] of 2",
        f"the checkpoint after 2 steps is kept in {trainer_.state_path}",
        "lower the lr",
        "autocast to false",
    ):
        assert part in said
    assert "anchor" not in said
    assert task.module.weight.grad is None
    weight = task.module.weight.detach().clone()
    healthy = Regression(micros=2)
    trainer(healthy, tmp_path / "healthy", steps=3, autocast=True).run()
    assert torch.equal(weight, healthy.module.weight)  # three steps, and nothing of the fourth
    assert trainer_.restore() == 2


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    task = Poisoned(micros=2)
    task.what, task.poison = "gradient", 0
    with pytest.raises(FloatingPointError, match=r"student/grad_norm = nan.*no checkpoint had been written yet"):
        trainer(task, tmp_path).run()
    assert torch.equal(task.module.weight, Regression().module.weight)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 281474976710656 bytes."),
    ],
)
def test_running_out_of_memory_says_what_to_lower(tmp_path: Path, error: Exception) -> None:
    class Greedy(Regression):
        def loss(self, player: str, micro: Tensor) -> Loss:
            raise error

    with pytest.raises(MemoryError, match=r"step 0 did not fit.*batch size, the rollouts per prompt or the clip size"):
        trainer(Greedy(), tmp_path).run()


def test_the_allocator_still_words_it_this_way(tmp_path: Path) -> None:
    class Huge(Regression):
        def begin(self, batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
            return torch.empty(1 << 46)

    with pytest.raises(MemoryError, match="did not fit"):
        trainer(Huge(), tmp_path).run()


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    class Broken(Regression):
        def loss(self, player: str, micro: Tensor) -> Loss:
            raise RuntimeError("the shapes do not match")

    with pytest.raises(RuntimeError, match="the shapes do not match"):
        trainer(Broken(), tmp_path).run()


def test_a_loss_must_be_a_scalar_with_a_gradient(tmp_path: Path) -> None:
    class Vector(Regression):
        def loss(self, player: str, micro: Tensor) -> Loss:
            return Loss(self.module(micro))

    class Constant(Regression):
        def loss(self, player: str, micro: Tensor) -> Loss:
            return Loss(torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"shape \(8, 2\)"):
        trainer(Vector(), tmp_path).turn(0)
    with pytest.raises(ValueError, match="requires_grad=False"):
        trainer(Constant(), tmp_path).turn(0)


@pytest.mark.parametrize("names", [("a", "a"), ("a/b",), ("memory",), ()])
def test_names_of_players_must_be_told_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    task = Regression()
    task.players = tuple(Player(name=name, module=nn.Linear(2, 2), optim=OptimConfig(lr=0.1)) for name in names)
    with pytest.raises(ValueError, match="distinct names without a slash"):
        trainer(task, tmp_path)


def test_log_every_thins_the_file_but_keeps_the_last_step(tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []
    config = TrainerConfig(steps=8, log_every=3)
    Trainer(Regression(), rows, config, tmp_path, on_step=lambda step, metrics: seen.append(metrics)).run()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {step}' for step in (0, 3, 6, 7)]
    assert len(seen) == 8


def test_seeds_of_steps_are_stable_and_distinct() -> None:
    assert step_seed(7, 3) == 6148384659390418248  # on every machine and in every version
    assert len({step_seed(seed, step) for seed in range(20) for step in range(200)}) == 4000
    assert all(0 <= step_seed(seed, 1) < 2**63 for seed in range(100))


def test_a_run_has_at_least_one_step() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TrainerConfig(steps=0)
