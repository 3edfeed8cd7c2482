"""Every recipe at a size that runs in a second or two."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from streamstill.config import with_overrides
from streamstill.recipes import Base, Folder, Quickstart
from streamstill.testing import tiny_student

SMALL = ["geometry.frames=8", "geometry.height=16", "geometry.width=16", "geometry.fps=8"]
AFD = ["afd_updates=2", "afd.adversary.rollouts_per_prompt=2", "afd.micro_batch=2"]
QUICKSTART = [
    *SMALL,
    *AFD,
    "clips=8",
    "warm.steps=4",
    "warm.batch=2",
    "warm.adversary_every=2",
    "warm.adversary_turns=1",
    "warm.adversary.rollouts_per_prompt=2",
    "prompts_per_update=2",
    "held_out_clips=6",
    "watched_prompts=2",
    "health.every=2",
]
FOLDER = [*SMALL, "geometry.width=32", *AFD, "warm_steps=3", "batch=2"]
BASE = [*SMALL, "steps=3", "batch=2", "prompts=8"]


def quickstart(base: Path, *changes: str) -> Quickstart:
    return with_overrides(Quickstart(), [*QUICKSTART, f"base={base}", *changes])


def folder(*changes: str) -> Folder:
    return with_overrides(Folder(), [*FOLDER, *changes])


def base(*changes: str) -> Base:
    return with_overrides(Base(), [*BASE, *changes])


def saved_student(path: Path, seed: int = 0) -> Path:
    """A tiny student's folder."""
    tiny_student(seed=seed).save_pretrained(path)
    return path


def as_flags(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def command(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """The real command in a process of its own, with as many threads as this one, so that bits can be compared."""
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-c", "from streamstill.cli.main import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
        },
    )


def streamstill(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The real entry point in this process; returns the exit status."""
    from streamstill.cli.main import main

    monkeypatch.setattr(sys, "argv", ["streamstill", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
