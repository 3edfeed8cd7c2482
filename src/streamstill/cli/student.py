"""The words of ``streamstill student``; parsing them loads nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def student(
    out: Annotated[Path, typer.Option(help="Folder to write the student to; it must hold none.")],
    size: Annotated[str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH@FPS of the clips to learn from.")] = None,
    preset: Annotated[str, typer.Option(help="nano, micro, small, phone or server.")] = "nano",
    layout: Annotated[str | None, typer.Option(help="Letters, or a layout by name; else the preset's own.")] = None,
    codec: Annotated[Path | None, typer.Option(help="Folder of a learned codec; else patches of pixels.")] = None,
    pipeline: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of a pipeline whose size, codec and text encoder it shares.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is other weights.")] = 0,
) -> None:
    """Make a first student, which has learnt nothing yet.

    Example: `streamstill student --out runs/start --preset nano --size 16x96x160@8`
    """
    from streamstill.cli.first_student import Asked, make_student

    asked = Asked(out=out, size=size, preset=preset, layout=layout, codec=codec, pipeline=pipeline, seed=seed)
    make_student(asked, Console(highlight=False))
