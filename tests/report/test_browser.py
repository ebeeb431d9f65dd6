"""The page in a browser: wide and narrow, light and dark, on paper, by pointer and by keys."""

import csv
import io
import shutil

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium)"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, report, tmp_path):
    """Opens the report's page at a width; at the end nothing was complained of, or asked of a network."""
    report.page(tmp_path / "index.html")
    complaints, asked, contexts = [], [], []

    def open_at(width=1400, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "index.html").as_uri())
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def column(page, name):
    """Return the shown cells of a column of the table."""
    return page.evaluate(
        """name => {
          const heads = [...document.querySelectorAll('#table th')].map(th => th.dataset.name);
          const rows = [...document.querySelectorAll('#table tbody tr')].filter(tr => !tr.hidden);
          return rows.map(tr => tr.cells[heads.indexOf(name)].textContent);
        }""",
        name,
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_its_window(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll('svg.chart text')].map(text => {
          const scale = text.ownerSVGElement.getScreenCTM().a;
          return scale * parseFloat(getComputedStyle(text).fontSize);
        }))"""
    )
    assert smallest >= 11


def test_a_header_sorts_by_pointer_and_by_key(opened, report):
    page = opened()
    header = page.locator("#table th[data-name=value]")
    header.locator("button").click()
    values = [float(value) for value in column(page, "value")]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(report.rows)
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").focus()
    page.keyboard.press("Enter")
    values = [float(value) for value in column(page, "value")]
    assert values == sorted(values)
    assert header.get_attribute("aria-sort") == "ascending"
    page.locator("#table th[data-name=layer] button").click()
    assert header.get_attribute("aria-sort") == "none"
    layers = [name for name in column(page, "layer") if name]
    assert column(page, "layer")[-1] == ""  # what has none stands last
    assert layers.index("4x4.0") < layers.index("4x4.1") < layers.index("8x8.0")


def test_filters_leave_what_was_asked_for_and_csv_holds_that(opened, report):
    page = opened()
    page.locator("#filter").fill("RIDGE 8x8")
    expected = [r for r in report.rows if r.head == "ridge" and "8x8" in (r.layer or "")]
    assert len(column(page, "head")) == len(expected)
    assert page.locator("#count").inner_text() == f"{len(expected)} of {len(report.rows)} rows"
    page.locator("select[data-name=metric]").select_option("rank1")
    expected = [row for row in expected if row.metric == "rank1"]
    assert column(page, "value") == [f"{row.value:.3f}" for row in expected]
    with page.expect_download() as download:
        page.locator("#download").click()
    text = download.value.path().read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["value"]) for row in rows] == [row.value for row in expected]
    page.locator("#filter").fill("")
    page.locator("select[data-name=metric]").select_option("")
    page.locator("#picked").check()
    assert set(column(page, "chosen")) == {"\N{BLACK STAR}"}


def test_the_point_under_the_pointer_is_read_out(opened):
    page = opened()
    point = page.locator("#layers .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.inner_text() == point.get_attribute("data-tip")
    page.mouse.move(2, 400)
    assert not tip.is_visible()


def test_points_are_read_out_by_keys(opened):
    page = opened()
    page.locator("#layers svg.chart").first.focus()
    told = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        told.append(page.locator("#tip").inner_text())
    assert told[0] == told[2] != told[1]
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def luminance(color):
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(value) / 255 for value in color.strip("rgb()").split(",")[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_light_and_dark(opened, scheme):
    """WCAG AA: 4.5 of text, 3 of what is drawn."""
    page = opened(color_scheme=scheme)
    colors = page.evaluate(
        """() => {
          const of = (element, name) => getComputedStyle(element)[name];
          const texts = 'h1, .sentence, .lead span, .text, .note, .verdict, figcaption, nav a, dt, '
            + '#table th button, svg.chart text:not([class*=ink])';
          return {
            ground: of(document.body, 'backgroundColor'),
            raised: of(document.querySelector('.lead'), 'backgroundColor'),
            texts: [...document.querySelectorAll(texts)].map(
              each => of(each, each.ownerSVGElement ? 'fill' : 'color')),
            lines: [...document.querySelectorAll('svg.chart .line')].map(each => of(each, 'stroke')),
          };
        }"""
    )
    assert (luminance(colors["ground"]) < 0.1) is (scheme == "dark")
    for ground in (colors["ground"], colors["raised"]):
        assert min(contrast(color, ground) for color in set(colors["texts"])) >= 4.5
        assert min(contrast(color, ground) for color in set(colors["lines"])) >= 3


def test_a_button_turns_it_dark_and_light(opened):
    page = opened(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    assert luminance(page.evaluate(ground)) < 0.1
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    page.locator("#theme").click()
    assert page.evaluate(ground) == light


def test_it_prints_every_row_light_whatever_is_on_the_screen(opened, report, tmp_path):
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert not page.locator("nav").is_visible()
    table = page.locator(".tall").evaluate("each => [each.clientHeight, each.scrollHeight]")
    assert table[0] == table[1] > 10 * len(report.rows)
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


def test_without_scripts_it_is_all_there(opened, report):
    page = opened(java_script_enabled=False)
    assert page.locator("#table tbody tr").count() == len(report.rows)
    assert page.locator("svg.chart").first.is_visible()
    assert not page.locator("#theme").is_visible()
    assert not page.locator("#filter").is_visible()
    assert page.locator("svg.chart .point title").first.text_content()
