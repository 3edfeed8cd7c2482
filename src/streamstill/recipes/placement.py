"""``placement``: where the full-resolution blocks of a layout belong, learnt on the embedded loose world."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.config import require_positive, to_dict, write_json
from streamstill.flow.times import Sampling
from streamstill.recipes.base import SMALL, world_prompts
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, train
from streamstill.search.placement import END_TEMPERATURE, LOGIT_SCALE, START_TEMPERATURE, Decision, PlacementNet
from streamstill.search.ranking import Ranked, rank_orders
from streamstill.search.worths import SwapWorths, swap_worths
from streamstill.student.presets import preset
from streamstill.student.student import Student, StudentConfig, build_student
from streamstill.teachers import WorldTeacher
from streamstill.training.batches import Examples, fresh_batches
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig, NoisedExamples
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Geometry
from streamstill.worlds import LooseWorld

FORMAT = 1
RESULT = "placement.json"
HELD_OUT = 1_000_003  # added to the seed for clips and noise that training does not see


@dataclass(frozen=True, kw_only=True)
class PlacementRun:
    """Everything that fixes the run.

    Args:
        layout: the counts, and with them the depth; its order is what is searched.
        preset: whose width and heads the network has.
        settle: share of the steps in which only the weights learn; untaught weights would lead the logits astray.
        worth_bases: layouts that the worths are averaged over; 0 leaves the worths out.
        ranked: orders that are asked for their loss with the shared weights, best first in the result; 0 for none.
    """

    layout: str = "LLLSSSSS"
    group_size: int = 1
    preset: str = "nano"
    geometry: Geometry = SMALL
    steps: int = 2000
    settle: float = 0.25
    start_temperature: float = START_TEMPERATURE
    end_temperature: float = END_TEMPERATURE
    logit_scale: float = LOGIT_SCALE
    batch: int = 8
    prompts: int = 2000
    worth_bases: int = 4
    ranked: int = 100
    held_out_clips: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    learn: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(
            optim=OptimConfig(lr=2e-3, warmup_steps=100, decay="cosine", final_fraction=0.1, weight_decay=0.01),
            micro_batch=4,  # each has a mask of its own
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch", "prompts", "held_out_clips")
        if not 0 <= self.settle < 1:
            raise ValueError(f"settle is a share of the steps in [0, 1), got {self.settle}; the default is 0.25")
        if self.ranked < 0:
            raise ValueError(f"ranked must be 0 (no ranking) or more, got {self.ranked}")
        if self.worth_bases < 0 or self.worth_bases == 1:
            raise ValueError(f"worth_bases must be 0 (no worths) or at least 2, got {self.worth_bases}")
        if not min(self.start_temperature, self.end_temperature, self.logit_scale) > 0:
            raise ValueError(f"temperatures and logit_scale must be positive, got {self}")


@dataclass(frozen=True, kw_only=True)
class FoundLayout:
    """What a run found: the most likely layout, how decided it is, worths for a programme, and orders by their loss."""

    decision: Decision
    worths: SwapWorths | None
    ranking: tuple[Ranked, ...] = ()

    @property
    def layout(self) -> str:
        """The found layout, a letter for each block."""
        return self.decision.layout


@dataclass(frozen=True, eq=False)
class PlacedExamples:
    """Noised examples with the noise of the mask they are seen through."""

    noised: NoisedExamples
    noise_G: Tensor
    logits_learn: bool


class LearnedPlacement:
    """Flow matching through a mask that is drawn anew for every micro batch; logits and weights learn together.

    The paper does not say whether they take turns; together costs half the passes.
    """

    def __init__(self, learning: FlowMatching, net: PlacementNet, config: PlacementRun) -> None:
        self.learning, self.net, self.config = learning, net, config
        self._logits_learn = False

    @property
    def players(self) -> tuple[Player, ...]:
        """The student, whose network is the ``PlacementNet``."""
        return self.learning.players

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the player: the temperature is a function of the step."""
        return {}

    def begin(self, batch: Examples, step: int, generator: torch.Generator) -> Examples:
        """The batch; the temperature is set for this step."""
        config, fraction = self.config, step / max(self.config.steps - 1, 1)
        self.net.anneal(fraction, start=config.start_temperature, end=config.end_temperature)
        self._logits_learn = step >= config.settle * config.steps
        return self.learning.begin(batch, step, generator)

    def micro_batches(self, player: str, turn: Examples, generator: torch.Generator) -> Sequence[PlacedExamples]:
        """The batch in parts, each with a mask of its own."""
        parts = self.learning.micro_batches(player, turn, generator)
        return [PlacedExamples(part, self.net.noise(generator), self._logits_learn) for part in parts]

    def loss(self, player: str, micro: PlacedExamples) -> Loss:
        """The flow matching loss of the layout that the micro batch's mask stands for."""
        self.net.perturb(micro.noise_G, learns=micro.logits_learn)
        return self.learning.loss(player, micro.noised)

    def end(self, turn: Examples, step: int) -> Mapping[str, float]:
        """How far the logits are apart, and the temperature."""
        logits_G = self.net.logits_G.detach()
        spread = float(logits_G.max() - logits_G.min())
        return {"placement/spread": spread, "placement/temperature": self.net.temperature}


def placement_student(config: PlacementRun) -> tuple[Student, PlacementNet]:
    """A student with fresh weights, and the network in it that holds all layouts.

    Raises:
        ValueError: a layout that cannot be searched, or a clip size that does not fit.
    """
    codec, text = PatchCodec(), WordEncoderConfig()
    size = preset(config.preset, latent_channels=codec.latent_channels, text_width=text.width)
    network = replace(size, layout=config.layout)
    shape = StudentConfig(network=network, text=text, codec=codec, geometry=config.geometry, sampling=config.sampling)
    student = build_student(shape, seed=config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = PlacementNet(network, group_size=config.group_size, logit_scale=config.logit_scale)
    student.network = net
    return student, net


def run_placement(config: PlacementRun, out: Path, console: Console) -> FoundLayout:
    """Learn where the full groups belong; returns what was found and writes it to ``placement.json``.

    Raises:
        ValueError: see ``placement_student``; or the folder holds another run.
    """
    student, net = placement_student(config)
    run = RunFolder.open(out, recipe="placement", config=config)
    with run.stage("placement") as folder:
        settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=100, log_every=10)
        objective = LearnedPlacement(FlowMatching(student, config.learn), net, config)
        trainer = train(objective, world_batches(config, student), settings, folder, console, title="placement")
    averaged(trainer, "student", student)
    student.eval()
    with run.stage("worths"):
        loss_of = cache(held_out_loss(config, student, net))
        try:
            worths, ranking = _worths(config, loss_of), _ranking(config, loss_of)
        finally:
            net.fix(None)
        found = FoundLayout(decision=net.decided(), worths=worths, ranking=ranking)
    write_json(out / RESULT, _as_json(found, config))
    console.print(f"  layout {found.layout} -> {out / RESULT}")
    return found


def held_out_loss(config: PlacementRun, student: Student, net: PlacementNet) -> Callable[[str], float]:
    """The loss of a layout with the net's weights: always on the same clips, times and noise, none trained on."""
    seed = config.seed + HELD_OUT
    clips = world_batches(replace(config, batch=config.held_out_clips, seed=seed), student)(0)
    learning = FlowMatching(student, config.learn)
    micros = learning.micro_batches("student", clips, torch.Generator().manual_seed(seed))

    def loss_of(layout: str) -> float:
        net.fix(layout)
        with torch.no_grad():
            losses = [float(learning.loss("student", micro).value) * len(micro.t_BK) for micro in micros]
        return sum(losses) / config.held_out_clips

    return loss_of


def world_batches(config: PlacementRun, student: Student) -> Callable[[int], Examples]:
    """Fresh clips of the loose world, in the prompts of the quickstart's corner."""
    teacher = WorldTeacher(LooseWorld(), name="loose world")
    wordings = world_prompts(config.prompts, seed=config.seed)
    return fresh_batches(teacher, wordings, config.geometry, student.codec, batch=config.batch, seed=config.seed)


def _worths(config: PlacementRun, loss_of: Callable[[str], float]) -> SwapWorths | None:
    if not config.worth_bases:
        return None
    return swap_worths(
        loss_of,
        config.layout,
        bases=config.worth_bases,
        group_size=config.group_size,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _ranking(config: PlacementRun, loss_of: Callable[[str], float]) -> tuple[Ranked, ...]:
    if not config.ranked:
        return ()
    return rank_orders(
        loss_of,
        config.layout,
        most=config.ranked,
        group_size=config.group_size,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _as_json(found: FoundLayout, config: PlacementRun) -> dict[str, object]:
    letters = found.layout
    return {
        "format": FORMAT,
        "layout": letters,
        "counts": {letter: letters.count(letter) for letter in sorted(set(letters))},
        "group_size": config.group_size,
        "decision": to_dict(found.decision),
        "worths": None if found.worths is None else to_dict(found.worths),
        "ranking": [to_dict(one) for one in found.ranking],
        "settings": to_dict(config),
    }
