"""``streamstill codec``: an autoencoder learnt from clips, and a light decoder learnt from any codec."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamstill.cli.options import Device
from streamstill.cli.shell import quoted, say_next

codec_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Clips = Annotated[Path | None, typer.Option(help="Folder of videos with captions.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder of the teacher cache, or s3://BUCKET/DIR; instead of --clips.")
]
Size = Annotated[str, typer.Option(help="FRAMESxHEIGHTxWIDTH@FPS.")]
Steps = Annotated[int | None, typer.Option(help="Steps in all; the default is the recipe's.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. --set batch=2.")
]


@codec_app.command("train")
def codec_train(
    clips: Clips = None,
    cache: Cache = None,
    size: Size = "16x96x160@8",
    steps: Steps = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/codec"),
    overrides: Overrides = None,
    device: Device = "cpu",
) -> None:
    """Learn a small causal autoencoder from clips; the same command goes on where it stopped.

    Example: `streamstill codec train --clips my_clips --size 16x96x160@8 --out runs/codec`
    """
    from streamstill.cli.collect import parse_size
    from streamstill.cli.devices import device_to_train_on
    from streamstill.config import with_overrides
    from streamstill.recipes.codec import CodecTrain, run_codec_train
    from streamstill.recipes.codec_parts import ClipSource

    source, console = ClipSource(folder=clips, cache=cache), Console(highlight=False)
    config = CodecTrain(geometry=parse_size(size), steps=CodecTrain.steps if steps is None else steps)
    run_codec_train(
        with_overrides(config, overrides or []), source, out, console, device=device_to_train_on(device, console)
    )
    given = " ".join(f"--{name} {quoted(path)}" for name, path in source.named.items())
    say_next(console, f"streamstill codec distill {quoted(out / 'codec')} {given} --size {size}")


@codec_app.command("distill")
def codec_distill(
    codec: Annotated[str, typer.Argument(help="Folder of a learned codec, a student, or a diffusers autoencoder.")],
    clips: Clips = None,
    cache: Cache = None,
    size: Size = "16x96x160@8",
    steps: Steps = None,
    student: Annotated[str, typer.Option(help="Student or preset whose chunks decoding is timed beside.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/light_decoder"),
    overrides: Overrides = None,
    device: Device = "cpu",
) -> None:
    """Teach a light causal decoder what a codec decodes; the same command goes on where it stopped.

    Example: `streamstill codec distill runs/codec/codec --clips my_clips --out runs/light_decoder`
    """
    from streamstill.cli.collect import parse_size
    from streamstill.cli.devices import device_to_train_on
    from streamstill.config import with_overrides
    from streamstill.recipes.codec import CodecDistill, run_codec_distill
    from streamstill.recipes.codec_parts import ClipSource, student_of

    source = ClipSource(folder=clips, cache=cache)
    config = CodecDistill(
        codec=codec,
        geometry=parse_size(size),
        student=student,
        steps=CodecDistill.steps if steps is None else steps,
    )
    config, console = with_overrides(config, overrides or []), Console(highlight=False)
    run_codec_distill(config, source, out, console, device=device_to_train_on(device, console))
    words = f'{quoted(student_of(config.student, config.codec))} --prompt "..."'
    say_next(console, f"streamstill stream {words} --light-decoder {quoted(out / 'light_decoder')}")
