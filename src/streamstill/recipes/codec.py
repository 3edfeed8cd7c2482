"""``codec``: a small causal autoencoder learnt from clips, and a light decoder learnt from any codec."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from streamstill.codec.build import codec_fingerprint
from streamstill.codec.counting import clip_latents
from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.light_decoder import LightDecoder, LightDecoderConfig
from streamstill.codec.video import VideoCodec, to_pixels
from streamstill.config import require_positive, to_dict, write_json
from streamstill.media import write_strip
from streamstill.recipes.codec_parts import ClipSource, Pairs, open_codec, pacemaker
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, train
from streamstill.report.comparison import environment
from streamstill.report.decoding import decoded, likeness, time_decoders
from streamstill.training.batches import Examples, encode_clips
from streamstill.training.crops import Crop, crop_batches, latent_crop_batches
from streamstill.training.devices import CPU, device_of, moved
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.objectives.autoencoding import Autoencoding, AutoencodingConfig
from streamstill.training.objectives.decoder_distillation import DecoderDistillation, DecoderDistillationConfig
from streamstill.training.objectives.reconstruction import ReconstructionConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Clip, Geometry

ROWS_SHOWN = 3  # clips of a strip
REAL = Geometry(frames=16, height=96, width=160, fps=8)


@dataclass(frozen=True, kw_only=True)
class CodecTrain:
    """Everything that fixes the training of an autoencoder.

    Args:
        crop: in pixels, and never larger than the clips.
        held_out: how many clips, the last ones, are only evaluated.
    """

    geometry: Geometry = REAL
    codec: LearnedCodecConfig = field(default_factory=LearnedCodecConfig)
    learn: AutoencodingConfig = field(default_factory=AutoencodingConfig)
    discriminator: MotionConfig = field(default_factory=MotionConfig)  # where its weight is above 0
    crop: Crop = field(default_factory=lambda: Crop(frames=8, height=48, width=80))
    steps: int = 800
    batch: int = 4
    held_out: int = 1
    teacher: str = ""  # whose clips of the cache; may be left out when the cache has one teacher's only
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch", "held_out")
        if self.codec.path:
            raise ValueError("codec.path belongs to a student; a codec is trained from fresh weights, leave it out")


@dataclass(frozen=True, kw_only=True)
class CodecDistill:
    """Everything that fixes the distillation of a light decoder.

    Args:
        codec: folder of a learned codec, of a student, or of an autoencoder of diffusers.
        width, blocks: of the light decoder.
        crop: in latents, and never larger than the clips.
        held_out: how many clips, the last ones, are only evaluated.
        student: a student's folder, or a preset's name: whose chunks decoding is timed beside.
        rounds: chunks that are timed.
    """

    codec: str
    geometry: Geometry = REAL
    width: int = 48
    blocks: int = 1
    learn: DecoderDistillationConfig = field(default_factory=DecoderDistillationConfig)
    discriminator: MotionConfig = field(default_factory=MotionConfig)  # where its weight is above 0
    crop: Crop = field(default_factory=lambda: Crop(frames=4, height=6, width=10, flip=False))
    steps: int = 800
    batch: int = 4
    held_out: int = 1
    student: str = "nano"
    rounds: int = 10
    teacher: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "width", "blocks", "steps", "batch", "held_out", "rounds")


def run_codec_train(
    config: CodecTrain, source: ClipSource, out: Path, console: Console, *, device: torch.device = CPU
) -> dict[str, Any]:
    """Train an autoencoder on clips, save it in ``out/codec``; returns what ``report.json`` holds.

    Raises:
        ValueError: the clips do not fit the codec or the crop, or none is left to train on.
    """
    source.require()
    crop = _fitting_crop(config)
    run = RunFolder.open(out, recipe="codec-train", config=config, inputs=source.named)
    with run.stage("collect") as folder:
        pairs = source.clips(config.geometry, config.teacher, folder, console)
    shown, held_out = _parted(pairs, config.held_out)
    codec = _seeded(lambda: LearnedCodec(config.codec), config.seed)
    with run.stage("train") as folder:
        console.rule("codec: a clip is encoded and must come back", align="left")
        codec.begin_with(_pixels(shown, CPU))
        codec.to(device)
        objective = Autoencoding(
            codec, config.learn, _discriminator(config, codec, config.learn.reconstruction, device)
        )
        batches = crop_batches(shown, crop, batch=config.batch, seed=config.seed)
        averaged(train(objective, batches, _settings(config), folder, console, title="codec"), "codec", codec)
    codec.eval().calibrate(_pixels(shown, device))
    codec.save_pretrained(out / "codec")
    with run.stage("evaluate"):
        report = _codec_report(codec, shown, held_out, out)
    report |= {"seconds": run.seconds, "environment": environment(device), "codec": to_dict(codec.config)}
    write_json(out / "report.json", report)
    _say(console, "clips that it was trained on", report["trained_on"])
    _say(console, "clips that it has never seen", report["held_out"])
    console.print(f"  {out / 'codec'}, {out / 'strip.png'}, {out / 'report.json'}", soft_wrap=True)
    return report


def run_codec_distill(
    config: CodecDistill, source: ClipSource, out: Path, console: Console, *, device: torch.device = CPU
) -> dict[str, Any]:
    """Teach a light decoder what a codec decodes, save it in ``out/light_decoder``; returns ``report.json``.

    Raises:
        ValueError: there is no such codec or student, they do not fit each other or the clips, or no clip is left to
            train on.
    """
    source.require()
    codec = open_codec(config.codec)
    if isinstance(codec, nn.Module):
        codec.to(device)
    network, text_BLD, sampling = pacemaker(config.student, codec, config.geometry, device)
    inputs = {**source.named, "codec_weights": codec_fingerprint(codec)}
    run = RunFolder.open(out, recipe="codec-distill", config=config, inputs=inputs)
    with run.stage("collect") as folder:
        pairs = source.clips(config.geometry, config.teacher, folder, console)
        with torch.no_grad():
            examples = encode_clips(pairs, codec, device=device)
    split = len(_parted(pairs, config.held_out)[0])
    sizes = LightDecoderConfig.of(codec, width=config.width, blocks=config.blocks)
    light = _seeded(lambda: LightDecoder(sizes), config.seed)
    with run.stage("train") as folder:
        console.rule("light decoder: the same latents, the same pixels, less work", align="left")
        light.begin_with(_demonstrated(codec, examples[:split], device))
        light.to(device)
        discriminator = _discriminator(config, codec, config.learn.reconstruction, device)
        objective = DecoderDistillation(light, codec, config.learn, discriminator)
        crop = config.crop.within(*_grid(examples))
        batches = latent_crop_batches(examples[:split], crop, batch=config.batch, seed=config.seed)
        averaged(train(objective, batches, _settings(config), folder, console, title="light decoder"), "decoder", light)
    light.eval().save_pretrained(out / "light_decoder")
    with run.stage("evaluate"):
        report = _decoder_report(codec, light, pairs, moved(examples, device), split, out)
        times = time_decoders(
            network,
            text_BLD,
            {"full": codec, "light": light},
            latent_shape=_latent_shape(examples),
            sampling=sampling,
            rounds=config.rounds,
        )
    report["times"] = {name: taken.as_json() for name, taken in times.items()}
    report |= {"seconds": run.seconds, "environment": environment(device), "light_decoder": asdict(sizes)}
    write_json(out / "report.json", report)
    _say(console, "the full decoder, latents never seen", report["held_out"]["to_the_full_decoder"])
    for name, taken in times.items():
        console.print(f"  {name}: {taken.decode_ms.median:.1f} ms a chunk, {taken.share:.1%} of end to end")
    console.print(f"  {out / 'light_decoder'}, {out / 'strip.png'}, {out / 'report.json'}", soft_wrap=True)
    return report


def _codec_report(codec: LearnedCodec, shown: Pairs, held_out: Pairs, out: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    rows: list[tuple[str, Clip]] = []
    for name, pairs in (("trained_on", shown), ("held_out", held_out)):
        clips = [clip for _, clip in pairs]
        with torch.inference_mode():
            latents = encode_clips(pairs, codec).latents_BFCHW.to(device_of(codec))
        made = decoded(codec, latents, fps=clips[0].fps)
        report[name] = {**likeness(made, clips), "latent_std": float(latents.std())}
        label = name.replace("_", " ")
        rows += [row for pair in zip(clips, made, strict=True) for row in zip((label, "codec"), pair, strict=True)]
    _strip(out, rows[-2:] + rows[: 2 * (ROWS_SHOWN - 1)])
    return report


def _decoder_report(
    codec: VideoCodec, light: LightDecoder, pairs: Pairs, examples: Examples, split: int, out: Path
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    rows: list[tuple[str, Clip]] = []
    for name, part in (("trained_on", slice(0, split)), ("held_out", slice(split, None))):
        clips, latents = [clip for _, clip in pairs[part]], examples[part].latents_BFCHW
        full, small = (decoded(decoder, latents, fps=clips[0].fps) for decoder in (codec, light))
        report[name] = {
            "to_the_full_decoder": likeness(small, full),
            "light_to_the_clips": likeness(small, clips),
            "full_to_the_clips": likeness(full, clips),
        }
        labels = (name.replace("_", " "), "full", "light")
        rows += [row for clip in zip(clips, full, small, strict=True) for row in zip(labels, clip, strict=True)]
    _strip(out, rows[-3:] + rows[: 3 * (ROWS_SHOWN - 1)])
    return report


def _discriminator(
    config: CodecTrain | CodecDistill, codec: VideoCodec, weights: ReconstructionConfig, device: torch.device
) -> nn.Module | None:
    if weights.adversarial == 0:
        return None
    return build_discriminator(config.discriminator, codec=codec, seed=config.seed).to(device)


def _settings(config: CodecTrain | CodecDistill) -> TrainerConfig:
    return TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=100, log_every=5)


def _parted(pairs: Pairs, held_out: int) -> tuple[Pairs, Pairs]:
    """The clips to train on and the last few, which are not."""
    if len(pairs) <= held_out:
        raise ValueError(
            f"there are {len(pairs)} clips and held_out={held_out} of them are kept apart, which leaves none to train "
            "on; give more clips or lower held_out"
        )
    return pairs[:-held_out], pairs[-held_out:]


def _seeded(build: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _pixels(pairs: Pairs, device: torch.device) -> Iterator[Tensor]:
    return (to_pixels(clip.frames_FCHW)[None].to(device) for _, clip in pairs)


@torch.no_grad()
def _demonstrated(codec: VideoCodec, examples: Examples, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for latents_FCHW in examples.latents_BFCHW:
        yield latents_FCHW[None], codec.decode(latents_FCHW[None].to(device))[0].cpu()


def _fitting_crop(config: CodecTrain) -> Crop:
    """The crop within the clips; refuses sizes that the codec cannot encode."""
    size = config.geometry
    crop = config.crop.within(size.frames, size.height, size.width)
    clip_latents(config.codec, size)
    clip_latents(config.codec, Geometry(frames=crop.frames, height=crop.height, width=crop.width, fps=size.fps))
    return crop


def _grid(examples: Examples) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip."""
    _, frames, _, height, width = examples.latents_BFCHW.shape
    return frames, height, width


def _latent_shape(examples: Examples) -> tuple[int, int, int]:
    _, _, channels, height, width = examples.latents_BFCHW.shape
    return channels, height, width


def _strip(out: Path, rows: list[tuple[str, Clip]]) -> None:
    write_strip(out / "strip.png", [clip for _, clip in rows], labels=[label for label, _ in rows], columns=6)


def _say(console: Console, what: str, found: dict[str, Any]) -> None:
    console.print(f"  to {what}: PSNR {found['psnr']['mean']:.1f} dB, SSIM {found['ssim']['mean']:.3f}")
