"""Which clips a folder holds and what is said about each: ``captions.jsonl``, or a ``.txt`` beside every clip."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LIST_NAME = "captions.jsonl"
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"}
)


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A clip on disk and its caption."""

    file: Path
    prompt: str


def read_captions(folder: Path) -> tuple[Captioned, ...]:
    """Every captioned clip of the folder, in the order of the list, or by name when there are text files instead.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is empty, a line cannot be read, a caption has no clip or a clip has no caption.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of clips {folder}; check the name")
    videos = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
    listed = folder / LIST_NAME
    captioned = _from_list(listed) if listed.is_file() else _from_texts(folder, videos)
    if not captioned:
        raise ValueError(
            f"the folder {folder} holds no clips; put videos there and a {LIST_NAME} "
            'with one line {"file": ..., "prompt": ...} for each'
        )
    _require_partners(captioned, videos)
    return captioned


def _from_list(path: Path) -> tuple[Captioned, ...]:
    lines = _text(path).splitlines()
    return tuple(_from_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _from_line(path: Path, number: int, line: str) -> Captioned:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {path} is not JSON ({error}); write one object per line") from error
    file, prompt = (row.get("file"), row.get("prompt")) if isinstance(row, dict) else (None, None)
    if not (isinstance(file, str) and isinstance(prompt, str) and file.strip() and prompt.strip()):
        raise ValueError(
            f'line {number} of {path} must be an object with the texts "file" and "prompt", got {line.strip()[:80]!r}'
        )
    return Captioned(file=path.parent / file, prompt=prompt.strip())


def _from_texts(folder: Path, videos: Iterable[Path]) -> tuple[Captioned, ...]:
    of_stem = {video.stem: video for video in videos}
    captioned = []
    for text in sorted(folder.glob("*.txt")):
        prompt = _text(text).strip()
        if not prompt:
            raise ValueError(f"the caption {text} is empty; say in it what the clip shows")
        captioned.append(Captioned(file=of_stem.get(text.stem, text.with_suffix(".mp4")), prompt=prompt))
    return tuple(captioned)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not written in UTF-8 ({error}); save it as UTF-8") from error


def _require_partners(captioned: Iterable[Captioned], videos: Iterable[Path]) -> None:
    known = {entry.file for entry in captioned}
    for file in sorted(known):
        if not file.is_file():
            raise ValueError(f"a caption names the clip {file}, which does not exist; add the clip or drop the caption")
    for video in videos:
        if video not in known:
            raise ValueError(
                f"the clip {video} has no caption; add it to {LIST_NAME} or write {video.stem}.txt beside it"
            )
