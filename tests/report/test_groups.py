"""Groups on a terminal: every group and every parameter is named, repetitions are told once, nothing is invented."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.report import View, groups_table, groups_tree
from prunus.report.groups import as_data, look_alike
from prunus.report.indices import compact
from prunus.report.modules import grow
from prunus.report.naming import folded, numbers
from prunus.report.view import unit_cost
from tests.report.sample import row_of, shown
from tests.report.traced import EVIL, view_of

EVERY = ["resnet20", "odd", "heads", "two"]


def expanded(name):
    """What a shell makes of braces: a{0..2,5}b -> a0b a1b a2b a5b."""
    found = re.search(r"\{([\d.,]+)\}", name)
    if not found:
        return [name]
    out = []
    for part in found.group(1).split(","):
        low, _, high = part.partition("..")
        out += [name[: found.start()] + str(n) + name[found.end() :] for n in range(int(low), int(high or low) + 1)]
    return out


def test_groups_are_told_for_people():
    view = view_of("two")
    assert unit_cost(view.groups, view.groups[0]) == {"params": 27 + 2 + 5, "macs": 64 * (27 + 5)}
    text = shown(groups_table(view))
    for words in ("conv1", "made by conv1", "scaled by bn", "read by conv2", "34 params", "2.05 k MACs a unit"):
        assert words in text, words
    assert "1 group, 4 removable units" in text
    assert row_of(text, "conv2.weight") == "conv2.weight an output of the network"
    assert row_of(text, "[image]") == "[image] an input of the network"
    (row,) = as_data(view)
    assert row["together"] == {"made by": ["conv1"], "scaled by": ["bn"], "read by": ["conv2"]}
    assert (row["kind"], row["parts"]) == ("channel", 1)


@pytest.mark.parametrize("name", EVERY)
def test_every_row_of_a_dimension_is_told_once(name):
    view = view_of(name)
    slices = {(s.name, s.dim, n): s.index.numel() for n, g in enumerate(view.groups, 1) for s in g.slices}
    told = {}
    for tensor in view.tensors:
        for d, dim in enumerate(tensor.dims):
            assert dim.kept >= 0 and dim.size == view.groups.tensors[tensor.name].shape[d]
            for n in dim.groups:
                told[tensor.name, d, n] = sum(term.rows for term in dim.terms if n in term.groups)
    assert told == slices


def test_alike_groups_are_one_row_and_none_is_lost():
    view = view_of("resnet20")
    rows = look_alike(view)
    assert sorted(n for row in rows for n in row) == list(range(1, len(view.groups) + 1))
    assert len(rows) < len(view.groups) == len(look_alike(view, fold=False))
    text = shown(groups_table(view), width=200)
    assert "2..4 layer1.{0..2}.conv1 3 × 16 made by layer1.{0..2}.conv1" in re.sub(r" +", " ", text)
    whole = shown(groups_table(view, unfold=True), width=200)
    assert all(re.search(rf"^ *{n} +{re.escape(g.id)} ", whole, re.MULTILINE) for n, g in enumerate(view.groups, 1))


def lines_of(view, **options):
    """The module tree as printed: ``{path: what stands after it}``."""
    text = shown(groups_tree(view, **options), width=400).partition("How to read it")[0]
    found, path = {}, []
    for line in text.splitlines()[1:]:
        guides, label = re.match(r"((?:│   |    |├── |└── )*)(.*)", line).groups()
        depth = len(guides) // 4
        name, _, rest = label.rstrip().partition(" ")
        path[max(depth - 1, 0) :] = [name]
        found[".".join(path)] = label.rstrip() if "[" in name or name.endswith(",") else rest
    return found


@pytest.mark.parametrize("name", ["resnet20", "heads", "two"])
def test_the_tree_names_every_parameter_with_its_groups(name):
    view = view_of(name)
    lines = lines_of(view, unfold=True)
    groups = {}
    for n, group in enumerate(view.groups, 1):
        for part in group.slices:
            groups.setdefault(part.name, set()).add(n)
    for tensor, axes in view.groups.tensors.items():
        if axes.parameter:
            module, _, leaf = tensor.rpartition(".")
            shape = re.search(rf"\b{leaf}\b[\w, ]*(\[.*?\])", lines[module]).group(1)
            assert {int(n) for n in re.findall(r"#(\d+)", shape)} == groups.get(tensor, set()), tensor
            sizes = re.sub(r"#[#\d+×]+|fixed \w", "", shape).replace(" ", "")
            assert sizes == str(list(axes.shape)).replace(" ", ""), tensor


def test_repeated_blocks_are_folded_and_all_of_their_groups_are_there():
    view = view_of("resnet20")
    lines = lines_of(view)
    ids = [g.id for g in view.groups]
    inner = ",".join(f"#{ids.index(f'layer1.{i}.conv1') + 1}" for i in range(3))
    assert lines["layer1.{0..2}.conv1"] == f"Conv2d  weight [16 {inner}, 16 #1, 3, 3]"
    assert len(lines) < len(lines_of(view, unfold=True))


def test_many_repeated_blocks_are_told_by_the_first_and_the_last():
    view = view_of("chain")
    lines, ids = lines_of(view), [g.id for g in view.groups]
    made, used = ([ids.index(f"{block}.{layer}") + 1 for block in (1, 4)] for layer in (0, 2))
    read = f"#{ids.index('0.2') + 1},..,#{ids.index('3.2') + 1}"
    made, used = (f"#{first},..,#{last}" for first, last in (made, used))
    assert lines["{1..4}.0"] == f"Linear  weight [6 {made}, 4 {read}]  bias [6 {made}]"
    assert lines["{1..4}.2"] == f"Linear  weight [4 {used}, 6 {made}]  bias [4 {used}]"


def test_joined_and_multiplied_groups_and_what_is_fixed():
    view = view_of("odd")
    text = shown(groups_tree(view, name="odd"), width=200)
    joined = view.groups.tensors["grouped.weight"]
    assert joined.shape == (6, 6, 3, 3)
    assert EVIL in text and "fixed a" in text and "a: it is an output of the model" in text
    assert "weight [24 #1×#2, 6]" in shown(groups_tree(view_of("heads")), width=200)


def test_heads_parts_and_proportions_are_said():
    for show in (groups_table, groups_tree):
        text = shown(show(view_of("heads")), width=160)
        for words in (" heads", "head dimensions", "in 2 even parts", "Groups #1, #2 must keep equal fractions"):
            assert words in text, words
    assert [(row["kind"], row["parts"]) for row in as_data(view_of("heads"))] == [("head", 1), ("head dimension", 2)]


def test_tied_tensors_are_both_in_the_tree():
    groups = replace(view_of("two").groups, ties=(("conv1.weight", "again.weight"),))
    lines = lines_of(View(groups))
    assert "the same tensor as conv1.weight" in lines["again"] and "#1" in lines["again"]
    assert {t.name for node in grow(View(groups)).walk() for t in node.tensors} == {*groups.tensors, "again.weight"}


@given(st.lists(st.sampled_from([f"a{i}.{j}.c{k}" for i in (1, 2) for j in range(5) for k in (1, 2)]), unique=True))
def test_folded_names_expand_to_the_names(names):
    assert sorted(n for name in folded(names) for n in expanded(name)) == sorted(names)


@given(st.sets(st.integers(0, 9), min_size=1))
def test_numbers_in_braces_are_the_numbers(values):
    assert {int(n) for n in expanded(numbers(values, most=10))} == values


@given(st.integers(1, 6), st.integers(1, 8), st.randoms(use_true_random=False), st.booleans())
def test_index_patterns_are_exact(units, each, random, shuffled):
    order = list(range(units * each))
    if shuffled:
        random.shuffle(order)
    index = torch.tensor(order).reshape(units, each).sort(1).values
    assert decoded(compact(index), units) == index.tolist()
    assert decoded(compact(torch.arange(units * each).reshape(each, units).T), units) == [
        list(range(u, units * each, units)) for u in range(units)
    ]


def decoded(pattern, units):
    rows = pattern.get("units")
    rows = rows or [[(a + u * pattern["step"], n, s) for a, n, s in pattern["at"]] for u in range(units)]
    return [[a + i * s for a, n, s in row for i in range(n)] for row in rows]
