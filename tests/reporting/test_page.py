"""The page as text: names are text, the file is whole by itself, and all has a name that is read out."""

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser

import pytest

from latentfit.reporting import read_report, render, write_report

from .conftest import HOSTILE, LONG

VOID = {"meta", "link", "img", "br", "path", "polyline"}


class Outline(HTMLParser):
    """A page's tags with their attributes, and the texts; checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(run_folder) -> str:
    return render(read_report(run_folder))


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    return Outline(page)


def test_names_are_text_wherever_they_stand(page, outline):
    assert "<script>alert" not in page
    for _, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")]
    assert len(outline.all("script")) == 1
    assert any(HOSTILE in text for text in outline.texts)
    assert "49" not in "".join(t for t in outline.texts if HOSTILE in t).replace(HOSTILE, "")
    assert LONG in "".join(outline.texts)
    assert outline.open == []


def test_the_page_loads_nothing(page, outline):
    for tag, attributes in outline.tags:
        for name in ("src", "href", "action", "poster", "data", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"@import|url\(", page)
    assert {image["src"].partition(",")[0] for image in outline.all("img") if "src" in image} == {
        "data:image/png;base64"
    }


def test_only_its_own_script_may_run(page, outline):
    (policy,) = (m["content"] for m in outline.all("meta") if "http-equiv" in m)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_images_headers_and_identifiers_are_in_order(outline):
    images = outline.all("img")
    assert (
        len([image for image in images if image["alt"]]) == len(images) - 1
    )  # the dialog's, yet empty
    assert all(head.get("scope") in ("col", "row") for head in outline.all("th"))
    assert all("aria-label" in drawn for drawn in outline.all("svg") if drawn.get("role") == "img")
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"][1:] for link in outline.all("a")]
    assert set(targets) <= set(ids)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_result_stands_first_and_a_quick_run_says_so(outline):
    text = " ".join(" ".join(outline.texts).split())
    assert "This is a quick run" in text
    assert text.index("flow is best, at 1.37 times the floor.") < text.index(
        "How far from the data"
    )
    assert f"Oops: {HOSTILE}" in text
    for words in (
        "other samplers",
        "Beside the paper",
        "Asked for a class",
        "Nearest training images",
        "SHA-256",
    ):
        assert words in text


def test_several_runs_stand_side_by_side(run_folder, outline):
    one = read_report(run_folder)
    both = Outline(render([one, one]))
    ids = [attributes["id"] for _, attributes in both.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = " ".join(" ".join(both.texts).split())
    assert "2 runs compared" in text
    assert "The best of 2 runs, flow in" in text
    assert text.index("This is a quick run") < text.index("The best of 2 runs")
    other = Outline(render([one, type(one)(title="other", name="o", rows=one.rows)]))
    assert "not all can be compared" in " ".join(other.texts)


def test_the_file_is_written_whole_or_not_at_all(run_folder, tmp_path, monkeypatch):
    report = read_report(run_folder)
    target = tmp_path / "report.html"
    write_report(target, report)
    assert target.read_text("utf-8") == render(report)
    monkeypatch.setattr("latentfit.reporting._page.render", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(target, report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "</html>" in target.read_text("utf-8")
