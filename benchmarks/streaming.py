"""How fast and how steadily a student streams: prints a table in Markdown.

    python benchmarks/streaming.py [--height 64 --width 64 --chunks 300 --threads 2]

End to end: noise, four sampling steps, the clean pass for the state, decode to uint8 frames. Weights are random: speed
does not depend on them. Medians; early and late chunks are timed in turns.
"""

import argparse
import platform
import resource
import statistics
import time

import torch

from streamstill.recipes.base import student_config
from streamstill.streaming.rollout import Sampling
from streamstill.streaming.session import Session
from streamstill.student.student import build_student
from streamstill.types import Geometry

EARLY, PAIRS = 5, 40  # chunks


def seconds_of_next(session: Session) -> float:
    """Seconds of one chunk, end to end."""
    start = time.perf_counter()
    session.next_chunk()
    return time.perf_counter() - start


def early_and_late(session: Session, late: Session, chunks: int) -> tuple[list[float], list[float]]:
    """Seconds of chunk ``EARLY`` and of the chunks after ``chunks``, timed in turns: both meet the same machine."""
    for _ in range(chunks):
        late.next_chunk()
    pairs = []
    for _ in range(PAIRS):
        session.restart()
        for _ in range(EARLY - 1):
            session.next_chunk()
        pairs.append((seconds_of_next(session), seconds_of_next(late)))
    young, old = zip(*pairs, strict=True)
    return list(young), list(old)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    geometry = Geometry(frames=16, height=asked.height, width=asked.width, fps=8)
    student = build_student(student_config(geometry, shift=8.0, steps=4), seed=0).eval()
    session, late = (Session(student, "A red ball is dropped.", sampling=Sampling()) for _ in range(2))
    start = time.perf_counter()
    frames = session.next_chunk().shape[0]
    first = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    young, old = early_and_late(session, late, asked.chunks)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    early, end = statistics.median(young), statistics.median(old)
    print(f"nano, {sum(p.numel() for p in student.parameters()):,} parameters, {asked.height}x{asked.width}, 4 steps, ")
    print(f"float32, {asked.threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    print(
        f"| frames a second | first chunk ms | chunk {EARLY} ms | chunk {asked.chunks} ms | ratio | memory grew, MiB |"
    )
    print("|---|---|---|---|---|---|")
    print(
        f"| {frames / early:.0f} | {1e3 * first:.0f} | {1e3 * early:.1f} | {1e3 * end:.1f} | {end / early:.3f} "
        f"| {grown / 1024:.1f} |"
    )


if __name__ == "__main__":
    main()
