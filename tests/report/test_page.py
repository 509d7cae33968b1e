"""The page: the numbers are there, nothing is fetched, nothing of the user runs, and gaps are said."""

import html.parser
import json
import re

import pytest

from prunus.core import FileError
from prunus.report import html as write_page
from tests.report.sample import metrics, result, write


class Document(html.parser.HTMLParser):
    """The tags, attributes and visible text of a page; complains about tags that are not closed in order."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(folder):
    path = write_page(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Document(text)


def test_the_numbers_are_on_the_page(run_folder):
    _, page = page_of(run_folder)
    for number in (
        "447 k", "853 k", "62.7 M", "125 M", "1.83 MB", "1.63 ms", "2.81 ms", "178 ms", "321 ms", "92.61 %", "93.39 %",
        "48 % less", "50 % less", "1.7 times faster", "0.78 points lower", "447,310", "62,716,416", "42 min 30 s",
        "3.1e-15", "onnxruntime 1.31.1", "its rows are the outputs of the network", "do: finetune",
    ):  # fmt: skip
        assert number in page.text, number


def test_every_group_has_its_bar(run_folder):
    text, page = page_of(run_folder)
    for name, entry in result()["plan"].items():
        assert re.search(rf"{re.escape(name)} .{{0,20}}{entry['kept']} of {entry['units']}\b", page.text), name
    kept = result()["plan"]["layer1.8.conv1"]["kept"]
    track = text[text.index(">layer1.8.conv1<") :][:300]  # every bar is a share of the widest, 64
    assert re.findall(r"width:([\d.]+)%", track)[:2] == ["25.00", f"{100 * kept / 64:.2f}"]


def test_the_page_fetches_nothing(run_folder):
    text, page = page_of(run_folder)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset") or a[1].startswith("on")]
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_what_the_user_wrote_is_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    content = result()
    content.update(model=evil, recipe=evil, versions={evil: evil}, plan={evil: {"units": 4, "kept": 2}})
    content["left_alone"] = [{"what": evil, "why": evil}]
    content["stages"][0]["name"] = evil
    content["after"]["latency_ms"] = {f"{evil},b1,t1": 1.0}
    folder = write(tmp_path / "run", content)
    (folder / "recipe.yaml").write_text(evil)
    (folder / "metrics.csv").write_text(metrics().replace("sparsify", "<script>alert(1)</script>"))
    text, page = page_of(folder)
    assert "<script" not in text
    assert page.text.count("<script>alert(1)</script>") >= 8  # seen by the reader, in all these places
    assert not [a for a in page.attributes if a[1].startswith("on")]


def test_charts_show_the_data(run_folder):
    text, page = page_of(run_folder)
    assert page.tags.count("polyline") == 2  # accuracy and loss
    assert text.count('class="dot"') == 2 * 11
    before, after = gamma_values(run_folder, "before"), gamma_values(run_folder, "after")
    near, count = sum(v <= 0.01 * max(before + after) for v in after), len(after)
    assert f"{near} of {count} channels" in page.text
    bars = [int(n) for n in re.findall(r"<title>(\d+) channels, size of the scale", text)]
    assert sum(bars) == 2 * count  # every channel is in a bar, before and after


def test_sparse_training_without_effect_is_not_praised(run_folder):
    weak = "In this run the pull was weak"
    assert weak not in page_of(run_folder)[1].text
    gammas = json.loads((run_folder / "gammas.json").read_text())
    (run_folder / "gammas.json").write_text(
        json.dumps({"before": gammas["before"], "after": {"bn": [1.0] * 99 + [0.0]}})
    )
    text = page_of(run_folder)[1].text
    assert weak in text
    assert "1 of 100 channels (1 %)" in text


def test_groups_are_in_the_order_of_the_network(tmp_path):
    content = result() | {"plan": {f"features.{n}": {"units": 8, "kept": 4} for n in (0, 10, 2)}}
    text = page_of(write(tmp_path / "run", content))[1].text
    assert text.index("features.2 ") < text.index("features.10 ")


def gamma_values(folder, when):
    return [v for values in json.loads((folder / "gammas.json").read_text())[when].values() for v in values]


def test_missing_parts_are_said(tmp_path):
    bare = {"recipe": "r", "model": "m", "before": {}, "after": {}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(bare))
    _, page = page_of(folder)
    for sentence in (
        "nothing was measured", "Latency was not measured", "recorded no channel scales", "no training curves",
        "holds no plan", "was not verified", "metrics.csv is not in the folder", "gammas.json is not in the folder",
        "recipe.yaml is not in the folder", "How long it takes was not measured",
    ):  # fmt: skip
        assert sentence in page.text, sentence


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.csv", "stage,epoch\nsparsify,not a number\n", "metrics.csv could not be read"),
        ("metrics.csv", "nothing,like,it\n1,2,3\n", "metrics.csv could not be read"),
        ("gammas.json", "{broken", "gammas.json could not be read"),
        ("gammas.json", "[1, 2]", "gammas.json could not be read"),
    ],
)
def test_broken_files_beside_the_result_are_said(run_folder, name, content, said):
    (run_folder / name).write_text(content)
    assert said in page_of(run_folder)[1].text


def test_gaps_in_the_metrics_are_gaps_in_the_line(run_folder):
    rows = metrics().splitlines()
    rows[5] = ",".join([*rows[5].split(",")[:4], "", *rows[5].split(",")[5:]])  # an epoch without accuracy
    rows[6] = ",".join([*rows[6].split(",")[:3], "nan", *rows[6].split(",")[4:]])  # an epoch whose loss is no number
    (run_folder / "metrics.csv").write_text("\n".join(rows))
    text, page = page_of(run_folder)
    assert page.tags.count("polyline") == 4
    assert "nan" not in page.text.lower().replace("finance", "")
    assert 'points="nan' not in text


@pytest.mark.parametrize("content", [None, "{truncated", "[]", '{"recipe": "r"}'])
def test_a_folder_without_a_result_is_refused_and_nothing_written(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(FileError, match=r"no result in|not JSON|not a result"):
        write_page(tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_a_metric_of_the_user_takes_the_place_of_accuracy(tmp_path):
    content = result()
    for side, value in (("before", 0.512), ("after", 0.498)):
        content[side].update(accuracy=None, metric={"name": "box mAP", "value": value})
    _, page = page_of(write(tmp_path / "run", content))
    assert "box mAP -0.014" in page.text
    assert "Its box mAP went from 0.512 to 0.498" in page.text


def test_exports_and_notes_are_told(run_folder):
    _, page = page_of(run_folder)
    assert (
        "onnx file was run beside PyTorch and gave the same outputs up to a relative difference of 2.4e-07" in page.text
    )
    assert "the learning rate was lowered once" in page.text


def test_losses_are_not_dressed_up(tmp_path):
    content = result()
    content["after"]["latency_ms"]["onnxruntime,b1,t1"] = 5.62
    content["verified"] = None
    _, page = page_of(write(tmp_path / "run", content))
    assert "2.0 times slower" in page.text
    assert "The cut was not verified" in page.text
