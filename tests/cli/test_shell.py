"""Commands that are printed can be typed, whatever a caption or a path is called."""

import shlex
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import streamstill
from streamstill.cli.shell import quoted
from streamstill.media import write_clip
from streamstill.types import Clip
from tests.cli.conftest import Run
from tests.recipes.tiny import FOLDER, as_flags


def test_words_are_quoted_where_it_is_needed_and_sentences_always() -> None:
    assert quoted(Path("runs/a")) == "runs/a"
    assert quoted("a red ball") == '"a red ball"'
    assert quoted("cat", always=True) == '"cat"'


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_a_shell_reads_what_was_meant(text: str) -> None:
    assert shlex.split(quoted(text)) == [text]
    assert shlex.split(quoted(text, always=True)) == [text]


def test_a_caption_is_told_as_it_is(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    caption = "A wall [applause] and [/music] ends"
    for name, level in (("dark", 40), ("bright", 200)):
        frames = np.full((8, 3, 16, 32), level, dtype=np.uint8)
        frames[:, :, :8] += np.arange(8, dtype=np.uint8)[:, None, None, None]
        write_clip(folder / f"{name}.mp4", Clip(frames_FCHW=frames, fps=8))
        (folder / f"{name}.txt").write_text(caption)
    told = run("distill", "folder", "--clips", folder, "--out", "run", *as_flags(FOLDER))
    assert told.status == 0, told.err
    assert f'--prompt "{caption}"' in told.out


def test_the_command_says_its_version(run: Run) -> None:
    told = run("--version")
    assert (told.status, told.out) == (0, f"streamstill {streamstill.__version__}\n")
