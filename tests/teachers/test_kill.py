"""The kill test: a writer is killed at any moment, and nothing that it acknowledged is lost or half there."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import pytest

from streamstill.teachers import ClipStore, request_key
from tests.teachers.fakes import noise, question, same

# Appends batches of 1 to 5 clips and prints after each commit how many are acknowledged; may compact now and then.
WRITER = """
import sys
from pathlib import Path
from streamstill.teachers import Answer, ClipStore
from tests.teachers.fakes import noise, question
store = ClipStore.open(Path(sys.argv[1]))
done = len(store)
print(done, flush=True)
while done < int(sys.argv[2]):
    batch = [question(seed, size=48) for seed in range(done, done + 1 + done % 5)]
    store.add(Answer(teacher="noise", request=request, clip=noise(request)) for request in batch)
    done += len(batch)
    print(done, flush=True)
    if sys.argv[3] == "compact" and done % 4 == 0:
        store.compact()
"""


def start_writer(store: Path, until: int = 10**9, *, compact: bool = False) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(store), str(until), "compact" if compact else ""]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def key(seed: int) -> str:
    return request_key("noise", question(seed, size=48))


def require_whole(store: ClipStore, clips: int) -> None:
    """The clips 0 to ``clips`` and no others are there, bit for bit."""
    assert store.keys() == tuple(key(seed) for seed in range(clips))
    for seed in range(clips):
        assert same(store.get(key(seed)), noise(question(seed, size=48)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(0)
    for attempt in range(8):
        with start_writer(tmp_path / "clips", compact=attempt % 2 == 1) as writer:
            assert writer.stdout is not None
            acknowledged = int(writer.stdout.readline())
            time.sleep(chance.uniform(0, 0.4))
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        store = ClipStore.open(tmp_path / "clips")
        assert acknowledged <= len(store) <= acknowledged + 5  # a commit may have finished unannounced
        require_whole(store, len(store))
    assert len(store) > 20
    with start_writer(tmp_path / "clips", until=len(store) + 1) as last:
        assert last.wait() == 0
    require_whole(store, len(store))
    assert lance.dataset(str(tmp_path / "clips")).count_rows() == len(store)


@pytest.mark.slow
def test_a_store_is_read_while_another_process_writes_and_one_compacts(tmp_path: Path) -> None:
    store, seen = ClipStore.open(tmp_path / "clips"), [0]
    with start_writer(tmp_path / "clips", until=150) as writer:
        while writer.poll() is None:
            seen.append(len(store))
            for seed in random.Random(len(seen)).sample(range(seen[-1]), min(3, seen[-1])):
                assert same(store.get(key(seed)), noise(question(seed, size=48)))
            if len(seen) % 10 == 0:
                store.compact()
        assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    require_whole(ClipStore.open(tmp_path / "clips"), len(store))
    assert len(store) >= 150


@pytest.mark.slow
def test_writers_that_start_at_once_share_one_store(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path / "clips", until=40) for _ in range(2)]
    for writer in writers:
        with writer:
            writer.communicate()
            assert writer.returncode == 0
    store = ClipStore.open(tmp_path / "clips")
    assert sorted(store.keys()) == sorted(key(seed) for seed in range(len(store)))
    assert len(store) >= 40
    assert all(same(store.get(key(seed)), noise(question(seed, size=48))) for seed in range(len(store)))


# Waits for a moment and then makes the store, or appends to it, with the one clip of its number.
STARTER = """
import sys, time
from pathlib import Path
from streamstill.teachers import Answer, ClipStore
from tests.teachers.fakes import noise, question
import lance
request = question(int(sys.argv[2]), size=48)
answer = Answer(teacher="noise", request=request, clip=noise(request))
for moment in range(4):
    store = ClipStore.open(Path(sys.argv[1]) / str(moment))
    time.sleep(max(0.0, float(sys.argv[3]) + 0.3 * moment - time.time()))
    store.add([answer])
"""


@pytest.mark.slow
def test_of_those_who_make_a_store_at_the_same_moment_nobody_loses_a_clip(tmp_path: Path) -> None:
    start = str(time.time() + 3.0)
    starters = [subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path), str(seed), start]) for seed in range(4)]
    assert [starter.wait() for starter in starters] == [0] * 4
    for moment in range(4):
        store = ClipStore.open(tmp_path / str(moment))
        assert sorted(store.keys()) == sorted(key(seed) for seed in range(4))
