"""The replay buffer: what it remembers, what it draws, what it refuses, and that a stop loses none of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.testing import tiny_student
from streamstill.training.batches import PromptGroup
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.replay import PROMPT_BYTES, ReplayBuffer
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import dice, group
from tests.training.clips import C, F, H, W, latents

SHAPE = (2, 3, 4, 4)
ROLLOUTS = 4  # for each of the two prompts of a turn
PAIRS = 2 * ROLLOUTS


def numbered(first: int, count: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Pairs that can be told: the teacher's clip is all ``n``, the rollout all ``-n``, the prompt says n."""
    numbers = torch.arange(first, first + count).float()
    clips = numbers[:, None, None, None, None].expand(-1, *SHAPE)
    return clips, -clips, tuple(f"clip {int(n)}, žlutý kůň" for n in numbers)


def held(buffer: ReplayBuffer) -> set[int]:
    """The numbers of the pairs in the buffer, each of which must still be whole."""
    teacher, student, prompts = buffer.drawn(10**6, dice())
    numbers = [int(clip.mean()) for clip in teacher]
    assert [int(clip.mean()) for clip in student] == [-n for n in numbers]
    assert list(prompts) == [f"clip {n}, žlutý kůň" for n in numbers]
    assert len(set(numbers)) == len(numbers) == len(buffer)
    return set(numbers)


def adversary(replay: int, steps: int = 1) -> Adversary:
    torch.manual_seed(1)
    config = AdversaryConfig(rollouts_per_prompt=ROLLOUTS, replay=replay, steps_per_turn=steps)
    return Adversary(tiny_student(), MotionDiscriminator(16), replace(config, blinded=False))


def drawn(objective: Adversary, turn: Round, seed: int = 0) -> Comparison:
    (pairs,) = objective.micro_batches("discriminator", turn, dice(seed))
    assert isinstance(pairs, Comparison)
    return pairs


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [((3,), range(3)), ((3, 2), range(5)), ((3, 3), range(1, 6)), ((4, 4, 4), range(7, 12)), ((9,), range(4, 9))],
)
def test_the_newest_pairs_stay_whole_and_the_oldest_go(sizes: tuple[int, ...], kept: range) -> None:
    buffer, first = ReplayBuffer(5, SHAPE), 0
    for size in sizes:
        buffer.add(*numbered(first, size))
        first += size
    assert held(buffer) == set(kept)


def test_what_is_drawn_is_random_and_never_twice_the_same() -> None:
    buffer = ReplayBuffer(20, SHAPE)
    buffer.add(*numbered(0, 20))
    first, again, other = (buffer.drawn(8, dice(seed))[2] for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 8


def test_an_empty_buffer_gives_nothing() -> None:
    teacher, student, prompts = ReplayBuffer(4, SHAPE).drawn(3, dice())
    assert teacher.shape == student.shape == (0, *SHAPE)
    assert prompts == ()


def long_prompt() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    teacher, student, _ = numbered(7, 2)
    return teacher, student, ("short", "é" * (PROMPT_BYTES // 2 + 1))


def short_clips() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    teacher, student, prompts = numbered(7, 2)
    return teacher[:, :1], student, prompts


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            long_prompt,
            rf"at most {PROMPT_BYTES} bytes and this one has {PROMPT_BYTES + 2}: 'éé.*set adversary.replay=0",
        ),
        (short_clips, r"holds latents of shape \(2, 3, 4, 4\), got \(1, 3, 4, 4\) of the teacher"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    pairs: Callable[[], tuple[Tensor, Tensor, tuple[str, ...]]], said: str
) -> None:
    buffer = ReplayBuffer(4, SHAPE)
    buffer.add(*numbered(0, 3))
    with pytest.raises(ValueError, match=said):
        buffer.add(*pairs())
    assert held(buffer) == {0, 1, 2}


def test_a_number_of_pairs_below_none_is_refused() -> None:
    with pytest.raises(ValueError, match="replay is a number of pairs, got -1; 0 remembers none"):
        AdversaryConfig(replay=-1)


def test_a_turn_is_remembered_once_however_often_the_discriminator_steps() -> None:
    objective = adversary(replay=10 * PAIRS)
    assert objective.replay is not None
    for turn, expected in (
        (objective.begin(group(), 0, dice()), PAIRS),
        (objective.begin(group(), 1, dice()), 2 * PAIRS),
    ):
        for seed in range(3):
            assert len(drawn(objective, turn, seed).prompts) == PAIRS
            assert len(objective.replay) == expected


def test_pairs_of_earlier_turns_come_back_with_their_own_prompt() -> None:
    objective = adversary(replay=10 * PAIRS)
    made: dict[tuple[float, ...], str] = {}
    for number, prompts in enumerate((("one", "two"), ("three", "four"))):
        clips = latents(PAIRS, seed=number).unflatten(0, (2, ROLLOUTS))
        turn = Round(PromptGroup(clips[:, :2], prompts), clips)
        pixels = objective.seen(clips.flatten(0, 1), dice())
        made |= {tuple(row.flatten()[:9].tolist()): prompt for row, prompt in zip(pixels, turn.prompts, strict=True)}
        drawn(objective, turn)
    pairs = [drawn(objective, turn, seed) for seed in range(8)]
    met = {prompt for pair in pairs for prompt in pair.prompts}
    assert met == {"one", "two", "three", "four"}
    for pair in pairs:
        for side in (pair.teacher_BFCHW, pair.student_BFCHW):
            assert [made[tuple(row.flatten()[:9].tolist())] for row in side] == list(pair.prompts)


def test_without_a_buffer_only_the_turn_itself_is_seen() -> None:
    objective = adversary(replay=0)
    assert objective.replay is None
    assert "replay" not in objective.memory
    turn = Round(PromptGroup(latents(4).unflatten(0, (2, 2)), ("a", "b")), latents(8, seed=1).unflatten(0, (2, 4)))
    assert drawn(objective, turn).prompts == turn.prompts


def test_a_student_of_other_clips_is_refused() -> None:
    clips = torch.zeros(2, 2, F + 1, C, H, W)
    objective = adversary(replay=8)
    with pytest.raises(ValueError, match=rf"holds latents of shape \({F}, {C}, {H}, {W}\), got \({F + 1}, "):
        objective.micro_batches("discriminator", Round(PromptGroup(clips, ("a", "b")), clips), dice())


def test_what_was_remembered_survives_a_stop(tmp_path: Path) -> None:
    states = []
    for name, stops in (("whole", (3,)), ("stopped", (1, 2, 3))):
        for steps in stops:
            objective = adversary(replay=2 * PAIRS, steps=2)
            Trainer(objective, group, TrainerConfig(steps=steps), tmp_path / name).run()
        states.append((tmp_path / name / "training" / "state.safetensors").read_bytes())
    assert states[0] == states[1]
    assert objective.replay is not None
    assert int(objective.replay.added) == 3 * PAIRS
    assert len(objective.replay) == 2 * PAIRS
