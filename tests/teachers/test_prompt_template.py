"""Templates: all combinations or different ones from the seed, and a field that cannot be filled is named."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.teachers.prompt_template import expand
from streamstill.teachers.prompts import PromptRow

COLORS, SHAPES = ["red", "blue"], ["ball", "box", "cone"]
ROWS = [
    PromptRow(prompt="a cat", columns={"mood": "calm", "n": 1}),
    PromptRow(prompt="a dog", columns={"mood": "wild"}),
]


def filled(template: str, tables: dict[str, list[str]], count: int | None = None, seed: int = 0) -> list[str]:
    return [row.prompt for row in expand(template, tables, count=count, seed=seed)]


def test_lists_are_filled_in_all_combinations_in_order() -> None:
    made = expand("A {color}  {shape}, {color} indeed, {{so}}", {"shape": SHAPES, "color": COLORS})
    expected = list(itertools.product(COLORS, SHAPES))
    assert [row.prompt for row in made] == [f"A {color} {shape}, {color} indeed, {{so}}" for color, shape in expected]
    assert [(row.columns["color"], row.columns["shape"]) for row in made] == expected


def test_columns_of_a_row_stay_together() -> None:
    made = expand("{prompt}, {mood}, by {style}", {"style": ["ink", "oil"]}, ROWS)
    assert [row.prompt for row in made] == [
        *("a cat, calm, by ink", "a cat, calm, by oil"),
        *("a dog, wild, by ink", "a dog, wild, by oil"),
    ]
    assert made[1].columns == {"mood": "calm", "n": 1, "style": "oil"}
    assert expand("{n} {prompt}", {}, ROWS[:1])[0].prompt == "1 a cat"


@given(count=st.integers(1, 24), seed=st.integers(0, 99))
def test_a_sample_is_of_different_combinations(count: int, seed: int) -> None:
    tables = {"a": list("pqrs"), "b": list("xyz"), "c": list("mn")}
    drawn = filled("{a}{b}{c}", tables, count, seed)
    assert len(set(drawn)) == len(drawn) == count
    assert set(drawn) <= set(filled("{a}{b}{c}", tables))
    assert drawn == filled("{a}{b}{c}", tables, count, seed)


def test_every_combination_is_drawn_about_as_often() -> None:
    drawn = [filled("{a}", {"a": ["x", "y"]}, 1, seed)[0] for seed in range(200)]
    assert 60 < drawn.count("x") < 140  # more than five standard deviations


def test_a_few_are_drawn_from_more_than_can_be_counted() -> None:
    tables = {f"f{n}": [str(i) for i in range(100)] for n in range(12)}  # 10**24
    drawn = filled(" ".join(f"{{{name}}}" for name in tables), tables, 50)
    assert len(set(drawn)) == 50
    assert len({prompt.split()[0] for prompt in drawn}) > 20


@pytest.mark.parametrize(
    ("template", "tables", "rows", "count", "said"),
    [
        ("a {color", {"color": COLORS}, [], None, "cannot read the template 'a {color'"),
        ("a {}", {}, [], None, "a field of a template is {name} and nothing else"),
        ("a {color!r}", {"color": COLORS}, [], None, "is {name} and nothing else"),
        ("a {color:>9}", {"color": COLORS}, [], None, "is {name} and nothing else"),
        ("a {color}", {"color": COLORS, "shape": SHAPES}, [], None, "has no field {shape}; add it, or leave"),
        ("a {color}", {"color": []}, [], None, "the field 'color' has no values"),
        ("a {color}", {}, [], None, "the template's field 'color' has no values; give a list, or rows"),
        ("a {color}", {"color": COLORS}, ROWS, None, "names no column of the prompts that were read; write {prompt}"),
        ("a {colour}", {}, ROWS, None, "has no text or number 'colour' for the template; it has 'prompt', 'mood'"),
        ("{prompt} {n}", {}, ROWS, None, "has no text or number 'n'"),
        ("{prompt.__class__}", {}, ROWS, None, "has no text or number 'prompt.__class__'"),
        ("a {color}", {"color": COLORS}, [], 3, "has 2 combinations, so 1 to 2 can be drawn, got 3"),
        ("a {color}", {"color": COLORS}, [], 0, "got 0"),
        ("{a}{b}", {"a": ["x"] * 1001, "b": ["y"] * 1000}, [], None, "1001000 prompts are more than the 1000000"),
    ],
)
def test_what_cannot_be_filled_says_why(
    template: str, tables: dict[str, list[str]], rows: list[PromptRow], count: int | None, said: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        expand(template, tables, rows, count=count)
    assert said in str(caught.value)
