"""The pages in a browser: they draw themselves, without a network, and do what their controls say."""

import shutil

import pytest

from reidcore.api import load_recipe, run
from reidcore.testing import run_cli, tiny_recipe, toy_data

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": (1280, 900), "phone": (390, 800)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one recipe, of which some images are called what they are not, so that there are mistakes."""
    folder = tmp_path_factory.mktemp("pages")
    gallery = toy_data(folder / "toy") / "gallery"
    for number in (0, 1):
        one, other = (gallery / f"000{identity}_c1_gallery{number}.png" for identity in (6, 7))
        one.rename(gallery / "kept.png"), other.rename(one), (gallery / "kept.png").rename(other)
    root = str(folder / "toy")
    tests = [
        {"name": "folder", "root": root},
        {"label": "all cameras", "name": "folder", "root": root, "cameras": "ignore"},
    ]
    recipe = tiny_recipe(folder, test=tests)
    sets = ["training.epochs=1", "run.report=true"]
    made = [run(load_recipe(recipe, overrides=[*sets, f"run.name=r{n}", f"run.seed={n}"])).folder for n in (1, 2)]
    done = run_cli("compare", *made, "-o", folder / "comparison.html")
    assert done.status == 0, done.err
    return [*(each / "report.html" for each in made), folder / "comparison.html"]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a page and fails on anything that the browser complains of, or that it fetches."""
    pages, complaints = [], []

    def requested(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(request.url)

    def open_page(file):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", requested)
        page.goto(file.as_uri())
        page.wait_for_selector(".js-plotly-plot .main-svg")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


SECTIONS = {
    0: ["results", "curves", "training", "rank-lists", "confusions", "where-it-looks", "map", "recipe"],
    2: ["figures", "curves", "changed-queries"],
}
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
LABELS = "getComputedStyle(document.querySelector('.xtick text')).fill"


@pytest.mark.parametrize("number", SECTIONS, ids=["report", "comparison"])
def test_every_section_fits_and_is_drawn_in_each_size_and_scheme(number, runs, visit):
    page = visit(runs[number])
    for size in SIZES.values():
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)
            assert page.eval_on_selector_all("section", "all => all.map(one => one.id)") == SECTIONS[number]
            assert page.evaluate("document.documentElement.scrollWidth") == size[0]
            heights = page.eval_on_selector_all("section", "all => all.map(one => one.getBoundingClientRect().height)")
            assert min(heights) > 60
            undrawn = "all => all.filter(one => !one.querySelector('.main-svg')).length"
            assert page.eval_on_selector_all(".draw", undrawn) == 0
            unseen = "all => all.filter(one => one.complete && !one.naturalWidth).length"
            assert page.eval_on_selector_all("main img", unseen) == 0
            dark = [sum(map(int, colour[4:-1].split(", "))) < 300 for colour in page.evaluate(COLOURS)]
            assert dark == [scheme == "light", scheme == "dark"]
            assert page.evaluate(LABELS) == page.evaluate(COLOURS)[0]


def listed(page) -> list[float]:
    texts = page.eval_on_selector_all("#rank-lists .list > div:first-child", "all => all.map(one => one.textContent)")
    return [float(text.removeprefix("average precision ").removesuffix("%")) for text in texts]


def test_rank_lists_are_sorted_and_filtered(runs, visit):
    page = visit(runs[0])
    worst = listed(page)
    assert worst == sorted(worst) and len(worst) == 6
    page.select_option("#rank-lists select[aria-label=order]", "best first")
    assert listed(page) == worst[::-1]
    page.fill("#rank-lists input[type=search]", "7")
    queries = page.eval_on_selector_all("#rank-lists .list .query", "all => all.map(one => one.innerText)")
    assert len(queries) == 2 and all("identity 7\n" in text for text in queries)
    page.select_option("#rank-lists label:has-text('camera') select", "1")
    assert len(listed(page)) == 1
    page.fill("#rank-lists input[type=search]", "77")
    assert listed(page) == [] and "no such query" in page.inner_text("#rank-lists .controls")
    page.fill("#rank-lists input[type=search]", "")
    page.select_option("#rank-lists label:has-text('camera') select", "")
    page.check("#rank-lists input[type=checkbox]")
    wrong = page.query_selector_all("#rank-lists .list")
    assert 0 < len(wrong) < 6
    for found in wrong:
        first = found.query_selector(".gap + .tile")
        assert "wrong" in first.get_attribute("class") and first.query_selector(".mark").inner_text() == "✗"


def test_a_test_is_chosen_and_a_picture_enlarged(runs, visit):
    page = visit(runs[0])
    page.click("#rank-lists .tabs button:has-text('all cameras')")
    assert page.get_attribute("#rank-lists .tabs button:has-text('all cameras')", "aria-pressed") == "true"
    cameras = page.eval_on_selector_all("#rank-lists .tile.right figcaption", "all => all.map(one => one.innerText)")
    assert any("camera 1" in text for text in cameras) and any("camera 2" in text for text in cameras)
    page.click("#rank-lists .tile button >> nth=1")
    assert "_gallery" in page.inner_text("dialog p") and page.is_visible("dialog img")
    page.click("dialog button")
    assert not page.is_visible("dialog img")


def test_the_map_shows_what_is_pointed_at(runs, visit):
    page = visit(runs[0])
    page.locator("#map").scroll_into_view_if_needed()
    page.wait_for_selector("#map .point")
    place = page.locator("#map .point").nth(3).bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.wait_for_selector("#map .tile img")
    name = page.get_attribute("#map .tile button", "title")
    assert f"identity {int(name.split('/')[-1][:4])}" in page.inner_text("#map .tile figcaption")
    before = page.evaluate("document.querySelector('#map .draw').data[0].marker.color[0]")
    page.select_option("#map select", "camera")
    colours = page.evaluate("document.querySelector('#map .draw').data[0].marker.color")
    assert len(set(colours)) == 2 and before


def test_changed_queries_are_side_by_side(runs, visit):
    page = visit(runs[2])
    gains = []
    for found in page.query_selector_all("#changed-queries .list"):
        before, after = (
            float(one.inner_text().partition("average precision ")[2].removesuffix("%"))
            for one in found.query_selector_all(":scope > div:not(.row)")
        )
        assert len(found.query_selector_all(".row")) == 2 and before != after
        gains.append(abs(after - before))
    assert gains == sorted(gains, reverse=True)
    assert page.inner_text("h1") == "r1 and r2"
