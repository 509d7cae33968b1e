"""The command line: what each verb prints, its exit code, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunus
from prunus.cli import main
from prunus.zoo import digits_net

CUT = ["prune", "prunus:digits_net", "--budget", "macs=0.5", "--seed", "3"]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `prunus prune` wrote."""
    out = tmp_path_factory.mktemp("cli") / "cut"
    assert code(*CUT, "--data", "digits", "--out", out, "--json") == 0
    return out


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("--help") == 0
    shown = capsys.readouterr().out
    for verb in ("run", "prune", "groups", "measure", "export", "report", "compare", "ls", "cp", "validate"):
        assert f"\n  {verb} " in shown
        assert code(verb, "--help") == 0
        assert "--json" in capsys.readouterr().out
    assert code("--version") == 0
    assert capsys.readouterr().out.strip() == f"prunus {prunus.__version__}"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("criteria", "bn-gamma"),
        ("allocators", "global"),
        ("regularizers", "bn-gamma"),
        ("recipes", "network-slimming"),
        ("models", "prunus:resnet56"),
        ("backends", "onnxruntime"),
        ("formats", "onnx"),
    ],
)
def test_ls(kind: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("ls", kind, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert all(row["what"] for row in rows.values()) and expected in rows
    assert code("ls", kind) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ls", "criterion"], "Did you mean 'criteria'?"),
        (["run", "quikstart"], "Did you mean 'quickstart'?"),
        (["run", "quickstart", "epoch=1"], "Did you mean 'epochs'?"),
        (["prune", "prunus:resnet21", "--budget", "macs=0.5"], "Did you mean 'resnet"),
        (["prune", "resnet20", "--budget", "macs=0.5"], "Did you mean 'prunus:resnet20'?"),
        (["prune", "prunus:resnet20", "--budget", "mac=0.5"], "Did you mean 'macs'?"),
        (["prune", "prunus:resnet20", "--budget", "macs=1.5"], "must lie in (0, 1]"),
        (["prune", "prunus:resnet20", "--budget", "macs=0.5", "--criterion", "bn-gama"], "Did you mean 'bn-gamma'?"),
        (["prune", "prunus:resnet20", "--budget", "macs=0.00001"], "least reachable"),
        (["prune", "prunus:resnet20", "--budget", "macs=0.5", "--freeze", "conv9"], "conv9"),
        (["prune", "prunus:digits_net", "--budget", "macs=0.5", "--repair"], "--data"),
        (["prune", "prunus:digits_net", "--budget", "macs=0.5", "--data", "/no/data"], "/no/data"),
        (["prune", "prunus:digits_net", "--budget", "macs=0.5", "--weights", "/no.pt"], "/no.pt"),
        (["groups", "prunus:resnet20", "--input", "1x3"], "--input"),
        (["groups", "no/file.py:net"], "no/file.py"),
        (["measure", "prunus:resnet20", "--backend", "torhc"], "Did you mean 'torch'?"),
        (["measure", "prunus:resnet20", "--batch", "0"], "--batch"),
        (["report", "/no/folder"], "/no/folder"),
        (["compare", "/no/folder"], "/no/folder"),
        (["export", "/no/folder"], "/no/folder"),
        (["validate", "quickstart", "seed=-1"], "seed"),
        (["cp", "quickstart", "/no/folder/x.yaml"], "/no/folder"),
    ],
)
def test_wrong_input_is_one_message_and_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")] if arguments[0] in ("prune", "run") else []
    assert code(*arguments, *out) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("Error: ") and expected in streams.err
    assert "Traceback" not in streams.err and streams.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_verb_that_does_not_exist_and_a_missing_argument_are_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("prun") == 2
    assert code("prune", "prunus:resnet20") == 2
    assert code("prune", "prunus:resnet20", "--budget", "macs=0.5") == 2
    assert "--out is missing" in capsys.readouterr().err


def test_prune_writes_a_run_folder(cut: Path) -> None:
    result = json.loads((cut / "result.json").read_text())
    assert result["recipe"] == "prune" and [s["name"] for s in result["stages"]] == ["prune", "recalibrate"]
    assert result["after"]["macs"] <= 0.5 * result["before"]["macs"]
    assert result["verified"]["max_relative_error"] <= 1e-7
    assert (cut / "report.html").is_file()


def test_a_pruned_network_loads_in_a_new_process_to_the_bit(cut: Path, tmp_path: Path) -> None:
    code_ = (
        "import sys, torch, prunus; from prunus.zoo import digits_net; torch.set_num_threads(1);"
        "net = prunus.load(sys.argv[1], digits_net).eval();"
        "torch.save(net(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7))).detach(), sys.argv[2])"
    )
    run = [sys.executable, "-c", code_, str(cut / "model.safetensors")]
    for name in ("a", "b"):
        subprocess.run([*run, str(tmp_path / name)], check=True)
    there, again = (torch.load(tmp_path / n, weights_only=True) for n in ("a", "b"))
    torch.set_num_threads(1)
    net = prunus.load(cut / "model.safetensors", digits_net).eval()
    here = net(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7))).detach()
    assert torch.equal(there, here) and torch.equal(there, again) and here.std() > 0


def test_prune_refuses_a_folder_that_holds_a_run(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in cut.rglob("*")}
    assert code(*CUT, "--out", cut) == 2
    assert "already holds a run; nothing was written" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in cut.rglob("*")} == before


def test_dry_run_says_what_prune_would_do_and_writes_nothing(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code(*CUT, "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    result = json.loads((cut / "result.json").read_text())
    assert said["plan"] == result["plan"]
    assert said["after"]["macs"] == result["after"]["macs"]
    assert list(tmp_path.iterdir()) == []


def test_own_model_and_own_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))\n"
        "def score(model): return float(-sum(p.numel() for p in model.parameters()))\n"
    )
    mine = f"{tmp_path}/mine.py"
    arguments = ["prune", f"{mine}:net", "--input", "1,6:int64<50", "--budget", "params=0.6"]
    assert code(*arguments, "--evaluate", f"{mine}:score", "--out", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    for side in ("before", "after"):
        assert result[side]["metric"] == {"name": "score", "value": -float(result[side]["params"])}
        assert result[side]["accuracy"] is None
    assert result["after"]["params"] <= 0.6 * result["before"]["params"]


def test_groups_as_a_table_as_a_tree_as_json_and_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "groups.html"
    assert code("groups", "prunus:resnet20", "--freeze", "layer3", "--html", page) == 0
    assert "layer1.{0..2}.conv1" in capsys.readouterr().out
    written = page.read_text()
    assert 'href="#group=layer1.0.conv1"' in written and "frozen by the user" in written
    assert code("groups", "prunus:resnet20", "--freeze", "layer3", "--html", page) == 2
    assert page.read_text() == written and str(page) in "".join(capsys.readouterr().err.split("\n"))
    assert code("groups", "prunus:resnet20", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert {g["group"]: (g["units"], g["kind"]) for g in data["groups"]}["layer1.0.conv1"] == (16, "channel")
    assert data["cost"]["params"] == 269722 and data["fixed"]
    assert code("groups", "prunus:resnet20", "--tree") == 0
    folded = capsys.readouterr().out
    assert "{0..2} BasicBlock" in folded and "Conv2d" in folded
    assert code("groups", "prunus:resnet20", "--tree", "--unfold") == 0
    assert len(capsys.readouterr().out.splitlines()) > len(folded.splitlines())


def test_measure_a_model_and_a_run(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timing = ["--backend", "torch", "--batch", "1,2", "--seconds", "0.01"]
    assert code("measure", "prunus:digits_net", *timing, "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["params"] == sum(p.numel() for p in digits_net().parameters())
    assert set(whole["latency"]) == {"torch,b1,t1", "torch,b2,t1"}
    assert sum(whole["macs_by_operator"].values()) == whole["macs"] and whole["not_counted"]
    assert code("measure", cut, "--seconds", "0.01", "--json") == 0
    small = json.loads(capsys.readouterr().out)
    assert small["macs"] == json.loads((cut / "result.json").read_text())["after"]["macs"] < whole["macs"]
    assert small["latency"]["onnxruntime,b1,t1"]["median_ms"] > 0


def test_measure_counts_and_times_a_network_in_a_basis_folded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "import prunus\n"
        "plain = prunus.zoo.digits_net\n"
        "def in_a_basis():\n    net = plain()\n    prunus.interspace_(net)\n    return net\n"
    )
    timing = ["--input", "1,1,8,8", "--backend", "torch", "--seconds", "0.01"]
    said = []
    for name in ("plain", "in_a_basis"):
        assert code("measure", f"{file}:{name}", *timing, "--json") == 0
        said.append(json.loads(capsys.readouterr().out))
    plain, folded = said
    counts = ("params", "macs", "size_bytes", "macs_by_operator", "not_counted")
    assert [plain[k] for k in counts] == [folded[k] for k in counts]
    assert plain["notes"] == [] and folded["notes"][0].startswith("weights in a basis are folded (")
    assert code("measure", f"{file}:in_a_basis", *timing) == 0
    assert "weights in a basis are folded" in " ".join(capsys.readouterr().out.split())


def test_export_report_and_compare(cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("export", cut, "--to", "onnx", "--out", tmp_path / "net.onnx", "--json") == 0
    said = json.loads(capsys.readouterr().out)["onnx"]
    assert said["max_relative_error"] <= 1e-4 and Path(said["path"]).stat().st_size > 1000
    assert code("export", cut, "--to", "onyx") == 2
    assert "Did you mean 'onnx'?" in capsys.readouterr().err
    assert code("report", cut, "--json") == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(cut / "report.html")
    assert code("compare", cut, cut) == 0
    assert capsys.readouterr().out.count("cut") >= 2


def test_cp_copies_a_recipe_that_runs_and_never_writes_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("cp", "quickstart", tmp_path) == 0
    copy = tmp_path / "quickstart.yaml"
    assert str(copy) in capsys.readouterr().out.replace("\n", "")
    assert code("validate", copy, "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert code("validate", "quickstart", "--json") == 0
    assert json.loads(capsys.readouterr().out) == own
    copy.write_text("mine")
    assert code("cp", "quickstart", tmp_path) == 2
    assert copy.read_text() == "mine"


def test_a_truncated_network_is_one_message(cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(cut, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert code("measure", broken) == 2
    assert "truncated" in capsys.readouterr().err


def test_a_training_that_diverges_is_one_message_that_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data.limit=100", "batch=50", "epochs=2", "lr=1e30", "--out", tmp_path / "out"]
    assert code("run", "quickstart", *given, "--json") == 2
    said = capsys.readouterr()
    assert "stage 'sparsify'" in said.err and "epoch 1" in said.err and "Traceback" not in said.err
    assert said.out == "" and not (tmp_path / "out" / "result.json").exists()


def test_data_without_labels_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for n in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{n}.png")
    assert code("run", "quickstart", f"data={tmp_path / 'images'}", "--out", tmp_path / "out") == 2
    assert "label" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "w.pt")
    arguments = ["prunus:digits_net", "--budget", "macs=0.5", "--weights", tmp_path / "w.pt", "--out", tmp_path / "out"]
    assert code("prune", *arguments) == 2
    assert "do not fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
