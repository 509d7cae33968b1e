"""Example inputs and functions as they are named on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunus.core import InputError
from prunus.recipes.inputs import function, parse_input


def test_images_are_floats_and_the_same_on_every_call() -> None:
    one, two = parse_input("2,3,8,8").tensors[0], parse_input("2,3,8,8").tensors[0]
    assert one.shape == (2, 3, 8, 8) and one.dtype is torch.float32
    assert torch.equal(one, two) and one.std() > 0.5


def test_tokens_are_whole_numbers_below_the_limit() -> None:
    tokens, mask = parse_input("1,500:int64<7+1,500:bool").args
    assert tokens.dtype is torch.int64 and set(tokens.unique().tolist()) == set(range(7))
    assert mask.dtype is torch.bool


@pytest.mark.parametrize("text", ["", "a", "1,3,", "1,0", "1,3:int63", "1,3:float32<4", "1x3", "1,3++2", "-1,3"])
def test_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="--input"):
        parse_input(text)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(model): return 0.5\n")
    assert function(f"{tmp_path}/mine.py:score", "--evaluate")(None) == 0.5
    for bad in (f"{tmp_path}/mine.py:scor", f"{tmp_path}/mine.py", f"{tmp_path}/no.py:score", "score"):
        with pytest.raises(InputError):
            function(bad, "--evaluate")
