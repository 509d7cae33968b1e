"""The page on interspace pruning runs."""

import re
from pathlib import Path

import prunus

PAGE = Path(prunus.__file__).parents[1] / "docs" / "interspace.md"


def test_the_example_of_the_page_runs_and_ends_with_plain_layers(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert "19 weights in 19 bases" in printed and "pruning rate 95.00%" in printed
    assert list(names["net"].state_dict()) == list(prunus.zoo.resnet20().state_dict())
