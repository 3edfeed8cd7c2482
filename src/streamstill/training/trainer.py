"""The training loop. It knows players and losses, and no method by name."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from streamstill.config import to_dict
from streamstill.training.checkpoint import (
    TrainingState,
    expected_optimizer_tensors,
    load_optimizer,
    optimizer_tensors,
    read_state,
    require_same_tensors,
    write_state,
)
from streamstill.training.devices import device_of, moved
from streamstill.training.ema import Ema, named_tensors
from streamstill.training.metric_log import MetricLog
from streamstill.training.objectives.objective import Loss, Objective, Player
from streamstill.training.optim import build_optimizer, lr_at
from streamstill.training.progress import Interruption, Progress, SilentProgress

BatchT = TypeVar("BatchT")
TurnT = TypeVar("TurnT")
MicroT = TypeVar("MicroT")
ValueT = TypeVar("ValueT")

# Before 2.11 a weight cast under no_grad was cached without its gradient, and a later forward silently used it.
_CAST_CACHE_SEES_GRADIENTS = torch.__version__ >= "2.11"  # a TorchVersion: compared number by number
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long a run is, what its randomness starts from, and how often it saves and logs (in steps)."""

    steps: int
    seed: int = 0
    checkpoint_every: int = 200
    log_every: int = 1
    autocast: bool = False  # forward passes and losses in bfloat16, parameters and optimiser as they are

    def __post_init__(self) -> None:
        if min(self.steps, self.checkpoint_every, self.log_every) < 1:
            raise ValueError(f"steps, checkpoint_every and log_every must be at least 1, got {self}")


class Trainer(Generic[BatchT, TurnT, MicroT]):
    """Runs an objective to its last step, from wherever ``folder`` says that it stopped.

    It trains where the players are: batches are moved to their device, and a state may be resumed on another one.
    Stopping after any step and running again gives the same bits as never stopping (on the CPU), because ``batches`` is
    a function of the step, every step has its own generator, and everything else is in ``folder/training``.
    """

    def __init__(
        self,
        objective: Objective[BatchT, TurnT, MicroT],
        batches: Callable[[int], BatchT],
        config: TrainerConfig,
        folder: Path,
        *,
        log: MetricLog | None = None,
        progress: Progress | None = None,
        on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.objective = objective
        self.batches = batches
        self.config = config
        self.folder = folder
        self.log = log or MetricLog(folder / "metrics.jsonl")
        self.progress = progress or SilentProgress()
        self.on_step = on_step
        self._movers: tuple[_Mover[MicroT], ...] = tuple(_Mover(player, config.steps) for player in objective.players)
        self._saved_step: int | None = None
        _require_names([mover.player.name for mover in self._movers])

    @property
    def state_path(self) -> Path:
        """The file that a run resumes from."""
        return self.folder / "training" / "state.safetensors"

    def ema(self, player: str) -> Ema | None:
        """The average of a player's module, or None when the player keeps none."""
        return self._mover(player).ema

    def run(self) -> None:
        """Perform the steps that are left; afterwards the modules hold the trained weights and the state is saved.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; nothing was stepped with it.
            KeyboardInterrupt: Ctrl-C; the running step was finished and saved, unless it came twice.
            MemoryError: a step did not fit.
            ValueError: the state in the folder is damaged or belongs to another run.
        """
        first = self.restore()
        if first >= self.config.steps:
            return
        self.log.rewind(first)
        for mover in self._movers:
            mover.player.module.train()
        with Interruption() as interruption, self.progress.running(first, self.config.steps):
            for step in range(first, self.config.steps):
                self._timed_turn(step)
                done = step + 1
                if interruption.requested or done == self.config.steps or done % self.config.checkpoint_every == 0:
                    self.save(done)
                if interruption.requested:
                    raise KeyboardInterrupt

    def turn(self, step: int) -> dict[str, float]:
        """Perform one step: every player moves once; returns what is worth logging."""
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        batch = moved(self.batches(step), self._device)
        with self._autocast():
            turn = self.objective.begin(batch, step, generator)
        metrics: dict[str, float] = {}
        for mover in self._movers:
            with self._alone(mover):
                moves = [self._move(mover, turn, step, generator) for _ in range(mover.player.steps_per_turn)]
            metrics.update(_prefixed(mover.player.name, _mean([move for move in moves if move])))
        metrics.update(self.objective.end(turn, step))
        return metrics

    def save(self, done: int) -> None:
        """Write the state after ``done`` steps."""
        tensors = self._tensors()
        for mover in self._movers:
            tensors.update(mover.optimizer_state())
        state = TrainingState(step=done, tensors=tensors, counters=self._counters(), config=self._config())
        write_state(self.state_path, state)
        self._saved_step = done

    def restore(self) -> int:
        """Take over the state in the folder, if there is one; returns how many steps are done.

        Raises:
            ValueError: the state is damaged, or of another architecture, seed or format; nothing was changed.
        """
        if not self.state_path.exists():
            return 0
        state = read_state(self.state_path)
        self._require_ours(state)
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state.tensors[name])
        for mover in self._movers:
            mover.resume(state)
        if state.torch_version != torch.__version__:
            self.progress.say(
                f"resuming a run of torch {state.torch_version} under torch {torch.__version__}: expect other last bits"
            )
        self._saved_step = state.step
        return state.step

    def _timed_turn(self, step: int) -> None:
        start = time.perf_counter()
        try:
            metrics = self.turn(step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"step {step} did not fit into memory; lower the batch size, the rollouts per prompt or the clip size, "
                f"or make the micro batches smaller, and run again ({self._kept()})"
            ) from error
        seconds = time.perf_counter() - start
        if step % self.config.log_every == 0 or step + 1 == self.config.steps:
            self.log.record(step, seconds, metrics)
        self.progress.stepped(step, seconds, metrics)
        if self.on_step is not None:
            self.on_step(step, metrics)

    def _move(self, mover: "_Mover[MicroT]", turn: TurnT, step: int, generator: torch.Generator) -> dict[str, float]:
        """One optimiser step of one player; returns nothing when the player rests."""
        name = mover.player.name
        with self._autocast():
            micros = self.objective.micro_batches(name, turn, generator)
        mover.optimizer.zero_grad(set_to_none=True)
        losses = []
        for micro in micros:
            with self._autocast():
                loss = self.objective.loss(name, micro)
            _require_scalar(name, loss)
            (loss.value / len(micros)).backward()
            losses.append(_detached(loss))
        if not losses:
            return {}
        metrics = {**_mean(losses), "grad_norm": float(mover.grad_norm())}
        self._require_finite(mover, losses, metrics, step)
        return {**metrics, "lr": mover.step(metrics["grad_norm"])}

    def _require_finite(
        self,
        mover: "_Mover[MicroT]",
        losses: Sequence[Mapping[str, float | Tensor]],
        metrics: Mapping[str, float],
        step: int,
    ) -> None:
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
            return
        mover.optimizer.zero_grad(set_to_none=True)
        name = mover.player.name
        culprits = ", ".join(f"{name}/{key} = {value}" for key, value in metrics.items() if not math.isfinite(value))
        micros = [number for number, loss in enumerate(losses) if not math.isfinite(loss["loss"])]
        raise FloatingPointError(
            f"player {name!r} met a value that is not finite at step {step}: {culprits}"
            + (f" (micro batches {micros} of {len(losses)})" if micros else "")
            + f"; nothing was stepped with it, and {self._kept()}; lower the lr or the max_grad_norm of {name!r}"
            + (", or set autocast to false" if self.config.autocast else "")
            + ", and run again"
        )

    def _kept(self) -> str:
        if self._saved_step is None:
            return "no checkpoint had been written yet"
        return f"the checkpoint after {self._saved_step} steps is kept in {self.state_path}"

    @contextmanager
    def _alone(self, mover: "_Mover[MicroT]") -> Iterator[None]:
        """Inside the block no other player's parameters require a gradient; a gradient may flow through them."""
        own = {id(parameter) for parameter in mover.player.module.parameters()}
        others = [p for other in self._movers if other is not mover for p in other.player.module.parameters()]
        frozen = [p for p in others if p.requires_grad and id(p) not in own]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    @property
    def _device(self) -> torch.device:
        """Where the players are."""
        return device_of(self._movers[0].player.module)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, torch.bfloat16, enabled=self.config.autocast, cache_enabled=_CAST_CACHE_SEES_GRADIENTS
        )

    def _mover(self, player: str) -> "_Mover[MicroT]":
        for mover in self._movers:
            if mover.player.name == player:
                return mover
        raise ValueError(f"there is no player {player!r}; the players are {[m.player.name for m in self._movers]}")

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for mover in self._movers:
            tensors.update(mover.tensors())
        for name, module in self.objective.memory.items():
            tensors.update(_prefixed(f"memory/{name}", named_tensors(module)))
        return tensors

    def _counters(self) -> dict[str, int]:
        return {f"{m.player.name}/{key}": value for m in self._movers for key, value in m.counters().items()}

    def _config(self) -> dict[str, object]:
        optims = {mover.player.name: to_dict(mover.player.optim) for mover in self._movers}
        return {"trainer": to_dict(self.config), "optim": optims}

    def _require_ours(self, state: TrainingState) -> None:
        seed = state.config["trainer"]["seed"]
        if seed != self.config.seed:
            raise ValueError(
                f"{self.state_path} was made with seed {seed}, this run has seed {self.config.seed}; "
                f"resume with seed={seed} or train in another folder"
            )
        expected = self._tensors()
        for mover in self._movers:
            expected.update(mover.expected_optimizer_state(state))
        require_same_tensors(self.state_path, expected, state.tensors)


class _Mover(Generic[MicroT]):
    """A player together with what the trainer keeps for it."""

    def __init__(self, player: Player, turns: int) -> None:
        moving = sum(player.moves(turn) for turn in range(turns))
        self.player = replace(player, optim=player.optim.over(moving * player.steps_per_turn))
        self.optimizer = build_optimizer(player.module, self.player.optim)
        self.ema = None if player.ema_decay is None else Ema(player.module, player.ema_decay)
        self.moves = 0

    def grad_norm(self) -> Tensor:
        return get_total_norm([p.grad for p in self._parameters() if p.grad is not None])

    def step(self, grad_norm: float) -> float:
        """Clip, step, average; returns the learning rate that was used."""
        limit = self.player.optim.max_grad_norm
        if limit is not None:
            clip_grads_with_norm_(self._parameters(), limit, torch.tensor(grad_norm))
        lr = lr_at(self.player.optim, self.moves)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.moves += 1
        if self.ema is not None:
            self.ema.update(self.player.module)
        return lr

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that exist from the start: the module's and the average's."""
        name = self.player.name
        tensors = _prefixed(f"{name}/module", named_tensors(self.player.module))
        return {**tensors, **_prefixed(f"{name}/ema", self.ema.averages if self.ema else {})}

    def optimizer_state(self) -> dict[str, Tensor]:
        return _prefixed(f"{self.player.name}/optimiser", optimizer_tensors(self.player.module, self.optimizer))

    def expected_optimizer_state(self, state: TrainingState) -> dict[str, Tensor]:
        expected = expected_optimizer_tensors(self.player.module, self.optimizer, self._saved_optimizer(state))
        return _prefixed(f"{self.player.name}/optimiser", expected)

    def counters(self) -> dict[str, int]:
        return {"moves": self.moves, **({"ema_updates": self.ema.updates} if self.ema else {})}

    def resume(self, state: TrainingState) -> None:
        """Take over the optimiser's state and the counters; the trainer copies the tensors."""
        load_optimizer(self.player.module, self.optimizer, self._saved_optimizer(state))
        self.moves = state.counters[f"{self.player.name}/moves"]
        if self.ema is not None:
            self.ema.updates = state.counters[f"{self.player.name}/ema_updates"]

    def _saved_optimizer(self, state: TrainingState) -> dict[str, Tensor]:
        prefix = f"{self.player.name}/optimiser/"
        return {name.removeprefix(prefix): tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's generator: the same on every machine, unrelated between steps and between seeds."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits


def _detached(loss: Loss) -> dict[str, float | Tensor]:
    numbers = {**loss.metrics, "loss": loss.value}
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in numbers.items()}


def _mean(rows: Sequence[Mapping[str, float | Tensor]]) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _prefixed(prefix: str, values: Mapping[str, ValueT]) -> dict[str, ValueT]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _require_names(names: Sequence[str]) -> None:
    bad = [name for name in names if not name or "/" in name or name == "memory"]
    if bad or not names or len(set(names)) < len(names):
        raise ValueError(
            f"players need distinct names without a slash, other than 'memory', got {list(names)}; rename them"
        )


def _require_scalar(player: str, loss: Loss) -> None:
    if loss.value.ndim or not loss.value.requires_grad:
        raise ValueError(
            f"the loss of player {player!r} must be a scalar that depends on its parameters, got "
            f"shape {tuple(loss.value.shape)} with requires_grad={loss.value.requires_grad}; "
            "take the mean and compute it with gradients enabled"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says, in whatever words, that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error) for sign in _OUT_OF_MEMORY)
