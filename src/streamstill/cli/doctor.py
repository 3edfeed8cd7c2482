"""``streamstill doctor``: what this machine has, and what would get in the way."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from streamstill.cli.shell import say_next
from streamstill.media import read_clip, write_clip
from streamstill.recipes.quickstart import shipped_base
from streamstill.teachers import Answer, ClipStore
from streamstill.types import Clip, ClipRequest

LEAST_FREE = 2 * 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """One line of the report; a problem says what to do."""

    what: str
    found: str
    problem: str = ""


def examine(console: Console) -> bool:
    """Print every finding; whether nothing is broken."""
    findings = [_run(what, check) for what, check in CHECKS.items()]
    for finding in findings:
        mark = "[red]!![/red]" if finding.problem else "[green]ok[/green]"
        console.print(f"{mark}  {finding.what:<14}{finding.found}")
        if finding.problem:
            console.print(f"    {finding.problem}", markup=False)
    sound = not any(finding.problem for finding in findings)
    if sound:
        say_next(console, "streamstill distill quickstart")
    else:
        console.print("mend what is marked !!, then again")
    return sound


def _run(what: str, check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(what, *check())
    except Exception as error:  # a broken part must not hide the others
        return Finding(what, "failed", f"{type(error).__name__}: {error}")


def _versions() -> tuple[str, str]:
    names = ("streamstill", "torch", "numpy", "pylance", "av")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), ""


def _machine() -> tuple[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}",
        "",
    )


def _disk() -> tuple[str, str]:
    free = shutil.disk_usage(Path.cwd()).free
    problem = "less than 2 GiB: clear some space, or run in another folder" if free < LEAST_FREE else ""
    return f"{free / 2**30:.1f} GiB free here", problem


def _torchvision() -> tuple[str, str]:
    if importlib.util.find_spec("torchvision") is None:
        return "absent, as it should be beside a CPU build of torch", ""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever it says, it does not fit this torch
        return "does not fit this torch", f"pip uninstall torchvision ({type(error).__name__}: {error})"
    return "present and importable", ""


def _video() -> tuple[str, str]:
    clip = _test_clip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, clip)
        back = read_clip(path)
    return f"wrote and read {back.frames_FCHW.shape[0]} frames of H.264", ""


def _cache() -> tuple[str, str]:
    clip = _test_clip()
    request = ClipRequest.of(clip.geometry, prompt="a test", seed=0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = ClipStore.open(Path(folder) / "cache")
        store.add([Answer(teacher="doctor", request=request, clip=clip)])
        kept = np.array_equal(store.get(store.keys()[0]).frames_FCHW, clip.frames_FCHW)
    return "a clip went in and came out", "" if kept else "the clip came out changed: do not use this disk"


def _base() -> tuple[str, str]:
    student = shipped_base()
    return f"shipped base student, {sum(p.numel() for p in student.parameters()):,} parameters", ""


def _test_clip() -> Clip:
    frames = np.random.default_rng(0).integers(0, 255, (8, 3, 32, 32), dtype=np.uint8)
    return Clip(frames_FCHW=frames, fps=8)


CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "versions": _versions,
    "machine": _machine,
    "disk": _disk,
    "torchvision": _torchvision,
    "video": _video,
    "teacher cache": _cache,
    "student": _base,
}
