"""The page in a browser: it loads without a word, and what can be clicked does what it says."""

from pathlib import Path
from typing import Any

import pytest

from latentfit.reporting import read_report, write_report

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "results"

pytestmark = [
    pytest.mark.slow,
    # What playwright leaves open while its driver ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def files(run_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    report = read_report(run_folder)
    pages = {"one": report, "several": [report, report]}
    for name, reports in pages.items():
        write_report(folder / f"{name}.html", reports)
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture
def look(browser, files):
    """Open a page in a window of some width; gives it, and what it said, asked for or raised."""
    contexts = []

    def look(name: str, width: int = 1280, **options: Any):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page, heard = context.new_page(), []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.on("request", lambda r: heard.append(r.url) if r.url.startswith("http") else None)
        page.goto(files[name].as_uri())
        return page, heard

    yield look
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_without_an_error_and_without_a_request(look, name, scheme):
    page, heard = look(name, color_scheme=scheme)
    assert page.title() in ("latentfit bench mnist", "2 runs compared")
    broken = "[...document.images].filter(i => i.src && !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert heard == []


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_is_no_wider_than_the_window(look, name, width):
    page, _ = look(name, width)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    table = page.locator("table").first  # which may scroll by itself, and by the keyboard
    assert table.evaluate("t => t.parentElement.tabIndex") == 0
    assert not table.evaluate(
        "t => t.parentElement.contains(t.closest('figure').firstElementChild)"
    )


def test_all_numbers_of_a_published_run_fit_a_laptop(browser, tmp_path):
    write_report(tmp_path / "a.html", read_report(PUBLISHED / "mnist"))
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    over = page.locator("#table .scroll").evaluate("s => s.scrollWidth - s.clientWidth")
    context.close()
    assert over == 0


def test_a_click_on_a_head_sorts_both_ways_with_what_is_missing_last(look):
    page, heard = look("one")
    head = page.locator("#table th", has_text="NLL")
    column = head.evaluate("th => th.cellIndex")

    def shown() -> list[str]:
        return page.locator(f"#table tbody tr :nth-child({column + 1})").evaluate_all(
            "cells => cells.filter(c => c.tagName === 'TD').map(c => c.dataset.value)"
        )

    head.locator("button").click()
    up = shown()
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    down = shown()
    assert head.get_attribute("aria-sort") == "descending"
    assert up[-2:] == down[-2:] == ["", ""]
    numbers = [float(value) for value in up[:-2]]
    assert numbers == sorted(numbers)
    first = page.locator("#table thead th").first
    first.locator("button").press("Enter")
    names = page.locator("#table tbody th").all_inner_texts()
    assert names.index("flow") < names.index("gan") < names.index("Real")
    assert page.locator("#table th[aria-sort]").count() == 1
    assert heard == []


def test_the_seed_of_the_images_and_the_scale_of_the_bars_are_switched(look):
    page, _ = look("one")
    shown = page.locator("#samples img:visible")
    before = shown.evaluate_all("images => images.map(i => i.dataset.seed)")
    assert set(before) == {"0"}
    page.locator("#samples .group button", has_text="1").click()
    after = shown.evaluate_all("images => images.map(i => i.dataset.seed)")
    assert after == ["1"] * len(before)
    bar = page.locator("#chart [data-kind=best] .bar")
    wide = bar.bounding_box()["width"]
    page.locator("#bars button", has_text="linear").click()
    assert page.locator("#bars button[aria-pressed=true]").inner_text() == "linear"
    assert bar.bounding_box()["width"] < wide


def test_an_image_is_enlarged_and_the_keys_go_on(look):
    page, _ = look("one")
    page.locator("#samples .zoom").nth(1).click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert dialog.locator("img").get_attribute("alt") == "64 images of Resample, seed 0"
    page.keyboard.press("ArrowRight")
    assert dialog.locator("p").inner_text() == "64 images of flow, seed 0"
    dialog.locator("[data-do=before]").click()
    assert dialog.locator("p").inner_text() == "64 images of Resample, seed 0"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_without_scripts_everything_can_be_read(look):
    page, _ = look("one", java_script_enabled=False)
    assert page.locator("#table tbody tr").count() == 6
    assert page.locator("#samples img:visible").count() == 6
    assert page.locator(".tools:visible").count() == 0


def test_it_prints_on_pages(look):
    page, _ = look("one")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")


def test_what_is_folded_is_read_on_paper(look):
    page, _ = look("one")
    shown = "[...document.querySelectorAll('details > *')].map(e => e.checkVisibility())"
    on_screen = page.evaluate(shown)
    page.emulate_media(media="print")
    assert not all(on_screen)
    assert all(page.evaluate(shown))


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(look, axe, name, scheme):
    # The page's policy lets no other script run.
    page, _ = look(name, color_scheme=scheme, bypass_csp=True)
    page.add_script_tag(content=axe)
    found = page.evaluate("axe.run()")["violations"]
    told = [
        (f["id"], f["impact"], [n["html"][:200] for n in f["nodes"]][:3])
        for f in found
        if f["impact"] in ("serious", "critical")
    ]
    assert told == []
