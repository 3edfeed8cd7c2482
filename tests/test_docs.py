"""The documentation runs: every Python block is executed, every command is parsed, every name and link exists."""

import ast
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from streamstill.cli.main import app
from streamstill.config import with_overrides
from streamstill.media import write_clip
from streamstill.recipes import Base, FewSteps, Folder, Knowledge, Quickstart
from streamstill.types import Clip

ROOT = Path(__file__).parents[1]
PACKAGE, DOCS = ROOT / "src" / "streamstill", ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RECIPES = {"quickstart": Quickstart(), "folder": Folder(), "base": Base(), "kd": Knowledge(), "few": FewSteps()}
NOT_RUN = "<!-- not run"  # in the line above a block: the reason follows
COMMANDS: Any = get_command(app)  # a group of click, which typer may bring along or hide

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block of a page; ``line`` is where its code starts, counted from 1."""

    language: str
    code: str
    line: int
    run: bool


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    before, start = "", 0
    language: str | None = None
    code: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if fence and language is None:
            language, code, start = fence[1], [], number + 1
        elif fence:
            yield Block(language or "", "\n".join(code) + "\n", start, not before.startswith(NOT_RUN))
            language, before = None, ""
        elif language is not None:
            code.append(line)
        elif line.strip():
            before = line.strip()


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every ``streamstill`` command in the blocks of a page."""
    code = [block.code for block in blocks(page) if block.language in ("", "bash", "console", "sh", "text")]
    parts = [part for text in code for line in text.replace("\\\n", " ").splitlines() for part in line.split("&&")]
    wanted = [part.strip().removeprefix("$ ") for part in parts]
    return [shlex.split(part, comments=True)[1:] for part in wanted if part.startswith("streamstill ")]


def moving_square(frames: int = 24) -> Clip:
    """A clip of 48x80 that is not empty, for examples that want a video."""
    pixels = np.full((frames, 3, 48, 80), 40, dtype=np.uint8)
    for frame in range(frames):
        pixels[frame, 0, 16:32, 2 * frame : 2 * frame + 16] = 220
    return Clip(frames_FCHW=pixels, fps=12)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds what examples may read: ``my_clips`` and a few videos."""
    monkeypatch.chdir(tmp_path)
    for name in ("answer.mp4", "before.mp4", "after.mp4", "my_clips/one.mp4", "my_clips/two.mp4"):
        write_clip(tmp_path / name, moving_square())
    (tmp_path / "my_clips" / "one.txt").write_text("a red square slides", encoding="utf-8")
    (tmp_path / "my_clips" / "two.txt").write_text("a red square slides again", encoding="utf-8")
    return tmp_path


@each_page
@pytest.mark.usefixtures("desk")
def test_python_blocks_run_and_print_what_the_text_below_says(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": f"{page.stem}_example"}
    printed = None
    for block in blocks(page):
        if block.language == "python" and block.run:
            source = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
            exec(compile(source, str(page), "exec"), namespace)
            printed = capsys.readouterr().out
        elif block.language == "text":
            assert block.code == printed


@each_page
def test_blocks_that_are_not_run_are_at_least_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.run:
            ast.parse(block.code)


@each_page
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        name, arguments = words[0], words[1:]
        assert name in COMMANDS.commands, f"{page.name}: there is no command {name!r}"
        if "--help" in arguments:
            continue
        given = COMMANDS.commands[name].make_context(name, list(arguments)).params
        if name == "distill":
            with_overrides(RECIPES[given["recipe"]], list(given["overrides"] or []))


@each_page
def test_commands_in_the_prose_exist(page: Path) -> None:
    for text in re.findall(r"`streamstill ([^`]+)`", prose(page)):
        name, *rest = shlex.split(text)
        if name == "--help":
            continue
        assert name in COMMANDS.commands, f"{page.name}: there is no command {name!r}"
        known = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, f"{page.name}: {text!r}"


def test_every_command_has_help_with_an_example() -> None:
    for name in COMMANDS.commands:
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert f"Example: streamstill {name}" in " ".join(re.sub(r"[^\w\s:./-]", " ", shown.output).split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_shell_blocks_and_the_ci_script_are_valid() -> None:
    code = [block.code for page in PAGES for block in blocks(page) if block.language in ("bash", "sh")]
    for text in [*code, (ROOT / ".ci" / "run").read_text(encoding="utf-8")]:
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{checked.stderr} in\n{text}"


def test_the_first_two_commands_install_and_test() -> None:
    install, test = (block.code for block in list(blocks(ROOT / "README.md"))[:2])
    assert "pip install ." in install
    assert install.strip().endswith("streamstill distill quickstart")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert test.strip().split("&& ")[-1] in ci, "the tests of the README are those of .ci/run"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page)):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@each_page
def test_names_of_the_package_exist(page: Path) -> None:
    for name in re.findall(r"`(streamstill(?:\.\w+)+)(?=[`(])", prose(page)):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            if not _is_module(parts[:cut]):
                continue
            found: object = import_module(".".join(parts[:cut]))
            for attribute in parts[cut:]:
                assert hasattr(found, attribute), f"{page.name}: there is no {name}"
                found = getattr(found, attribute)
            break


@each_page
def test_files_and_what_is_said_to_be_in_them_exist(page: Path) -> None:
    for file, name in re.findall(r"`([a-z_/]+\.py)`(?: `([A-Za-z_.]+)`)?", prose(page)):
        path = (ROOT if file.startswith(("tests/", "benchmarks/")) else PACKAGE) / file
        assert path.is_file(), f"{page.name} names {file}"
        assert not name or name in _names(path), f"{page.name}: {file} has no {name}"


def test_every_page_is_in_the_index_and_every_room_has_a_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\w+\.md)\)", index))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith(("_", "py.", "assets"))}
    for room in rooms:
        assert f"`{room}`" in index, f"docs/index.md says nothing about the room {room}"


def _is_module(parts: list[str]) -> bool:
    base = PACKAGE.joinpath(*parts[1:])
    return base.is_dir() or base.with_suffix(".py").is_file()


def _names(path: Path) -> set[str]:
    """Functions, classes, constants, and methods and fields as ``Class.member``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= _bound(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in _bound(member)}
    return found


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
