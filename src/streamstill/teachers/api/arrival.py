"""From a file that a service sent to a clip that can be trusted, or to quarantine with the reason."""

import shutil
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from streamstill.config import write_json
from streamstill.media import read_fitted
from streamstill.teachers.store import request_key
from streamstill.types import Clip, ClipRequest, Frames


@dataclass(frozen=True, kw_only=True)
class ArrivalLimits:
    """What a file may be, and what a clip must show. Grey levels are of 255.

    Args:
        max_bytes, max_side, max_seconds, max_frames: of the file, checked before a picture is decoded; the frames are
            counted again while they are.
        black_level: a clip in which 999 of 1000 values are at or below it is black.
        still_change: two frames are the same when no value changes by more.
        still_share: a clip in which at least this share of neighbouring frames are the same is frozen.
    """

    max_bytes: int = 512 * 2**20
    max_side: int = 4096
    max_seconds: float = 120.0
    max_frames: int = 7200
    black_level: int = 16
    still_change: int = 6
    still_share: float = 0.95

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_side, self.max_seconds, self.max_frames) <= 0:
            raise ValueError(f"the limits of an arriving file must be positive, got {self}")
        if not (0 <= self.black_level < 255 and 0 <= self.still_change < 255 and 0 < self.still_share <= 1):
            raise ValueError(f"black_level and still_change are in [0, 255), still_share in (0, 1], got {self}")


class Quarantined(ValueError):
    """A file was no clip; it lies at ``path`` now, with its reason beside it as JSON."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(f"{reason}; the file is kept as {path}")
        self.reason, self.path = reason, path


def arrive(
    file: Path, request: ClipRequest, *, teacher: str, quarantine: Path, limits: ArrivalLimits = ArrivalLimits()
) -> Clip:
    """The clip of a downloaded file, in the geometry that was asked for; the file stays where it is.

    A longer video is cut, another frame rate or size resampled (``media.read_fitted``).

    Raises:
        Quarantined: it is too large, damaged, too short, black or frozen; it has been moved to ``quarantine``.
    """
    try:
        _require_small(file, limits)
        _require_decodable(file, limits)
        clip = read_fitted(file, request.geometry)
        _require_picture(clip.frames_FCHW, limits)
    except ValueError as error:
        reason = str(error).replace(str(file), file.name)
        raise Quarantined(reason, set_aside(file, request, reason, teacher=teacher, quarantine=quarantine)) from error
    provenance = {"teacher": teacher, "prompt": request.prompt, "seed": str(request.seed)}
    return Clip(frames_FCHW=clip.frames_FCHW, fps=clip.fps, provenance=provenance)


def set_aside(file: Path, request: ClipRequest, reason: str, *, teacher: str, quarantine: Path) -> Path:
    """Move a file to ``quarantine`` with a JSON file beside it that says why; returns where it lies. Nothing is lost:
    another file for the same request gets another number.
    """
    quarantine.mkdir(parents=True, exist_ok=True)
    stem = request_key(teacher, request)[:16]
    number = sum(1 for _ in quarantine.glob(f"{stem}-*.json"))
    while (target := quarantine / f"{stem}-{number}{file.suffix or '.bin'}").exists():
        number += 1
    size = file.stat().st_size
    write_json(
        target.with_suffix(".json"), {"reason": reason, "teacher": teacher, "bytes": size, "request": asdict(request)}
    )
    shutil.move(file, target)
    return target


def _require_small(file: Path, limits: ArrivalLimits) -> None:
    """What can be known without decoding a picture."""
    size = file.stat().st_size
    if not 0 < size <= limits.max_bytes:
        raise ValueError(f"the file has {size} bytes, and 1 to {limits.max_bytes} are allowed")
    try:
        with av.open(file, "r") as container:
            if not container.streams.video:
                raise ValueError("the file has no picture in it")
            stream = container.streams.video[0]
            _require_side(stream.width, stream.height, limits)
            lasts = [float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0]
            lasts += [float(Fraction(container.duration, av.time_base)) if container.duration else 0.0]
            if max(lasts) > limits.max_seconds:
                raise ValueError(f"the video lasts {max(lasts):g} s, and {limits.max_seconds:g} s are allowed")
            if stream.frames > limits.max_frames:
                raise ValueError(f"the video has {stream.frames} frames, and {limits.max_frames} are allowed")
    except av.error.FFmpegError as error:
        raise ValueError(f"the video cannot be read ({error.strerror or type(error).__name__})") from error


def _require_decodable(file: Path, limits: ArrivalLimits) -> None:
    """Decode to the end once: what the header did not admit is found out here, before frames are kept."""
    count, last = 0, 0.0
    try:
        with av.open(file, "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(limits.max_side**2)}
            for count, frame in enumerate(container.decode(stream), start=1):
                _require_side(frame.width, frame.height, limits)
                if count > limits.max_frames:
                    raise ValueError(f"the video has more than {limits.max_frames} frames")
                if frame.is_corrupt:
                    raise ValueError(f"the video is damaged at frame {count}")
                last = frame.time or 0.0
            _require_whole(stream, count, last)
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"the video cannot be decoded after frame {count} ({reason})") from error


def _require_whole(stream: av.VideoStream, count: int, last: float) -> None:
    """The header's promise kept, in frames or in seconds: an edit list may hide some frames."""
    fps = float(stream.average_rate or stream.guessed_rate or 1)
    if not count or (count < stream.frames and last + 1.5 / fps < _end(stream)):
        raise ValueError(f"the video is cut off: it holds {count} of {stream.frames} frames")


def _end(stream: av.VideoStream) -> float:
    """Seconds at which the header says that the video ends, or 0 where it says nothing."""
    if not stream.duration or not stream.time_base:
        return 0.0
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _require_side(width: int, height: int, limits: ArrivalLimits) -> None:
    if not 0 < max(width, height) <= limits.max_side:
        raise ValueError(f"the video is {width}x{height}, and at most {limits.max_side} pixels a side are allowed")


def _require_picture(frames_FCHW: Frames, limits: ArrivalLimits) -> None:
    if np.percentile(frames_FCHW, 99.9) <= limits.black_level:
        raise ValueError("the clip is black")
    same = [int(_change(one, other)) <= limits.still_change for one, other in pairwise(frames_FCHW)]
    if same and sum(same) >= limits.still_share * len(same):
        raise ValueError(f"the clip is frozen: of {len(same)} changes from frame to frame {sum(same)} show nothing")


def _change(one_CHW: Frames, other_CHW: Frames) -> np.int16:
    changes: np.int16 = np.abs(one_CHW.astype(np.int16) - other_CHW).max()
    return changes
