"""The words of ``streamstill drift``; parsing them loads nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streamstill.cli.options import Device


def drift(
    students: Annotated[list[str], typer.Argument(metavar="[NAME=]STUDENT...", help="Folders of students.")],
    times: Annotated[int, typer.Option(help="Length of the streams, in lengths of the clips learnt from.")] = 20,
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt, .csv, .tsv or .jsonl list; else the embedded world's.")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of streams.")] = 16,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the default is each student's own.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed is other streams.")] = 0,
    at_once: Annotated[int, typer.Option(help="Streams that are made together; fewer need less memory.")] = 16,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="JSON to write; a strip of pictures goes beside it.")] = Path(
        "runs/drift.json"
    ),
) -> None:
    """Stream far beyond the training length and say what changes on the way.

    Example: `streamstill drift runs/quickstart/student --times 20`
    """
    from streamstill.cli.long_streams import Asked, tell_drift

    asked = Asked(
        students=tuple(students),
        times=times,
        prompts=prompts,
        count=count,
        steps=steps,
        seed=seed,
        at_once=at_once,
        device=device,
        out=out,
    )
    tell_drift(asked, Console(highlight=False))
