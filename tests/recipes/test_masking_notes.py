"""What the recipes of weight sparsity say of layers that are lost in training."""

from __future__ import annotations

from pathlib import Path

from prunus.recipes import load, run

NET = Path(__file__).with_name("small_net.py")
SMALL = [f"model={NET}:small", "data.channels=1", "data.size=8", "data.source=digits", "data.limit=100", "batch=50"]
SMALL += ["epochs=1", "lr=0.001", "measure.backends=[]"]


def notes(name: str, folder: Path, *more: str) -> str:
    _, result = run(load(name, [*SMALL, *more]), folder, quiet=True)
    return " ".join(result["notes"])


def test_a_layer_that_no_path_uses_any_more_is_named(tmp_path):
    asked = ["method=gmp", "options.allocator=global", "options.every=1", "budget.density=0.002"]
    assert "no path from input to output uses" in notes("sparse-training", tmp_path / "few", *asked)
    tickets = ["rounds=1", "budget.density=0.002"]
    assert "no path from input to output uses" in notes("lottery-ticket", tmp_path / "tickets", *tickets)
    assert notes("sparse-training", tmp_path / "many", "method=gmp", "budget.density=0.5") == ""
