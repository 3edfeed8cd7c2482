"""Video files to clips and back: read, write, fit to a geometry, and pictures: to read, and to show clips.

Frame k of a clip is shown at k / fps seconds. Reading is for any codec that FFmpeg knows; writing is H.264 in mp4.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from streamstill.types import Clip, Frames, Geometry

_GET_ANOTHER = "make or download the file again"
_STRIP_FRAME_HEIGHT = 96  # pixels that a frame of a film strip has at least, so that small clips can be seen
_MARGIN = 4  # pixels around text and between the pictures of a strip
_BACKGROUND, _INK = (24, 24, 24), (240, 240, 240)
# x264's look ahead reads memory that nobody wrote: now and then one clip became another file (docs/log.md)
_ALWAYS_THE_SAME = "rc-lookahead=0:mbtree=0:b-adapt=0:weightp=0:weightb=0"
_SIXTEEN_BITS = 65_535
_TIE = 1e-6  # seconds: two frames as near as this to a moment count as equally near, and the earlier one is taken


def read_clip(path: Path, *, max_frames: int | None = None) -> Clip:
    """The video of a file as a clip, upright, its frames evenly spaced; at most ``max_frames`` from the start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no video, cut off or damaged.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, or None for all, got {max_frames}")
    with _opened(path) as video:
        frames = [_pixels(frame) for frame in islice(_sampled(video, video.fps), max_frames)]
    return Clip(frames_FCHW=_stacked(frames), fps=video.fps, provenance={"file": path.name})


def read_fitted(path: Path, geometry: Geometry) -> Clip:
    """``fit(read_clip(path), geometry)`` in little memory: only the frames that are asked for are kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no video, cut off or damaged, or the video is shorter than asked.
    """
    with _opened(path) as video:
        chosen = islice(_sampled(video, geometry.fps), geometry.frames)
        frames = [_resized(_pixels(frame), geometry.height, geometry.width) for frame in chosen]
    if len(frames) < geometry.frames:
        raise _too_short(f"the video {path}", len(frames), geometry)
    return Clip(frames_FCHW=_stacked(frames), fps=geometry.fps, provenance={"file": path.name})


def read_image(path: Path, *, height: int, width: int) -> Frames:
    """A picture, upright, in any format that pillow reads: uint8 of shape (3, height, width).

    It is resized and cropped as the frames of a clip are. What is transparent shows white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no picture, cut off or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}; check the name")
    try:
        with Image.open(path) as image:
            pixels_HWC: Frames = np.asarray(_opaque(_eight_bits(ImageOps.exif_transpose(image))))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what pillow's readers raise
        raise ValueError(f"the picture {path} cannot be read ({error}); give a PNG or JPEG file") from error
    return np.ascontiguousarray(_resized(pixels_HWC, height, width).transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deeper grey pictures scaled, by 16 bits or by 1 where they are fractions; pillow would clip them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64) / (1 if image.mode == "F" else _SIXTEEN_BITS)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, on white where the picture is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def fit(clip: Clip, geometry: Geometry) -> Clip:
    """The clip in another geometry: the nearest frame in time from second 0, resized and cropped to the centre.

    Raises:
        ValueError: the clip is shorter than asked.
    """
    have = clip.geometry.frames
    order = [math.ceil((k / geometry.fps - _TIE) * clip.fps - 0.5) for k in range(geometry.frames)]
    if order[-1] >= have:
        raise _too_short("the clip", sum(i < have for i in order), geometry)
    frames_FHWC = _channels_last(clip)
    frames = [_resized(frames_FHWC[i], geometry.height, geometry.width) for i in order]
    return Clip(frames_FCHW=_stacked(frames), fps=geometry.fps, provenance=clip.provenance)


def write_clip(path: Path, clip: Clip, *, lossless: bool = False) -> None:
    """Write an H.264 mp4, whole or not at all; ``lossless`` keeps every bit, at the price of size and of players.

    One clip is always the same file. Clips of odd height or width keep their size: they are written as yuv444p, which
    not every browser plays.
    """
    if path.suffix != ".mp4":
        raise ValueError(f"clips are written as mp4, got the name {path.name!r}; let it end in .mp4")
    odd = clip.geometry.height % 2 or clip.geometry.width % 2
    if lossless:
        codec, pixels, options = "libx264rgb", "rgb24", {"crf": "0", "preset": "veryfast"}
    else:
        codec, pixels = "libx264", "yuv444p" if odd else "yuv420p"
        options = {"crf": "16", "threads": "1", "x264-params": _ALWAYS_THE_SAME}
    _whole(path, lambda partial: _encode(partial, clip, codec, pixels, options))


def write_strip(
    path: Path,
    clips: Sequence[Clip],
    *,
    labels: Sequence[str] | None = None,
    columns: int = 8,
    scale: int | None = None,
) -> None:
    """Write a PNG with one row per clip: ``columns`` frames evenly over its length, enlarged ``scale`` times.

    Without a scale, frames are enlarged until the smallest can be seen. Labels stand to the left of the rows.
    """
    if not clips or columns < 1 or (scale is not None and scale < 1):
        raise ValueError(
            f"a strip needs at least 1 clip, 1 column and scale 1, got {len(clips)}, {columns} and {scale}"
        )
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"a strip needs one label for each clip, got {len(labels)} labels for {len(clips)} clips")
    times = scale or max(1, math.ceil(_STRIP_FRAME_HEIGHT / min(clip.geometry.height for clip in clips)))
    rows = [_row_of_frames(clip, columns, times) for clip in clips]
    left = max((_text_width(label) for label in labels), default=0) + 2 * _MARGIN if labels else _MARGIN
    width = left + max(row.width for row in rows) + _MARGIN
    sheet = Image.new("RGB", (width, _MARGIN + sum(row.height + _MARGIN for row in rows)), _BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for number, row in enumerate(rows):
        sheet.paste(row, (left, top))
        if labels:
            draw.text((_MARGIN, top + row.height // 2), labels[number], _INK, _font(), anchor="lm")
        top += row.height + _MARGIN
    _whole(path, lambda partial: sheet.save(partial, format="PNG"))


def side_by_side(clips: Sequence[Clip], *, labels: Sequence[str], scale: int = 1) -> Clip:
    """The clips beside each other in one clip, enlarged ``scale`` times, with a caption over each.

    Raises:
        ValueError: no clips, not one label each, or clips that differ in length, size or fps.
    """
    if not clips or len(labels) != len(clips) or scale < 1:
        raise ValueError(
            f"clips side by side need one label each and scale 1 or more, "
            f"got {len(clips)} clips, {len(labels)} labels and scale {scale}"
        )
    for clip in clips:
        if clip.geometry != clips[0].geometry:
            raise ValueError(
                f"clips side by side must have one geometry, got {clips[0].geometry} and {clip.geometry}; "
                f"bring them to one with media.fit"
            )
    columns = [_captioned(clip, label, scale) for clip, label in zip(clips, labels, strict=True)]
    return Clip(frames_FCHW=_channels_first(np.concatenate(columns, axis=2)), fps=clips[0].fps)


@dataclass(frozen=True)
class _Video:
    """An open file. Its frames come with their times in seconds after the first."""

    fps: float
    frames: Iterable[tuple[float, av.VideoFrame]]


@contextmanager
def _opened(path: Path) -> Iterator[_Video]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no video file {path}; check the name")
    if path.stat().st_size == 0:
        raise ValueError(f"the video {path} is an empty file; {_GET_ANOTHER}")
    try:
        with av.open(path, "r") as container:
            if not len(container.streams):
                raise ValueError(f"the video {path} cannot be read (its index is cut off); {_GET_ANOTHER}")
            if not container.streams.video:
                raise ValueError(f"the file {path} has no picture in it, only sound or text; give a video file")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise ValueError(f"the file {path} does not say how many frames it shows a second; save it as mp4")
            yield _Video(fps=float(rate), frames=_decoded(path, container, stream, float(rate)))
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"the video {path} cannot be read ({reason}); {_GET_ANOTHER}") from error


def _decoded(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, fps: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every frame with its time, then an error if the header had promised more of them."""
    first, seconds, count = None, 0.0, 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ValueError(f"the video {path} is damaged near second {seconds:.1f}; {_GET_ANOTHER}")
        time = frame.time if frame.time is not None else count / fps
        first = time if first is None else first
        seconds, count = time - first, count + 1
        yield seconds, frame
    length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    cut_off = count < stream.frames and seconds + 1.5 / fps < length  # both: an edit list may hide some frames
    if cut_off or not count:
        promised = f" of the {stream.frames} that its header promises" if stream.frames else ""
        raise ValueError(f"the video {path} is cut off: it holds {count} frames{promised}; {_GET_ANOTHER}")


def _sampled(video: _Video, fps: float) -> Iterator[av.VideoFrame]:
    """The frame nearest to each of the moments 0, 1 / fps, 2 / fps, ... while the video lasts."""
    taken, last = 0, None
    for seconds, frame in video.frames:
        while last is not None and taken / fps <= (last[0] + seconds) / 2 + _TIE:
            yield last[1]
            taken += 1
        last = seconds, frame
    while last is not None and taken / fps <= last[0] + 0.5 / video.fps + _TIE:
        yield last[1]
        taken += 1


def _pixels(frame: av.VideoFrame) -> Frames:
    """The (height, width, 3) pixels of a frame, turned upright when the camera was held sideways."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _resized(frame_HWC: Frames, height: int, width: int) -> Frames:
    """Resized until it covers height x width, and the centre kept. A frame of that size is returned as it is."""
    have_height, have_width = frame_HWC.shape[:2]
    if (have_height, have_width) == (height, width):
        return frame_HWC
    shrink = min(have_height / height, have_width / width)  # source pixels per pixel
    keep_height, keep_width = min(height * shrink, have_height), min(width * shrink, have_width)  # no rounding beyond
    left, top = (have_width - keep_width) / 2, (have_height - keep_height) / 2
    box = (left, top, min(left + keep_width, have_width), min(top + keep_height, have_height))
    smooth = Image.Resampling.LANCZOS if shrink > 1 else Image.Resampling.BICUBIC
    resized: Frames = np.asarray(Image.fromarray(frame_HWC).resize((width, height), smooth, box=box))
    return resized


def _too_short(what: str, have: int, geometry: Geometry) -> ValueError:
    return ValueError(
        f"{what} is too short: at {geometry.fps:g} frames a second it has {have} frames and {geometry.frames} "
        f"were asked for; ask for fewer frames or a higher fps, or give a longer video"
    )


def _encode(path: Path, clip: Clip, codec: str, pixels: str, options: dict[str, str]) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=Fraction(clip.fps).limit_denominator(10_000), options=options)
        if not isinstance(stream, av.VideoStream):
            raise TypeError(f"{codec} is no video codec")
        stream.height, stream.width, stream.pix_fmt = clip.geometry.height, clip.geometry.width, pixels
        for frame_HWC in _channels_last(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
        container.mux(stream.encode())


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write to a partial name and rename it; whatever goes wrong, no partial file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _row_of_frames(clip: Clip, columns: int, scale: int) -> Image.Image:
    frames, _, height, width = clip.frames_FCHW.shape
    shown = np.linspace(0, frames - 1, min(columns, frames)).round().astype(int)
    row = Image.new("RGB", (len(shown) * (width * scale + _MARGIN) - _MARGIN, height * scale), _BACKGROUND)
    for column, frame_HWC in enumerate(_channels_last(clip)[shown]):
        row.paste(Image.fromarray(_enlarged(frame_HWC, scale)), (column * (width * scale + _MARGIN), 0))
    return row


def _captioned(clip: Clip, label: str, scale: int) -> Frames:
    """Enlarged frames under a band with the label; height and width come out even, so that any player shows them."""
    frames, _, height, width = clip.frames_FCHW.shape
    band, width = _text_height() + 2 * _MARGIN, width * scale
    sheet = Image.new("RGB", (width + width % 2, height * scale + band + (height * scale + band) % 2), _BACKGROUND)
    ImageDraw.Draw(sheet).text((_MARGIN, band // 2), _shortened(label, width), _INK, _font(), anchor="lm")
    frames_FHWC = np.repeat(np.asarray(sheet)[None], frames, axis=0)
    frames_FHWC[:, band : band + height * scale, :width] = [_enlarged(frame, scale) for frame in _channels_last(clip)]
    return frames_FHWC


def _shortened(label: str, width: int) -> str:
    if _text_width(label) + 2 * _MARGIN <= width:
        return label
    kept = next((n for n in range(len(label), 0, -1) if _text_width(label[:n] + "..") + 2 * _MARGIN <= width), 0)
    return label[:kept] + ".." if kept else ""


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default()


def _text_width(text: str) -> int:
    return math.ceil(_font().getbbox(text)[2])


def _text_height() -> int:
    return math.ceil(_font().getbbox("Ag")[3])


def _enlarged(frame_HWC: Frames, scale: int) -> Frames:
    return frame_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def _channels_last(clip: Clip) -> Frames:
    return clip.frames_FCHW.transpose(0, 2, 3, 1)


def _channels_first(frames_FHWC: Frames) -> Frames:
    return np.ascontiguousarray(frames_FHWC.transpose(0, 3, 1, 2))


def _stacked(frames: Sequence[Frames]) -> Frames:
    return np.stack([frame_HWC.transpose(2, 0, 1) for frame_HWC in frames])
