"""Lists of prompts: what is read is what was written, whatever the script; what is drawn is drawn from the prompt."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstill.teachers.prompts import (
    REWRITTEN_FROM,
    PromptRow,
    balance,
    deduplicated,
    normalised,
    read_prompts,
    split,
    write_prompts,
)

SCRIPTS = ["Ein roter Ball fällt.", "红球落下", "مكعب أزرق يدور", "लाल गेंद गिरती है", "👩‍🚀 on the moon", "a" * 10_000]
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30).filter(normalised)
rows_of_words = st.lists(st.sampled_from([f"prompt {n}" for n in range(40)]), min_size=1, max_size=60)


def rows(*prompts: str, **columns: str) -> list[PromptRow]:
    return [PromptRow(prompt=normalised(prompt), columns=columns) for prompt in prompts]


def coloured(**counts: int) -> list[PromptRow]:
    return [row for color, n in counts.items() for row in rows(*(f"{color} {i}" for i in range(n)), color=color)]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_prompts_in_any_script_and_of_any_length_come_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"prompts{ending}"
    write_prompts(path, rows(*SCRIPTS))
    assert read_prompts(path) == rows(*SCRIPTS)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(texts, min_size=1, max_size=8))
def test_every_text_survives_every_format(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    for ending in (".txt", ".jsonl"):
        write_prompts(folder / f"a{ending}", rows(*prompts))
        read = [row.prompt for row in read_prompts(folder / f"a{ending}")]
        assert read == [normalised(prompt) for prompt in prompts]


@given(text=st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert len(once.splitlines()) <= 1


def test_a_text_file_has_a_prompt_a_line_whatever_ends_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\xef\xbb\xbf one \r\n\n  two\tthree\rfour\xe2\x80\xa8five\n")
    read = read_prompts(path)
    assert [row.prompt for row in read] == ["one", "two three", "four five"]
    assert [row.where for row in read] == [f"line {n} of {path}" for n in (1, 3, 4)]


@pytest.mark.parametrize(("ending", "between"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_keeps_its_columns_and_its_quoted_lines(tmp_path: Path, ending: str, between: str) -> None:
    lines = [["color", "caption"], ["red", f'"a ball{between} then\na ""box"""'], [], ["blue", "a cone"]]
    path = written(tmp_path / f"a{ending}", "\n".join(between.join(line) for line in lines) + "\n")
    first, second = read_prompts(path, "caption")
    assert first == PromptRow(prompt=normalised(f'a ball{between} then a "box"'), columns={"color": "red"})
    assert (second.prompt, second.columns, second.where) == ("a cone", {"color": "blue"}, f"line 5 of {path}")


def test_an_object_a_line_keeps_values_of_every_kind(tmp_path: Path) -> None:
    lines = ['{"prompt": "a\\nb", "level": 2, "tags": ["x"], "note": null}', "", '{"prompt": "c"}']
    path = written(tmp_path / "a.jsonl", "\n".join(lines))
    expected = [PromptRow(prompt="a b", columns={"level": 2, "tags": ["x"], "note": None}), PromptRow(prompt="c")]
    assert read_prompts(path) == expected
    write_prompts(tmp_path / "b.jsonl", expected)
    assert read_prompts(tmp_path / "b.jsonl") == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"good\nb\xe4d\n", r"line 2 of .*a\.txt is not UTF-8 \(byte 0xe4\); save the file as UTF-8"),
        ("a.txt", b" \n\n", r"a\.txt has no prompt in it; write one prompt a line"),
        ("a.txt", "a ball".encode("utf-16-le"), r"line 1 of .*a\.txt holds a NUL and is no text"),
        ("a.csv", b"", "has no prompt in it"),
        ("a.csv", b"prompt,color\n", "has no prompt in it"),
        ("a.csv", b"text,color\na,b\n", r"a\.csv has no column 'prompt'; its columns are 'text', 'color': name one"),
        ("a.csv", b"prompt,x,x\na,b,c\n", "has two columns of one name"),
        ("a.csv", b"prompt,color\na,red\nb, or c,red\n", r"line 3 of .*a\.csv has 3 fields and the header has 2"),
        ("a.csv", b'prompt\na\n"b" c\n', r"line 3 of .*a\.csv cannot be read .*check its double quotes"),
        ("a.csv", b'prompt,c\na,b\n"never,closed\n', r"line 3 of .*a\.csv cannot be read"),
        ("a.csv", b"prompt,color\na,red\n ,red\n", r"line 3 of .*a\.csv has no prompt; write one, or leave the line"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', r"line 2 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b"[" * 50_000, r"line 1 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b'{"prompt": 3}', r"line 1 of .*must be an object with the text 'prompt', got '\{\"prompt\": 3\}'"),
        ("a.jsonl", b'"only a text"', "must be an object with the text 'prompt'"),
        ("a.jsonl", b'{"prompt": "\\ud83d"}', r"line 1 of .*a\.jsonl holds what is no text"),
        ("a.jsonl", b'{"prompt": "a", "level": NaN}', "holds what is no text"),
        ("a.parquet", b"PAR1", r"cannot tell how prompts are written in .*give a \.txt, \.csv, \.tsv or \.jsonl file"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_prompts(written(tmp_path / name, content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no prompt file .*a\.txt"):
        read_prompts(tmp_path / "a.txt")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "older")
    with pytest.raises(ValueError, match=r"written as \.txt or \.jsonl, got .*a\.csv"):
        write_prompts(tmp_path / "a.csv", rows("a"))
    (tmp_path / "a.jsonl.partial").mkdir()  # so that nothing can be written there
    with pytest.raises(OSError, match="partial"):
        write_prompts(path, rows("a"))
    assert path.read_text() == "older"


def test_a_row_holds_a_normalised_prompt_only() -> None:
    with pytest.raises(ValueError, match="the prompt of this row is not normalised; call normalised on it"):
        PromptRow(prompt=" a")
    with pytest.raises(ValueError, match="this row has no prompt"):
        PromptRow(prompt="")


def test_the_first_of_equal_prompts_stays() -> None:
    composed, apart = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", unicodedata.normalize("NFD", "café")
    given_rows = [*rows(f"{apart}  noir", n="1"), *rows("Cafe noir", n="2"), *rows(f" {composed}\u3000noir ", n="3")]
    assert [row.columns["n"] for row in deduplicated(given_rows)] == ["1", "2"]


@given(prompts=st.lists(texts, max_size=20))
def test_deduplicating_twice_is_deduplicating_once(prompts: list[str]) -> None:
    once = deduplicated(rows(*prompts))
    assert deduplicated(once) == once
    assert {row.prompt for row in once} == {normalised(prompt) for prompt in prompts}
    assert len(once) == len({row.prompt for row in once})


@given(counts=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1), seed=st.integers(0, 99))
def test_every_value_is_kept_as_often_as_the_rarest(counts: dict[str, int], seed: int) -> None:
    everything = coloured(**counts)
    kept = balance(everything, "color", seed=seed)
    assert Counter(row.columns["color"] for row in kept) == dict.fromkeys(counts, min(counts.values()))
    assert kept == [row for row in everything if row in kept]  # in order, and nothing new
    assert {row.prompt for row in balance(everything[::-1], "color", seed=seed)} == {row.prompt for row in kept}


def test_as_many_as_wanted_are_kept_and_the_seed_says_which() -> None:
    everything = coloured(red=50, blue=30)
    kept = balance(everything, "color", 5, seed=0)
    assert Counter(row.columns["color"] for row in kept) == {"red": 5, "blue": 5}
    assert kept == balance(everything, "color", 5, seed=0)
    assert kept != balance(everything, "color", 5, seed=1)
    assert balance([], "color") == []


@pytest.mark.parametrize(
    ("given_rows", "column", "per_value", "said"),
    [
        (coloured(red=3, blue=2), "color", 3, r"of color = 'blue' there are 2 prompts and 3 are wanted of every value"),
        (coloured(red=3), "color", 0, "per_value must be at least 1, got 0"),
        (coloured(red=3), "shape", None, "this row has no 'shape' to balance by; it has 'color'"),
        (rows("a", color=" "), "color", None, "has no 'color' to balance by"),
        (rows("a"), "color", None, "it has no column"),
    ],
)
def test_what_cannot_be_balanced_says_why(
    given_rows: list[PromptRow], column: str, per_value: int | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        balance(given_rows, column, per_value)


@given(before=rows_of_words, added=rows_of_words, share=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_prompts_that_are_added_move_no_other(before: list[str], added: list[str], share: float, seed: int) -> None:
    first = split(rows(*before), share, seed=seed)
    later = split(rows(*added, *before), share, seed=seed)
    assert {row.prompt for row in first.held_out} <= {row.prompt for row in later.held_out}
    assert {row.prompt for row in first.kept} <= {row.prompt for row in later.kept}


@given(prompts=rows_of_words, seed=st.integers(0, 9))
def test_no_prompt_is_on_both_sides_and_none_is_lost(prompts: list[str], seed: int) -> None:
    sides = split(rows(*prompts), 0.5, seed=seed)
    assert not {row.prompt for row in sides.kept} & {row.prompt for row in sides.held_out}
    assert Counter(row.prompt for row in sides.kept + sides.held_out) == Counter(prompts)


@given(prompts=rows_of_words.filter(lambda prompts: len(set(prompts)) > 1), data=st.data())
def test_a_number_is_held_out_exactly(prompts: list[str], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(set(prompts)) - 1))
    assert len({row.prompt for row in split(rows(*prompts), number).held_out}) == number


def test_the_share_is_about_the_share_also_after_balancing() -> None:
    kept = balance(coloured(red=3000, blue=2000), "color", 1000, seed=0)
    held_out = len(split(kept, 0.2, seed=0).held_out)
    assert abs(held_out - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5  # five standard deviations
    assert split(kept, 0.2, seed=0) != split(kept, 0.2, seed=1)


def test_a_rewritten_prompt_stays_on_its_side() -> None:
    before = rows(*(f"prompt {n}" for n in range(40)))
    after = [PromptRow(prompt=f"much finer {n}", columns={REWRITTEN_FROM: f"prompt  {n}"}) for n in range(40)]
    held_out = [row.prompt for row in split(before, 0.3).held_out]
    assert [row.source for row in split(after, 0.3).held_out] == held_out
    assert 0 < len(held_out) < 40


@pytest.mark.parametrize(
    ("held_out", "said"),
    [(0.0, "must be between 0 and 1, got 0"), (1.0, "got 1"), (float("nan"), "got nan"), (0, "got 0"), (2, "got 2")],
)
def test_what_cannot_be_held_out_says_why(held_out: float | int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split(rows("a", "b"), held_out)


def test_a_column_called_prompt_does_not_replace_the_prompt(tmp_path: Path) -> None:
    row = PromptRow(prompt="cat, film", columns={"prompt": "cat", "style": "film"}, where="the template")
    write_prompts(tmp_path / "a.jsonl", [row])
    (read,) = read_prompts(tmp_path / "a.jsonl")
    assert (read.prompt, dict(read.columns)) == ("cat, film", {"style": "film"})


def test_what_is_written_is_plain_json(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.jsonl", rows("红球", color="red"))
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"prompt": "红球", "color": "red"}\n'
    assert json.loads((tmp_path / "a.jsonl").read_bytes()) == {"prompt": "红球", "color": "red"}
