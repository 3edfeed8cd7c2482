"""The words of ``streamstill prompts``; parsing them loads nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def prompts(
    inputs: Annotated[list[Path] | None, typer.Argument(help="Files: .txt, .csv, .tsv or .jsonl.")] = None,
    out: Annotated[Path, typer.Option(help="File to write, .txt or .jsonl, which keeps columns.")] = Path(
        "runs/prompts.txt"
    ),
    column: Annotated[str, typer.Option(help="Which column is the prompt.")] = "prompt",
    balance: Annotated[str | None, typer.Option(help="Column of whose every value as many are kept.")] = None,
    per_value: Annotated[int | None, typer.Option(help="How many; else as many as the rarest value has.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Share (0.1) or number (200) of prompts to write to OUT.held_out instead.")
    ] = None,
    template: Annotated[str | None, typer.Option(help='Fill "{prompt}, {style}" from columns and fields.')] = None,
    field: Annotated[list[str] | None, typer.Option(metavar="NAME=A,B,C", help="Values of a field.")] = None,
    sample: Annotated[int | None, typer.Option(help="Draw so many of the template's combinations; else all.")] = None,
    rewrite: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible chat service.")] = None,
    model: Annotated[str | None, typer.Option(help="Its language model.")] = None,
    key_variable: Annotated[str | None, typer.Option(help="Environment variable with its key.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What it is told to do; else ours.")] = None,
    rewrites: Annotated[Path, typer.Option(help="Folder that remembers its answers.")] = Path("runs/rewrites"),
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Make a list of prompts: no duplicates, balanced, some held out, from a template, rewritten.

    Example: `streamstill prompts mine.csv --out runs/prompts.txt --held-out 0.1`
    """
    from streamstill.cli.prompt_list import Asked, prepare

    asked = Asked(
        inputs=tuple(inputs or ()),
        out=out,
        column=column,
        balance=balance,
        per_value=per_value,
        held_out=held_out,
        template=template,
        fields=tuple(field or ()),
        sample=sample,
        rewrite=rewrite,
        model=model,
        key_variable=key_variable,
        instruction=instruction,
        rewrites=rewrites,
        seed=seed,
    )
    prepare(asked, Console(highlight=False))
