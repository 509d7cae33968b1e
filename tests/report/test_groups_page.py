"""The page of groups: every group and slice as traced, names are text, nothing is fetched, links lead somewhere."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import unquote

import pytest

from prunus.report import View, groups_page
from tests.report.test_groups import EVERY, decoded
from tests.report.test_page import Document
from tests.report.traced import EVIL, view_of


def page_of(name):
    """The page as text, its tags, and what its script is given."""
    text = groups_page(view_of(name), name=f"torchvision:{name}")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    without = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    return text, Document(re.sub(r"<(wbr|input)\b[^>]*>", "", without)), json.loads(data)


def values(page, name):
    return [value for _, key, value in page.attributes if key == name]


@pytest.mark.parametrize("name", EVERY)
def test_every_group_and_slice_is_there_as_traced(name):
    _, _, data = page_of(name)
    groups = view_of(name).groups
    assert [(g["id"], g["units"]) for g in data["groups"]] == [(g.id, g.units) for g in groups]
    assert data["cost"] == groups.costs()
    for shown, group in zip(data["groups"], groups):
        told = [
            (data["tensors"][s["tensor"]]["name"], s["dim"], decoded(data["indices"][s["index"]], group.units))
            for s in shown["slices"]
        ]
        assert told == [(s.name, s.dim, s.index.tolist()) for s in group.slices]
    for tensor in data["tensors"]:
        assert tuple(dim["size"] for dim in tensor["dims"]) == groups.tensors[tensor["name"]].shape


@pytest.mark.parametrize("name", EVERY)
def test_the_list_and_the_tree_can_be_read_without_the_script(name):
    _, page, data = page_of(name)
    groups = view_of(name).groups
    for n, group in enumerate(groups, 1):
        assert f"#{n} {group.id}".replace(" ", "") in page.text.replace(" ", "")
    parameters = {name for name, axes in groups.tensors.items() if axes.parameter}
    assert parameters <= set(values(page, "data-tensor"))
    cut = [value.split() for value in values(page, "data-groups") if value]
    assert {int(n) for found in cut for n in found} == set(range(1, len(groups) + 1))
    assert "it is an output of" in page.text or "an output of the network" in page.text


def test_roles_are_said_in_words():
    _, _, data = page_of("two")
    told = {data["tensors"][s["tensor"]]["name"]: s["verb"] for s in data["groups"][0]["slices"]}
    assert told == {
        "conv1.weight": "made by", "bn.weight": "scaled by", "bn.bias": "scaled by", "conv2.weight": "read by",
    }  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_links_lead_to_what_is_there_and_nothing_is_fetched(name):
    text, page, data = page_of(name)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp|import\(", text)
    assert not {"link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action") or a[1].startswith("on")]
    policy = next(value for value in values(page, "content") if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; ") and "connect-src" not in policy
    there = {f"#group={g['id']}" for g in data["groups"]} | {f"#tensor={t['name']}" for t in data["tensors"]}
    links = {unquote(link) for link in values(page, "href")}
    assert links <= there
    assert {link for link in there if link.startswith("#group=")} <= links


def test_what_the_user_wrote_is_text():
    text, page, data = page_of("odd")
    assert "<script>alert" not in text and "{{ 7*7 }}" in text
    assert text.count("<script") == 2  # the data and the program
    assert EVIL in page.text
    assert f"{EVIL}.weight" in values(page, "data-tensor")
    assert f"{EVIL}.weight" in [tensor["name"] for tensor in data["tensors"]]
    assert "<script>" not in groups_page(view_of("two"), name=EVIL).replace("<script>\n", "", 1)


def test_heads_are_marked_and_parts_and_proportions_are_said():
    _, page, data = page_of("heads")
    heads, dims = data["groups"]
    assert heads["kind"] == ["head", "heads"] and dims["kind"] == ["head dimension", "head dimensions"]
    assert (heads["parts"], dims["parts"], heads["with"], dims["with"]) == (1, 2, [2], [1])
    assert "4 head dimensions in 2 even parts" in page.text
    assert values(page, "class").count("kind") == 2
    assert data["tensors"][0]["dims"][0]["terms"] == [[1, 2]]


def test_repeated_blocks_are_shut_but_the_first():
    text, _, _ = page_of("resnet20")
    shut = re.findall(r"<details><summary><b>(\w+)</b>", text)
    assert shut == ["1", "2", "2", "1", "2"]  # layer1 and layer3 repeat their block 0, layer2 its block 1


def test_a_network_without_groups_has_a_page():
    groups = replace(view_of("two").groups, members=(), axes=(), tensors={}, operators=())
    assert "Nothing can be cut; the reasons are below." in groups_page(View(groups))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_address_of_a_group_lights_up_its_slices(tmp_path):
    path = tmp_path / "groups.html"
    path.write_text(page_of("resnet20")[0], encoding="utf-8")
    group = view_of("resnet20").groups["layer1.2.conv1"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"{path.as_uri()}#group={group.id}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = re.findall(r'<span class="row lit">(.*?)</small>|<span class="row lit">(.*?\])</span>', dom)
    lit = {name for row in rows for name in re.findall(r'data-tensor="([^"]*)"', "".join(row))}
    assert lit == {s.name for s in group.slices}
    assert dom.count('aria-current="true"') == 1
    assert f"{group.units} channels. Taking one out cuts {len(lit)} tensors" in dom
    for verb in ("made by", "scaled by", "read by"):
        assert f"<h3>{verb}</h3>" in dom
