"""Clips that are already on disk as a teacher."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamstill.media import read_fitted
from streamstill.teachers.captions import Captioned, read_captions
from streamstill.types import Clip, ClipRequest


@dataclass(frozen=True)
class FolderTeacher:
    """Answers a caption with its clip, cut to what was asked. Of several clips with one caption the seed picks."""

    clips: tuple[Captioned, ...]
    name: str

    @classmethod
    def open(cls, folder: Path, *, name: str | None = None) -> "FolderTeacher":
        """The folder's captions, checked; no video is read yet.

        The default name ends in a fingerprint of captions, file names and file sizes, so that a folder that has
        changed is another teacher to the cache.

        Raises:
            FileNotFoundError, ValueError: see :func:`streamstill.teachers.captions.read_captions`.
        """
        clips = read_captions(folder)
        return cls(clips, name or f"folder/{folder.resolve().name}@{_fingerprint(clips)}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The distinct captions in their order: the only prompts that have an answer."""
        return tuple(dict.fromkeys(entry.prompt for entry in self.clips))

    def generate(self, request: ClipRequest) -> Clip:
        """The clip ``seed modulo count`` of those with this caption.

        Raises:
            ValueError: no clip has this caption, or its video is damaged or shorter than asked.
        """
        files = [entry.file for entry in self.clips if entry.prompt == request.prompt]
        if not files:
            raise _no_such_caption(request.prompt, self.prompts)
        clip = read_fitted(files[request.seed % len(files)], request.geometry)
        provenance = {**clip.provenance, "teacher": self.name, "prompt": request.prompt, "seed": str(request.seed)}
        return Clip(frames_FCHW=clip.frames_FCHW, fps=clip.fps, provenance=provenance)


def _fingerprint(clips: Sequence[Captioned]) -> str:
    rows = [(entry.prompt, entry.file.name, entry.file.stat().st_size) for entry in clips]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def _no_such_caption(prompt: str, prompts: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(prompt, prompts, n=1, cutoff=0.0)
    return ValueError(
        f"no clip of the folder has the caption {prompt!r}; the nearest of its {len(prompts)} captions "
        f"is {near[0]!r}; ask for one of FolderTeacher.prompts"
    )
