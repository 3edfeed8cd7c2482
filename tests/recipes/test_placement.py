"""The recipe that learns a placement: what it leaves, that it resumes exactly, that its counts hold throughout."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from streamstill.config import with_overrides
from streamstill.recipes.placement import (
    LearnedPlacement,
    PlacedExamples,
    PlacementRun,
    held_out_loss,
    placement_student,
    run_placement,
    world_batches,
)
from streamstill.search.placement import PlacementNet
from streamstill.training.objectives.flow_matching import FlowMatching
from streamstill.training.objectives.objective import Loss
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.recipes.tiny import SMALL, files, read

STEPS = 6


def tiny(*changes: str) -> PlacementRun:
    sizes = ["batch=2", "prompts=8", "held_out_clips=3", "worth_bases=2", f"steps={STEPS}"]
    learn = ["learn.micro_batch=1", "learn.optim.warmup_steps=0", "learn.optim.decay=constant"]
    return with_overrides(PlacementRun(layout="LSSS"), [*SMALL, *sizes, *learn, *changes])


def quiet() -> Console:
    return Console(quiet=True)


class Watched(LearnedPlacement):
    """Writes down the full groups of every pass, and the temperature of every step."""

    def __init__(self, learning: FlowMatching, net: PlacementNet, config: PlacementRun) -> None:
        super().__init__(learning, net, config)
        self.counts: list[float] = []
        self.temperatures: list[float] = []

    def loss(self, player: str, micro: PlacedExamples) -> Loss:
        loss = super().loss(player, micro)
        self.counts.append(float(self.net.mask().detach().sum()))
        self.temperatures.append(self.net.temperature)
        return loss


def trained(folder: Path, stop: int, config: PlacementRun) -> Watched:
    """A run that knows nothing but its folder, up to a step."""
    student, net = placement_student(config)
    objective = Watched(FlowMatching(student, config.learn), net, config)
    Trainer(objective, world_batches(config, student), TrainerConfig(steps=stop, seed=3), folder).run()
    return objective


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    folder = tmp_path_factory.mktemp("never_stopped")
    return folder, trained(folder, STEPS, tiny("settle=0.5"))


@pytest.mark.parametrize("stop", [1, 3, 5])  # before, at and after the step where the logits begin to learn
def test_stopping_and_running_again_equals_never_stopping(
    tmp_path: Path, never_stopped: tuple[Path, Watched], stop: int
) -> None:
    trained(tmp_path, stop, tiny("settle=0.5"))
    trained(tmp_path, STEPS, tiny("settle=0.5"))
    state = "training/state.safetensors"
    assert (tmp_path / state).read_bytes() == (never_stopped[0] / state).read_bytes()


def test_every_pass_has_the_counts_of_the_layout(never_stopped: tuple[Path, Watched]) -> None:
    assert never_stopped[1].counts == [1.0] * (2 * STEPS)  # two micro batches a step


def test_the_temperature_falls_from_its_start_to_its_end(never_stopped: tuple[Path, Watched]) -> None:
    seen = never_stopped[1].temperatures[::2]
    assert seen == sorted(seen, reverse=True)
    assert (seen[0], seen[-1]) == pytest.approx((tiny().start_temperature, tiny().end_temperature))


def test_the_logits_rest_until_the_weights_have_settled(tmp_path: Path) -> None:
    resting = trained(tmp_path, 3, tiny("settle=0.5")).net
    assert resting.raw_logits_G.tolist() == [0.0] * 4
    moving = trained(tmp_path, STEPS, tiny("settle=0.5")).net
    assert moving.raw_logits_G.abs().min() > 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement") / "run"
    run_placement(tiny("layout=LLSSSS", "group_size=2"), folder, quiet())
    return folder


def test_a_run_leaves_a_placement_that_says_how_it_was_found(out: Path) -> None:
    found = read(out / "placement.json")
    assert {"placement.json", "recipe.json", "seconds.json", "placement/metrics.jsonl"} <= files(out)
    assert (found["format"], found["counts"], found["group_size"]) == (1, {"L": 2, "S": 4}, 2)
    assert found["layout"] == found["decision"]["layout"] in ("LLSSSS", "SSLLSS", "SSSSLL")
    for name in ("logits", "probabilities", "entropies"):
        assert len(found["decision"][name]) == 3
    assert sum(found["decision"]["probabilities"]) == pytest.approx(1)
    assert {letter: len(worths) for letter, worths in found["worths"]["worths"].items()} == {"L": 6, "S": 6}
    assert found["settings"]["layout"] == "LLSSSS"
    assert set(read(out / "seconds.json")) == {"placement", "worths"}


def test_the_same_command_again_trains_nothing_and_finds_the_same(out: Path) -> None:
    state, found = out / "placement/training/state.safetensors", read(out / "placement.json")
    written = state.stat().st_mtime_ns
    again = run_placement(tiny("layout=LLSSSS", "group_size=2"), out, quiet())
    assert state.stat().st_mtime_ns == written
    assert read(out / "placement.json") == found
    assert again.layout == found["layout"]


def test_worths_can_be_left_out_and_an_average_can_be_kept(tmp_path: Path) -> None:
    found = run_placement(tiny("worth_bases=0", "learn.ema_decay=0.9", "steps=2"), tmp_path / "run", quiet())
    assert found.worths is None
    assert read(tmp_path / "run/placement.json")["worths"] is None


def test_a_held_out_loss_is_that_of_the_layout_alone_and_the_same_every_time() -> None:
    config = tiny()
    student, net = placement_student(config)
    loss_of = held_out_loss(config, student, net)
    first = {layout: loss_of(layout) for layout in ("LSSS", "SSSL", "LLSS")}
    assert len(set(first.values())) == 3
    assert {layout: loss_of(layout) for layout in first} == first
    student.network = net.extract("SSSL")
    assert held_out_loss(config, student, net)("LSSS") == first["SSSL"]


def test_the_net_starts_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = placement_student(tiny())[1].state_dict()
    torch.manual_seed(2)
    other = placement_student(tiny())[1].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=0", "steps must be at least 1"),
        ("settle=1.0", r"settle is a share of the steps in \[0, 1\), got 1.0"),
        ("worth_bases=1", "worth_bases must be 0 .* or at least 2, got 1"),
        ("end_temperature=0.0", "temperatures and logit_scale must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("layout=LLLL", "one full-resolution kind among S blocks"),
        ("group_size=3", "groups of 3 do not divide"),
        ("preset=nan", "unknown preset 'nan'.*did you mean 'nano'"),
        ("geometry.height=30", "height 30 is not divisible by 8"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_is_written(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_placement(tiny(change), tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()
