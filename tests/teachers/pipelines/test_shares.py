"""Work shared by processes that do not talk: every request is one process's, and no other's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamstill.teachers import ClipStore, request_key
from streamstill.teachers.pipelines.shares import Share
from tests.teachers.fakes import noise, question, same

REQUESTS = [question(seed, prompt=prompt) for prompt in ("a red ball", "a blue box") for seed in range(30)]
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}

WORKER = """
import sys
from pathlib import Path
from streamstill.teachers import CachedTeacher, ClipStore, collect
from streamstill.teachers.pipelines.shares import Share
from tests.teachers.fakes import NoiseTeacher
from tests.teachers.pipelines.test_shares import REQUESTS
teacher = CachedTeacher(NoiseTeacher(), ClipStore.open(Path(sys.argv[1])))
print(collect(teacher, Share.from_environment().of(REQUESTS)).asked)
"""


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_the_shares_are_all_of_the_work_and_do_not_overlap(processes: int) -> None:
    shares = [Share(rank=rank, processes=processes).of(REQUESTS) for rank in range(processes)]
    assert sorted((request for share in shares for request in share), key=REQUESTS.index) == REQUESTS
    for share in shares:
        assert share == sorted(share, key=REQUESTS.index)
        assert 0 < len(share) < 2.2 * len(REQUESTS) / processes


def test_a_longer_list_moves_no_request_to_another_process() -> None:
    share = Share(rank=1, processes=4)
    longer = [question(99), *reversed(REQUESTS), question(100)]
    assert [request for request in share.of(longer) if request in REQUESTS] == share.of(REQUESTS)[::-1]


def test_torchruns_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "HOME": "x"}
    assert Share.from_environment(given) == Share(rank=5, processes=8, local_rank=1)
    assert Share.from_environment({}) == Share()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Share.from_environment() == Share.from_environment(given)


@pytest.mark.parametrize("changes", [{"RANK": "one"}, {"WORLD_SIZE": "-2"}, {"LOCAL_RANK": None}])
def test_an_environment_that_is_not_torchruns_is_refused(changes: dict[str, str | None]) -> None:
    given = {name: value for name, value in {**ALONE, **changes}.items() if value is not None}
    with pytest.raises(
        ValueError, match=r"^RANK, WORLD_SIZE, LOCAL_RANK must all be whole numbers, got .*; start with"
    ):
        Share.from_environment(given)


def test_a_rank_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rank 2 of 2 processes \(local rank 0\) is no share .*; ranks count from 0"):
        Share.from_environment({**ALONE, "RANK": "2", "WORLD_SIZE": "2"})


def test_every_process_has_an_accelerator_of_its_own() -> None:
    share = Share(rank=5, processes=8, local_rank=1)
    assert [share.device(kind) for kind in ("cuda", "cpu", "cuda:3")] == ["cuda:1", "cpu", "cuda:3"]


def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    workers = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-W", "error", "-c", WORKER, str(tmp_path / "clips")]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    asked = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    store = ClipStore.open(tmp_path / "clips")
    assert sum(asked) == len(store) == len(REQUESTS)
    assert min(asked) > 0
    assert all(same(store.get(request_key("noise", request)), noise(request)) for request in REQUESTS)
