"""A cached teacher is asked once, and what went wrong leaves nothing behind."""

from pathlib import Path

import pytest

from streamstill.media import fit
from streamstill.teachers import CachedTeacher, ClipStore, CollectReport, Teacher, collect
from streamstill.types import Clip, ClipRequest, Geometry
from tests.teachers.fakes import FailsAfter, NoiseTeacher, noise, question, same


def cached(teacher: Teacher, folder: Path) -> CachedTeacher:
    return CachedTeacher(teacher, ClipStore.open(folder / "clips"))


def test_the_teacher_is_asked_once(tmp_path: Path) -> None:
    teacher = NoiseTeacher()
    first, again = (cached(teacher, tmp_path).generate(question()) for _ in range(2))
    assert same(first, noise(question()))
    assert same(again, first)
    assert teacher.asked == [question()]


def test_another_seed_prompt_or_size_is_another_question(tmp_path: Path) -> None:
    teacher = NoiseTeacher()
    questions = [question(0), question(1), question(prompt="a blue ball"), question(size=16), question(frames=4)]
    for request in questions:
        assert same(cached(teacher, tmp_path).generate(request), noise(request))
    assert teacher.asked == questions


def test_another_teacher_is_another_question(tmp_path: Path) -> None:
    for name in ("one", "other"):
        teacher = NoiseTeacher(name)
        cached(teacher, tmp_path).generate(question())
        assert len(teacher.asked) == 1
        assert cached(teacher, tmp_path).name == name


def test_a_failed_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    teacher = cached(FailsAfter(0, ConnectionError("the teacher is away")), tmp_path)
    with pytest.raises(ConnectionError, match="the teacher is away"):
        teacher.generate(question())
    assert list(tmp_path.iterdir()) == []
    assert same(cached(NoiseTeacher(), tmp_path).generate(question()), noise(question()))


class Stubborn:
    """Answers every request in its own size."""

    name = "stubborn"

    def generate(self, request: ClipRequest) -> Clip:
        return noise(question(size=32))


class Fitted(Stubborn):
    def generate(self, request: ClipRequest) -> Clip:
        return fit(super().generate(request), request.geometry)


def test_an_answer_of_another_size_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'stubborn' answered with .*height=32.* was asked for .*height=8.*media\.fit"
    ):
        cached(Stubborn(), tmp_path).generate(question())
    assert list(tmp_path.iterdir()) == []
    assert cached(Fitted(), tmp_path).generate(question()).geometry == question().geometry


def test_collecting_asks_only_what_is_missing(tmp_path: Path) -> None:
    teacher, requests = NoiseTeacher(), [question(seed) for seed in range(7)]
    cached(teacher, tmp_path).generate(requests[3])
    progress: list[tuple[int, int]] = []
    report = collect(
        cached(teacher, tmp_path), [*requests, requests[0]], commit_every=3, on_clip=lambda *at: progress.append(at)
    )
    assert report == CollectReport(requests=7, known=1)
    assert report.asked == 6
    assert progress == [(done, 7) for done in range(2, 8)]
    assert sorted(request.seed for request in teacher.asked) == list(range(7))
    assert collect(cached(teacher, tmp_path), requests) == CollectReport(requests=7, known=7)
    assert all(same(cached(teacher, tmp_path).generate(request), noise(request)) for request in requests)
    assert len(teacher.asked) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("the teacher is away")])
def test_a_collection_that_stops_keeps_what_is_finished_and_goes_on(tmp_path: Path, error: BaseException) -> None:
    requests = [question(seed) for seed in range(9)]
    with pytest.raises(type(error)):
        collect(cached(FailsAfter(5, error), tmp_path), requests, commit_every=4)
    assert len(ClipStore.open(tmp_path / "clips")) == 5
    teacher = NoiseTeacher()
    assert collect(cached(teacher, tmp_path), requests) == CollectReport(requests=9, known=5)
    assert teacher.asked == requests[5:]


def test_collecting_commits_in_batches(tmp_path: Path) -> None:
    teacher, watcher = cached(NoiseTeacher(), tmp_path), ClipStore.open(tmp_path / "clips")
    safe: list[int] = []
    collect(
        teacher, [question(seed) for seed in range(7)], commit_every=3, on_clip=lambda *_: safe.append(len(watcher))
    )
    assert safe == [0, 0, 3, 3, 3, 6, 6]
    assert len(watcher) == 7
    with pytest.raises(ValueError, match="commit_every must be at least 1, got 0"):
        collect(teacher, [], commit_every=0)


def test_large_clips_are_committed_before_memory_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamstill.teachers.collection._PENDING_BYTES", 2 * 3 * 3 * 8 * 8)
    watcher, safe = ClipStore.open(tmp_path / "clips"), list[int]()
    collect(
        cached(NoiseTeacher(), tmp_path), [question(s) for s in range(5)], on_clip=lambda *_: safe.append(len(watcher))
    )
    assert safe == [0, 2, 2, 4, 4]


def test_the_geometry_of_a_run_is_a_question() -> None:
    geometry = Geometry(frames=3, height=8, width=8, fps=8.0)
    assert ClipRequest.of(geometry, prompt="a red ball", seed=0) == question()
