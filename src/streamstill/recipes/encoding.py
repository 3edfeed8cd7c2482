"""Clips and prompts of a cache turned into latents and embeddings, once, so that training loads neither encoder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from streamstill.codec.text_cache import CachedText
from streamstill.codec.video import VideoCodec
from streamstill.teachers import ClipStore, Entry
from streamstill.teachers.encoded import Encoded, EncodedStore, KeptDtype, encoded_key
from streamstill.training.batches import encode_clip, pieces
from streamstill.types import Clip, Geometry

_COMMIT = 16  # clips that are written together; whatever ends a run loses no more of them


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """How many clips there were, and how many of them had been encoded before; how many prompts were embedded."""

    clips: int
    known: int
    prompts: int


def encode_once(
    clips: ClipStore,
    out: EncodedStore,
    codec: VideoCodec,
    *,
    text: CachedText | None = None,
    geometry: Geometry | None = None,
    teacher: str | None = None,
    dtype: KeptDtype = "float16",
    device: str = "cpu",
    on_clip: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode what ``out`` does not have; the same call goes on where an earlier one stopped.

    Args:
        text: an external text encoder, whose embeddings of the clips' prompts, and of no prompt, are kept as well.
        geometry: only clips of this size; None: all.
        teacher: only this teacher's clips; None: all.
        device: where the codec works.
        on_clip: called with the number of clips done and their total.

    Raises:
        ValueError: there is no such clip, or one that does not fit the codec, or latents that are not finite.
        OSError: they could not be written, for example to a full disk.
    """
    entries = [entry for entry in clips.find(teacher=teacher) if geometry in (None, entry.request.geometry)]
    if not entries:
        of = "" if teacher is None else f" of the teacher {teacher!r}"
        raise ValueError(f"{clips.path} has {len(clips)} clips and none{of} of the size that is asked for")
    missing = [entry for entry in entries if encoded_key(codec, entry.teacher, entry.request) not in out]
    known = len(entries) - len(missing)
    reading, done = clips.read(missing), known
    while part := _encoded(islice(reading, _COMMIT), codec, device):
        out.add(part, codec=codec, dtype=dtype)
        done += len(part)
        if on_clip is not None:
            on_clip(done, len(entries))
    prompts = sorted({entry.request.prompt for entry in entries})
    if text is not None:
        _embed(text, prompts, out.text_folder)
    return EncodeReport(clips=len(entries), known=known, prompts=0 if text is None else len(prompts))


@torch.no_grad()
def _encoded(answers: Iterable[tuple[Entry, Clip]], codec: VideoCodec, device: str) -> list[Encoded]:
    return [
        Encoded(
            teacher=entry.teacher,
            request=entry.request,
            latents_FCHW=encode_clip(clip, codec, device=device),
        )
        for entry, clip in answers
    ]


def _embed(text: CachedText, prompts: Sequence[str], folder: Path) -> None:
    text.keep_in(folder)
    text.encode_nothing(1)
    for rows in pieces(len(prompts), _COMMIT):
        text.encode(prompts[rows])
