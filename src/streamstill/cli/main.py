"""The ``streamstill`` command. Bad input gets one sentence and a non-zero exit status."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

import streamstill
from streamstill.cli.codec import codec_app
from streamstill.cli.drift import drift
from streamstill.cli.endings import out_of_memory, stop
from streamstill.cli.options import Device
from streamstill.cli.prompts import prompts
from streamstill.cli.student import student

app = typer.Typer(
    name="streamstill",
    help="Distil any video generator, even one behind an API, into a small model that streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

search_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(
    search_app,
    name="search",
    help="Find the best layout that fits a device's time and memory.\n\nExample: `streamstill search measure`",
)

app.add_typer(
    codec_app,
    name="codec",
    help="Train a video codec, or a light decoder for any.\n\nExample: `streamstill codec train --clips my_clips`",
)

app.command()(drift)
app.command()(prompts)
app.command()(student)

CTRL_C = 130  # exit status
_GO_ON = ("distill", "collect", "encode", "prompts", "train", "place")  # commands that keep what they did; codec train


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"streamstill {streamstill.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which one this is.")
    ] = False,
) -> None:
    """What holds for every command."""


Out = Annotated[Path | None, typer.Option(help="Folder of the run; the default is runs/RECIPE.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. --set seed=4.")
]
LightDecoderFolder = Annotated[
    Path | None, typer.Option("--light-decoder", help="Folder of a light decoder, to decode with it.")
]


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="quickstart, folder, base, kd or few.")],
    out: Out = None,
    clips: Annotated[Path | None, typer.Option(help="Folder of clips with captions (recipe folder).")] = None,
    overrides: Overrides = None,
    device: Device = "cpu",
) -> None:
    """Run a whole recipe, stage by stage; the same command goes on where it stopped.

    Example: `streamstill distill quickstart`
    """
    from streamstill.cli.commands import run_recipe

    run_recipe(recipe, out, clips, overrides or [], _console(), device=device)


@app.command()
def collect(
    teacher: Annotated[
        str, typer.Argument(help="world, loose-world, a folder of clips, api, pipeline, or an installed one.")
    ],
    cache: Annotated[Path, typer.Option(help="Folder of the teacher cache, or s3://BUCKET/DIR.")] = Path("runs/cache"),
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt, .csv, .tsv or .jsonl list; else the teacher's own.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Number of clips; one for each prompt if not said, 200 of a world.")
    ] = None,
    size: Annotated[str, typer.Option(help="FRAMESxHEIGHTxWIDTH@FPS.")] = "16x32x32@8",
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    config: Annotated[Path | None, typer.Option(help="JSON or TOML file that describes the teacher.")] = None,
    overrides: Overrides = None,
    concurrency: Annotated[int | None, typer.Option(help="Jobs of a service at once; 4 if not said.")] = None,
    rate: Annotated[float | None, typer.Option(help="Most calls to a service in a minute.")] = None,
    budget: Annotated[float | None, typer.Option(help="Most money for services, in all runs on this cache.")] = None,
    clips: Annotated[int | None, typer.Option(help="Most clips from services, in all runs on this cache.")] = None,
    poll_seconds: Annotated[float | None, typer.Option(help="Between two looks at a job; 5 if not said.")] = None,
    jobs: Annotated[Path | None, typer.Option(help="Folder for the journal of a cache that is not on disk.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many and at what cost; ask nothing.")] = False,
    retry_refused: Annotated[bool, typer.Option("--retry-refused", help="Ask again what was refused.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Pay again for what gave no clip.")] = False,
    retry_unsure: Annotated[bool, typer.Option("--retry-unsure", help="Send again what may be paid already.")] = False,
) -> None:
    """Ask a teacher and keep every answer; asks nothing twice.

    Example: `streamstill collect world --count 200 --cache runs/cache`
    """
    from streamstill.cli.collect import Asked, ends_to_retry
    from streamstill.cli.collect import collect as ask

    asked = Asked(
        teacher=teacher,
        cache=cache,
        prompts=prompts,
        count=count,
        size=size,
        seed=seed,
        config=config,
        overrides=tuple(overrides or []),
        concurrency=concurrency,
        rate=rate,
        budget=budget,
        clips=clips,
        poll_seconds=poll_seconds,
        jobs=jobs,
        dry_run=dry_run,
        retry=ends_to_retry(refused=retry_refused, failed=retry_failed, unsure=retry_unsure),
    )
    ask(asked, _console())


@app.command()
def encode(
    cache: Annotated[Path, typer.Option(help="Folder of the teacher cache, or s3://BUCKET/DIR.")],
    out: Annotated[Path, typer.Option(help="Folder for latents and embeddings.")],
    student: Annotated[Path | None, typer.Option(help="Whose codec, text encoder and size are used.")] = None,
    codec: Annotated[str | None, typer.Option(help="patch, a folder, or ORG/NAME/SUBFOLDER on a hub.")] = None,
    text: Annotated[str | None, typer.Option(help="Text encoder for --codec: a folder, or ORG/NAME.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Length of the embeddings of --text.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Only this teacher's clips.")] = None,
    tile: Annotated[int | None, typer.Option(help="Encode in tiles of so many latents, for large pictures.")] = None,
    weights: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="What --codec and --text work in.")
    ] = "float32",
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="What latents are kept in.")] = "float16",
    device: Device = "cpu",
) -> None:
    """Turn a cache into latents and embeddings, once; the same command goes on where it stopped.

    Example: `streamstill encode --cache runs/cache --student runs/quickstart/student --out runs/encoded`
    """
    from streamstill.cli.encode import Asked
    from streamstill.cli.encode import encode as encode_cache

    asked = Asked(
        cache=cache,
        out=out,
        student=student,
        codec=codec,
        text=text,
        tokens=tokens,
        teacher=teacher,
        tile=tile,
        weights=weights,
        dtype=dtype,
        device=device,
    )
    encode_cache(asked, _console())


@app.command()
def train(
    student: Annotated[Path, typer.Argument(help="Folder of the student to start from.")],
    cache: Annotated[Path, typer.Option(help="Folder of the teacher cache or of `encode`, or s3://BUCKET/DIR.")] = Path(
        "runs/cache"
    ),
    objective: Annotated[str, typer.Option(help="flow-matching, afd, gan, dmd or reward-weighted.")] = "flow-matching",
    steps: Annotated[int, typer.Option(help="Steps in all.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    track: Annotated[
        bool, typer.Option("--track", help="Send the metrics to TensorBoard files in the run, too.")
    ] = False,
    overrides: Overrides = None,
    device: Device = "cpu",
) -> None:
    """Teach a student from a cache; the same command goes on where it stopped.

    Example: `streamstill train runs/quickstart/student --cache runs/cache --steps 200`
    """
    from streamstill.cli.commands import train_student

    train_student(student, cache, objective, steps, out, overrides or [], _console(), track=track, device=device)


@app.command()
def stream(
    student: Annotated[Path, typer.Argument(help="Folder of a student.")],
    prompt: Annotated[list[str], typer.Option(help="What to show; repeat it to change the prompt on the way.")],
    frames: Annotated[int, typer.Option(help="Number of frames, for all prompts together.")] = 64,
    out: Annotated[Path, typer.Option(help="Video file to write.")] = Path("runs/stream.mp4"),
    seed: Annotated[int, typer.Option(help="Another seed is another video.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the default is the student's own.")] = None,
    first_frame: Annotated[Path | None, typer.Option(help="Picture that the video begins with.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Make one clip in one piece; every frame sees all.")] = False,
    guidance: Annotated[float | None, typer.Option(help="How far to follow the prompt, with --whole.")] = None,
    light_decoder: LightDecoderFolder = None,
    device: Device = "cpu",
) -> None:
    """Make a video frame by frame and say how fast it was.

    Example: `streamstill stream runs/quickstart/student --prompt "A red ball is dropped."`
    """
    from streamstill.cli.stream import Asked, make_video

    asked = Asked(
        student=student,
        prompts=tuple(prompt),
        frames=frames,
        out=out,
        seed=seed,
        steps=steps,
        first_frame=first_frame,
        whole=whole,
        guidance=guidance,
        light_decoder=light_decoder,
        device=device,
    )
    make_video(asked, _console())


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="Folder of a student, or a preset: nano, micro, small, phone, server.")],
    layout: Annotated[str | None, typer.Option(help="Letters, or a layout by name (presets only).")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the default is its own.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the default is its own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the default is the student's own.")] = None,
    ages: Annotated[str, typer.Option(help="How many chunks lie behind the timed ones.")] = "5,100,1000",
    rounds: Annotated[int, typer.Option(help="How often each thing is timed.")] = 10,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch; the default is torch's own.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    light_decoder: LightDecoderFolder = None,
    out: Annotated[Path, typer.Option(help="Card to write; its Markdown goes beside it.")] = Path("runs/card.json"),
) -> None:
    """Measure how fast a student or a preset streams, and write a benchmark card.

    Example: `streamstill bench nano --threads 2 --out runs/nano.json`
    """
    from streamstill.cli.bench import Asked, measure

    asked = Asked(
        what=what,
        layout=layout,
        height=height,
        width=width,
        steps=steps,
        ages=ages,
        rounds=rounds,
        dtype=dtype,
        device=device,
        threads=threads,
        compiled=compiled,
        out=out,
        light_decoder=light_decoder,
    )
    measure(asked, _console())


@search_app.command("measure")
def search_measure(
    name: Annotated[str, typer.Option("--preset", help="nano, micro, small, phone or server.")] = "nano",
    target: Annotated[str, typer.Option(help="cpu, cuda, onnx, executorch or coreml-table.")] = "cpu",
    kinds: Annotated[str, typer.Option(help="Letters of the kinds of block to measure.")] = "LS",
    height: Annotated[int | None, typer.Option(help="Latent rows; the default is the preset's.")] = None,
    width: Annotated[int | None, typer.Option(help="Latent columns; the default is the preset's.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="Threads of torch; the default is torch's own.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each thing is timed.")] = 30,
    table: Annotated[Path | None, typer.Option(help="What was measured elsewhere, for coreml-table.")] = None,
    out: Annotated[Path, typer.Option(help="Cost table to write.")] = Path("runs/cost_table.json"),
) -> None:
    """Measure what blocks of each kind, switches of resolution and the ends cost, and write a cost table.

    Example: `streamstill search measure --preset nano --target cpu --kinds LS`
    """
    from streamstill.cli.search import AskedTable, measure

    asked = AskedTable(
        name=name,
        target=target,
        kinds=kinds,
        height=height,
        width=width,
        dtype=dtype,
        threads=threads,
        rounds=rounds,
        table=table,
        out=out,
    )
    measure(asked, _console())


@search_app.command("place")
def search_place(
    layout: Annotated[str, typer.Option(help="The counts, as letters in any order; the order is what is learnt.")],
    name: Annotated[str, typer.Option("--preset", help="nano or micro: whose width the network has.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/placement"),
    overrides: Overrides = None,
) -> None:
    """Learn on the embedded world where the full-resolution blocks belong; the same command goes on where it stopped.

    Example: `streamstill search place --preset nano --layout LLSS`
    """
    from streamstill.cli.search import learn_placement

    learn_placement(name, layout, out, overrides or [], _console())


@search_app.command("run")
def search_run(
    name: Annotated[str, typer.Option("--preset", help="nano, micro, small, phone or server.")] = "nano",
    budget_ms: Annotated[float | None, typer.Option(help="Most milliseconds of one velocity pass.")] = None,
    budget_mb: Annotated[float | None, typer.Option(help="Most MB of memory at the peak.")] = None,
    target: Annotated[str, typer.Option(help="As for `measure`: where costs are measured without a table.")] = "cpu",
    kinds: Annotated[str, typer.Option(help="Letters of the kinds of block to choose from.")] = "LS",
    table: Annotated[Path | None, typer.Option(help="Cost table; without one, costs are measured first.")] = None,
    worths: Annotated[Path | None, typer.Option(help="placement.json of `search place`, to order by.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the answer, its report and pictures.")] = Path("runs/search"),
) -> None:
    """Find the layout that fits the budgets, check it, draw it, and say how to train it.

    Example: `streamstill search run --preset nano --budget-ms 8 --budget-mb 40 --target cpu`
    """
    from streamstill.cli.search import find_layout

    find_layout(
        name=name,
        budget_ms=budget_ms,
        budget_mb=budget_mb,
        target=target,
        kinds=kinds,
        table=table,
        worths=worths,
        out=out,
        console=_console(),
    )


@app.command()
def doctor() -> None:
    """Check this machine: versions, codecs, the cache's disk, known traps.

    Example: `streamstill doctor`
    """
    from streamstill.cli.doctor import examine

    if not examine(_console()):
        raise typer.Exit(1)


def main() -> None:
    """Run a command; every expected failure ends in one sentence on standard error."""
    try:
        app()
    except (ValueError, FloatingPointError, ModuleNotFoundError) as error:
        stop(str(error), status=1)
    except OSError as error:
        own = error.strerror if error.filename is None else None  # our sentence without "[Errno 28]" before it
        stop(own or str(error), status=1)
    except (MemoryError, RuntimeError) as error:
        stop(out_of_memory(error), status=1)
    except SystemExit as end:
        if end.code != CTRL_C:  # which is what typer makes of a KeyboardInterrupt
            raise
        kept = any(word in _GO_ON for word in sys.argv[1:3])
        stop("stopped; the same command goes on from here" if kept else "stopped; nothing was kept", status=CTRL_C)


def _console() -> Console:
    return Console(highlight=False)
