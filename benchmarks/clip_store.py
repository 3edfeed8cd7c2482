"""How fast the teacher cache appends, reads and lists: prints the table of docs/benchmarks.md.

    python benchmarks/clip_store.py [--clips 640] [--rows 1000000] [--seconds 10] [--noisy 0.5]
    python benchmarks/clip_store.py --rows 0 --store s3://BUCKET/DIR --endpoint http://127.0.0.1:9000

Clips are 24x64x64, drawn by the embedded world or noise, which no compression shortens. The million
rows have one pixel each: listing reads none. Readers and the writer are processes of their own. The keys
of an S3-compatible service come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamstill.teachers import Answer, ClipStore, WorldTeacher, request_key
from streamstill.teachers.place import FILE_FORMAT, Place
from streamstill.teachers.store import schema
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World

FRAMES, SIDE, FPS = 24, 64, 8.0
COMMIT = 16  # clips, as `collect` commits
READERS = 8
DISTINCT = 64  # clips that are made; the rest repeat their pixels under other seeds
BLOCK = 100_000  # rows written at once
TEACHER = "benchmark"


def request(seed: int) -> ClipRequest:
    """The question for clip number ``seed``."""
    return ClipRequest(prompt="A red ball is dropped.", seed=seed, frames=FRAMES, height=SIDE, width=SIDE, fps=FPS)


def pixels(count: int, noisy: float = 0.5) -> list[Clip]:
    """Drawn clips, and this share of noise."""
    world, dice = WorldTeacher(World()), np.random.default_rng(0)
    noise = [dice.integers(0, 256, (FRAMES, 3, SIDE, SIDE), dtype=np.uint8) for _ in range(int(noisy * count))]
    drawn = [world.generate(request(seed)) for seed in range(count - len(noise))]
    return drawn + [Clip(frames_FCHW=each, fps=FPS) for each in noise]


def answers(clips: list[Clip], first: int, count: int) -> list[Answer]:
    """The next answers to append."""
    return [
        Answer(teacher=TEACHER, request=request(seed), clip=clips[seed % len(clips)])
        for seed in range(first, first + count)
    ]


def append(store: ClipStore, clips: list[Clip], count: int, *, commit: int) -> float:
    """Clips a second."""
    start, before = time.perf_counter(), len(store)
    for first in range(before, before + count, commit):
        store.add(answers(clips, first, min(commit, before + count - first)))
    return count / (time.perf_counter() - start)


def read(store: ClipStore, there: int, count: int, seed: int) -> float:
    """Clips a second, in random order."""
    order = np.random.default_rng(seed).integers(0, there, count).tolist()
    start = time.perf_counter()
    for number in order:
        store.get(request_key(TEACHER, request(number)))
    return count / (time.perf_counter() - start)


def read_many(store: ClipStore, there: int, count: int, seed: int) -> float:
    """Clips a second, in random order, 64 at once."""
    order = np.random.default_rng(seed).integers(0, there, count).tolist()
    keys = [request_key(TEACHER, request(number)) for number in order]
    start = time.perf_counter()
    for first in range(0, count, 64):
        store.get_many(keys[first : first + 64])
    return count / (time.perf_counter() - start)


def read_epoch(store: ClipStore, seed: int) -> float:
    """Clips a second, all of them once in a random order."""
    import torch  # not by the readers: eight of them would load it

    start = time.perf_counter()
    count = sum(1 for _ in store.epoch(generator=torch.Generator().manual_seed(seed)))
    return count / (time.perf_counter() - start)


def copied(store: ClipStore) -> Iterator[tuple[str, float, str]]:
    """How fast a far store is copied to a folder, and read there."""
    with tempfile.TemporaryDirectory() as folder:
        start, copy = time.perf_counter(), ClipStore.open(folder)
        yield "copied to a folder, clips/s", store.copy_to(copy) / (time.perf_counter() - start), "-"
        yield "random read of that copy, clips/s", read(copy, len(copy), len(copy), seed=5), ">= 500"


def write_rows(place: Path, count: int) -> None:
    """A store of so many tiny clips, 256 rows a file as after ``compact``."""
    import lance
    import pyarrow as pa

    for first in range(0, count, BLOCK):
        seeds = range(first, min(first + BLOCK, count))
        columns: dict[str, Any] = {
            "key": [hashlib.sha256(str(seed).encode()).hexdigest() for seed in seeds],
            "teacher": [TEACHER] * len(seeds),
            "prompt": [f"ball number {seed % 5000} is dropped" for seed in seeds],
            "seed": seeds,
            "fps": [FPS] * len(seeds),
            "created": [1.8e9] * len(seeds),
            "provenance": ["{}"] * len(seeds),
            "pixels": [b"rgb"] * len(seeds),
            **{name: [1] * len(seeds) for name in ("frames", "height", "width")},
        }
        table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema()}, schema=schema())
        lance.write_dataset(
            table,
            str(place),
            mode="append" if first else "create",
            data_storage_version=FILE_FORMAT,
            enable_stable_row_ids=True,
            max_rows_per_file=256,
        )


def read_row(store: ClipStore, key: str) -> None:
    """All that ``get`` does but to make a clip: the rows hold no whole pixels."""
    assert store._rows.take([key])[0]["pixels"] == b"rgb"


def timed(call: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """The median seconds of a call, and what it gave."""
    seconds, given = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        given = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), given


def follow(path: str, there: int, seconds: float, seed: int, noisy: float) -> None:
    """In its own process: when told, read and check clips and follow the writer until the time is over."""
    store, clips, done, seen = ClipStore.open(path), pixels(DISTINCT, noisy), 0, [there]
    print("ready", flush=True)
    sys.stdin.readline()
    end, dice = time.perf_counter() + seconds, np.random.default_rng(seed)
    while time.perf_counter() < end:
        number = int(dice.integers(0, seen[-1]))
        clip = store.get(request_key(TEACHER, request(number)))
        if not np.array_equal(clip.frames_FCHW, clips[number % len(clips)].frames_FCHW):
            raise SystemExit(f"clip {number} is not what was written")
        done += 1
        if done % 50 == 0:
            seen.append(len(store))
    if seen != sorted(seen):
        raise SystemExit(f"clips went away: {seen}")
    print(done / seconds, flush=True)


def together(path: str, clips: list[Clip], seconds: float, noisy: float) -> tuple[float, float]:
    """Clips a second of one writer and of all its readers."""
    store = ClipStore.open(path)
    readers = [_reader(path, len(store), seconds, seed, noisy) for seed in range(READERS)]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    start, before = time.perf_counter(), len(store)
    while time.perf_counter() < start + seconds:
        store.add(answers(clips, len(store), COMMIT))
    written = (len(store) - before) / (time.perf_counter() - start)
    return written, sum(float(reader.communicate()[0]) for reader in readers)


def _reader(path: str, there: int, seconds: float, seed: int, noisy: float) -> "subprocess.Popen[str]":
    words = ["--follow", path, str(there), str(seconds), str(seed), str(noisy)]
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(place: str, arguments: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """What was measured, with its target."""
    clips, store = pixels(DISTINCT, arguments.noisy), ClipStore.open(place)
    yield "append, 16 clips a commit, clips/s", append(store, clips, arguments.clips, commit=COMMIT), ">= 300"
    yield "append, one clip a commit, clips/s", append(store, clips, arguments.clips // 8, commit=1), "-"
    yield "random read, clips/s", read(ClipStore.open(place), len(store), arguments.clips, seed=1), ">= 500"
    yield "random read, 64 at once, clips/s", read_many(store, len(store), arguments.clips, seed=3), ">= 500"
    yield "epoch in random order, clips/s", read_epoch(ClipStore.open(place), seed=4), ">= 500"
    writing, reading = together(str(place), clips, arguments.seconds, arguments.noisy)
    yield f"1 writer beside {READERS} readers, clips/s written", writing, "-"
    yield f"{READERS} readers beside 1 writer, clips/s read by all", reading, "-"
    store.compact()
    yield "after compact: random read, clips/s", read(store, len(store), arguments.clips, seed=2), ">= 500"
    yield "after compact: epoch in random order, clips/s", read_epoch(ClipStore.open(place), seed=6), ">= 500"
    if Place.of(place).remote:
        yield from copied(store)


def measure_list(place: Path, rows: int) -> Iterator[tuple[str, float, str]]:
    """How long it takes to open and list a long store."""
    write_rows(place, rows)
    seconds, keys = timed(lambda: ClipStore.open(place).keys())
    assert len(keys) == rows
    yield f"open and list {rows} keys, seconds", seconds, "< 2"
    store = ClipStore.open(place)
    seconds, found = timed(lambda: store.find(prompt="ball number 7 is dropped"))
    assert len(found) == -(-(rows - 7) // 5000)
    yield f"find a prompt among {rows}, seconds", seconds, "-"
    seconds, found = timed(lambda: store.find(teacher=TEACHER), rounds=1)
    assert len(found) == rows
    yield f"find all {rows}, seconds", seconds, "-"
    yield "is a key there, microseconds", 1e6 * timed(lambda: keys[rows // 2] in store)[0], "-"
    places = iter(np.random.default_rng(0).integers(0, rows, 20).tolist())
    yield (
        f"get one of {rows}, milliseconds",
        1e3 * timed(lambda: read_row(store, keys[next(places)]), rounds=20)[0],
        "-",
    )


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=640)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the long store; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of readers and a writer together")
    parser.add_argument("--noisy", type=float, default=0.5, help="share of clips that are noise")
    parser.add_argument("--store", help="where to put the clips; without it a folder that is deleted")
    parser.add_argument("--endpoint", help="of an S3-compatible service, for --store s3://BUCKET/DIR")
    parser.add_argument("--follow", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.follow:
        path, there, seconds, seed, noisy = arguments.follow
        follow(path, int(there), float(seconds), int(seed), float(noisy))
        return
    if arguments.endpoint:
        os.environ["AWS_ENDPOINT_URL"] = arguments.endpoint
    print("| what | measured | target |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, value, target in everything(Path(temporary), arguments):
            print(f"| {name} | {value:.3g} | {target} |", flush=True)


def everything(temporary: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """The rows of the table."""
    yield from measure(arguments.store or str(temporary / "clips"), arguments)
    if arguments.rows:
        yield from measure_list(temporary / "rows", arguments.rows)


if __name__ == "__main__":
    main()
