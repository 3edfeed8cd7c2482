"""Options that several modules of commands share; importing them loads nothing."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or cuda:N.")]
