"""Rules of the house that are tests: the cost of an import, public names, arrows between rooms, length of code."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamstill

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "src" / "streamstill", ROOT / "tests"
PUBLIC = [
    "CachedTeacher",
    "Clip",
    "ClipRequest",
    "ClipStore",
    "FolderTeacher",
    "Geometry",
    "Sampling",
    "Session",
    "Student",
    "Teacher",
    "WorldTeacher",
    "collect",
]
LONGEST_FUNCTION, MEDIAN_FUNCTION, LONGEST_FILE, LEAST_TESTS = 80, 12, 400, 0.8  # lines; tests per line of source
# Written in two parts, so that this file does not contain them.
FOREIGN = [a + b for a, b in (("/wor", "k/"), ("/roo", "t/"), ("/hom", "e/"), ("pypi", ".org"), ("python", "hosted"))]
FOREIGN += [a + b for a, b in (("download.py", "torch.org"), ("index", "-url"), ("index", "_url"), ("INDEX", "_URL"))]

# Runs in a process of its own: what a bare import opens, connects to and loads.
SPY = """
import json, os, sys
touched = []
def spy(event, arguments):
    if event.startswith("socket."):
        touched.append(event)
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR) and path != os.devnull
        if writes or os.path.abspath(path).startswith(os.getcwd() + os.sep):
            touched.append(path)
sys.addaudithook(spy)
{imports}
torch = sys.modules.get("torch")
cuda = bool(torch and torch.cuda.is_initialized())
print(json.dumps({"touched": touched, "loaded": sorted(sys.modules), "cuda": cuda}))
"""
EVERYTHING = """
import importlib, pkgutil, streamstill
for module in pkgutil.walk_packages(streamstill.__path__, "streamstill."):
    importlib.import_module(module.name)
"""


def sources(*roots: Path) -> list[Path]:
    return [path for root in roots for path in sorted(root.rglob("*.py"))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def after_importing(imports: str, folder: Path) -> dict[str, object]:
    home = str(Path(streamstill.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"}
    program = SPY.replace("{imports}", imports)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_importing_the_package_costs_nothing(tmp_path: Path) -> None:
    found = after_importing("import streamstill; streamstill.__version__", tmp_path)
    assert found["touched"] == []
    heavy = {"torch", "numpy", "lance", "pyarrow", "av", "PIL", "pymunk", "rich", "typer"}
    loaded = found["loaded"]
    assert isinstance(loaded, list)
    assert heavy & set(loaded) == set()


def test_importing_every_module_writes_nothing_and_wakes_neither_cuda_nor_lance(tmp_path: Path) -> None:
    found = after_importing(EVERYTHING, tmp_path)
    assert found["touched"] == []
    assert found["cuda"] is False
    loaded = found["loaded"]
    assert isinstance(loaded, list)
    assert "lance" not in loaded
    assert "streamstill.training.trainer" in loaded


def test_the_public_names_are_these_and_no_others() -> None:
    assert streamstill.__all__ == PUBLIC
    assert sorted(dir(streamstill)) == sorted([*PUBLIC, "__version__"])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_loaded(name: str) -> None:
    loaded = getattr(streamstill, name)
    assert loaded.__name__ == name
    assert loaded.__module__.startswith("streamstill.")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="CachedTeacher, Clip"):
        streamstill.Studnet  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("streamstill")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("streamstill is not installed here, only importable")
    assert streamstill.__version__ == installed


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The arrows of pyproject.toml, checked for the package in ``folder``."""
    pytest.importorskip("importlinter", reason='install the dev extra: pip install ".[dev]"')
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", command, *options], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_imports_follow_the_arrows() -> None:
    done = lint_imports(PACKAGE.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_violations_of_the_arrows_are_caught(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "streamstill", ignore=shutil.ignore_patterns("__pycache__", "nano_base"))
    planted = {
        "types": "streamstill.config",  # upwards
        "metrics": "streamstill.student.layout",  # sideways
        "streaming.model": "streamstill.student.student",
        "teachers.world": "streamstill.worlds.world",
        "training.ema": "streamstill.worlds.judge",
    }
    for module, wanted in planted.items():
        path = tmp_path / "streamstill" / (module.replace(".", "/") + ".py")
        path.write_text(path.read_text(encoding="utf-8") + f"\n\ndef late() -> None:\n    import {wanted}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    for module, wanted in planted.items():
        assert f"streamstill.{module} -> {wanted}" in done.stdout, f"the import of {wanted} in {module} was not seen"


def test_no_function_and_no_file_is_too_long() -> None:
    for path in sources(PACKAGE, TESTS):
        count = lines([path])
        assert count <= LONGEST_FILE, f"{path} has {count} lines, at most {LONGEST_FILE} are allowed"
        for function in functions(path):
            where = f"{path}:{function.lineno} {function.name}"
            assert length(function) <= LONGEST_FUNCTION, f"{where} has {length(function)} lines"


def test_functions_are_short() -> None:
    lengths = [length(function) for path in sources(PACKAGE) for function in functions(path)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_every_argument_is_annotated() -> None:
    for path in sources(PACKAGE, TESTS):
        for function in functions(path):
            given = function.args
            extra = [argument for argument in (given.vararg, given.kwarg) if argument]
            bare = [
                argument.arg
                for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, *extra)
                if argument.annotation is None and argument.arg not in ("self", "cls")
            ]
            assert not bare, f"{path}:{function.lineno} {function.name} has arguments without a type: {bare}"


def test_there_are_enough_tests() -> None:
    source, tests = lines(sources(PACKAGE)), lines(sources(TESTS))
    assert tests >= LEAST_TESTS * source, f"{tests} lines of tests for {source} lines of source"


def test_the_source_is_plain_ascii() -> None:
    for path in sources(PACKAGE):
        assert path.read_bytes().isascii(), f"{path} has a character outside ASCII"


def test_torchvision_is_absent_or_fits() -> None:
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever it says, it breaks other packages too
        pytest.fail(
            f"torchvision does not fit this torch, and breaks what imports it: pip uninstall torchvision ({error})"
        )


def repository_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return [path for path in sources(PACKAGE, TESTS) if path.is_file()] + sorted((ROOT / "docs").glob("*"))
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine_or_the_host_of_a_package_index() -> None:
    for path in repository_files():
        content = path.read_bytes()
        named = [text for text in FOREIGN if text.encode() in content]
        assert not named, f"{path} names {named}"
