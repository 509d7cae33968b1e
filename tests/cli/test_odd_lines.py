"""Odd command lines: exit code 2, one message, no traceback, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunus.cli import main

NET = "prunus:digits_net"
CUT = ["prune", NET, "--dry-run", "--budget"]
LINES = [
    [], ["nothing"], ["prune"], ["prune", NET], [*CUT, ""], [*CUT, "macs"], [*CUT, "macs="], [*CUT, "macs=0"],
    [*CUT, "macs=-1"], [*CUT, "macs=nan"], [*CUT, "macs=inf"], [*CUT, "macs=1e400"], [*CUT, "macs=0.5;params=1"],
    *([*CUT, "macs=0.5", *more] for more in (
        ["--classes", "-5"], ["--classes", "0"], ["--classes", "1000000000000"], ["--classes", "x"],
        ["--round-to", "0"], ["--round-to", "1000000000"], ["--round-to", "x"], ["--floor", "nan"], ["--floor", "-1"],
        ["--floor", "1.5"], ["--seed", "-1"], ["--seed", "99999999999999999999"], ["--seed", "x"],
        ["--criterion", ""], ["--criterion", "../x"], ["--allocator", "none"],
        ["--per", "seconds"], ["--freeze", "nothing"], ["--only", "x"],
        ["--input", "0"], ["--input", "-1,3"], ["--input", "1,1,8,8:int7"], ["--input", "99999999999,99999"],
        ["--weights", "/dev/null"], ["--weights", "/"], ["--data", "/dev/null"], ["--loss", "x"],
        ["--loss", "none.py:f"], ["--evaluate", "x.py"], ["--repair", "x"], ["--batch", "0"], ["--batch", "x"],
    )),
    ["prune", "", "--budget", "macs=0.5", "--dry-run"], ["prune", "/dev/null", "--budget", "macs=0.5", "--dry-run"],
    ["measure", NET, "--threads", "0"], ["measure", NET, "--threads", "1000000"], ["measure", NET, "--seconds", "-1"],
    ["measure", NET, "--seconds", "nan"], ["measure", NET, "--seconds", "inf"], ["measure", NET, "--batch", "0"],
    ["measure", NET, "--batch", "99999999999"], ["measure", NET, "--batch", ""], ["measure", NET, "--backend", ""],
    ["measure", "none"], ["report", "none"], ["compare", "none"], ["export", "none"], ["groups", "none"],
    ["run", "none"], ["run", "/dev/null"], ["run", "quickstart", "epochs"], ["run", "quickstart", "=1"],
    ["run", "quickstart", "classes=1000000000000"], ["run", "quickstart", "recipe=../x"], ["validate", "/dev/null"],
    ["cp", "none"], ["cp", "quickstart", "/none/x.yaml"], ["ls", "none"],
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line)[:60] or "nothing")
def test_an_odd_line_is_one_message_and_code_2(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(line)
    shown = capsys.readouterr()
    assert end.value.code == 2, shown
    assert "Traceback" not in shown.err and shown.err.strip() or not line
    assert not line or names_what_is_odd(line, " ".join(shown.err.split())), shown.err
    assert not list(tmp_path.iterdir())


def names_what_is_odd(line: list[str], message: str) -> bool:
    """Whether a message says a word of the line that is not of every line, its key, its file, or its option."""
    odd = [word for word in line[1:] if word not in (*CUT, "macs=0.5", "quickstart")] or line[-1:]
    words = [word.removeprefix("--").replace("-", "_") for word in (*odd, *line[-2:-1])]
    words += [part for word in odd for part in (word, *word.split("="), word.partition(":")[0], str(Path(word).parent))]
    return any(word not in ("", ".") and word in message for word in words) or ("" in odd and "''" in message)


@pytest.mark.parametrize("where", ["in the file", "in forward", "in evaluate"])
def test_code_that_ends_the_program_is_reported(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "import sys, torch\nclass Net(torch.nn.Sequential):\n    def forward(self, x):\n        {forward}\n"
    body += "        return super().forward(x)\nL = torch.nn.Linear\ndef make(): return Net(L(2, 8), L(8, 2))\n"
    body += "def score(model):\n    sys.exit(0)\n"
    ends = "sys.exit(0)"
    (tmp_path / "net.py").write_text(
        body.format(forward=ends if where == "in forward" else "pass") + (ends if where == "in the file" else "")
    )
    line = ["prune", "net.py:make", "--input", "1,2", "--budget", "params=0.5", "--dry-run"]
    with pytest.raises(SystemExit) as end:
        main([*line, *(["--evaluate", "net.py:score"] if where == "in evaluate" else [])])
    shown = capsys.readouterr().err
    assert end.value.code == 1 and "sys.exit(0)" in shown and "Error:" in shown and "net.py" in shown
