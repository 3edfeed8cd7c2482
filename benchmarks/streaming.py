"""How fast and how steadily a student streams: prints a table in Markdown.

    python benchmarks/streaming.py [--height 64 --width 64 --chunks 320 --threads 2]

End to end: noise, four sampling steps, the clean pass for the state, decode to uint8 frames. Weights are random: speed
does not depend on them. The first five chunks warm up and are not counted.
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

WARMUP, WINDOW = 5, 40  # chunks


def chunk_seconds(session: Session, chunks: int) -> list[float]:
    """Seconds of each chunk, end to end."""
    seconds = []
    for _ in range(chunks):
        start = time.perf_counter()
        session.next_chunk()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    geometry = Geometry(frames=16, height=asked.height, width=asked.width, fps=8)
    student = build_student(student_config(geometry, shift=8.0, steps=4), seed=0).eval()
    session = Session(student, "A red ball is dropped.", sampling=Sampling())
    start = time.perf_counter()
    frames = session.next_chunk().shape[0]
    first = time.perf_counter() - start
    seconds = chunk_seconds(session, WARMUP + WINDOW)[WARMUP:]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk_seconds(session, max(0, asked.chunks - WARMUP - WINDOW - 1 - WINDOW))
    late = chunk_seconds(session, WINDOW)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    early, end = statistics.median(seconds), statistics.median(late)
    print(f"nano, {sum(p.numel() for p in student.parameters()):,} parameters, {asked.height}x{asked.width}, 4 steps, ")
    print(f"float32, {asked.threads} threads, torch {torch.__version__}, {platform.machine()}\n")
    print("| frames a second | first chunk ms | ms a chunk, early | late | late / early | peak memory grew by MiB |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {frames / early:.0f} | {1e3 * first:.0f} | {1e3 * early:.1f} (chunks 6-45) | {1e3 * end:.1f} "
        f"(chunks {asked.chunks - WINDOW + 1}-{asked.chunks}) | {end / early:.3f} | {grown / 1024:.1f} |"
    )


if __name__ == "__main__":
    main()
