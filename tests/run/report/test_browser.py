"""The report in a browser: on a phone and a desk, in daylight and in the dark."""

import shutil

import numpy as np
import pytest

import runs
from vdm.run import train
from vdm.run.report import write

pytestmark = pytest.mark.float32
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SIZES = {"phone": (390, 844), "desk": (1280, 900)}

# Every piece of text with its colour and what is behind it; SVG text is filled.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !parent.getClientRects().length) continue;
    let behind = 'rgba(0, 0, 0, 0)';
    for (let up = parent; up && behind === 'rgba(0, 0, 0, 0)'; up = up.parentElement)
      behind = getComputedStyle(up).backgroundColor;
    const style = getComputedStyle(parent);
    const inSvg = parent instanceof SVGElement;
    found.push([walker.currentNode.data.trim(), inSvg ? style.fill : style.color, behind]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run of points, and one that compares it with its copy."""
    folder = tmp_path_factory.mktemp("browser")
    train.train(runs.points(sample_every=2), folder / "points")
    shutil.copytree(folder / "points", folder / "copy")
    workdirs = [folder / "points", folder / "copy"]
    single = write.write(workdirs[:1], folder / "single.html", 4)
    return {"single": single, "several": write.write(workdirs, folder / "several.html", 4)}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["single", "several"])
def test_the_page_is_whole(browser, pages, which, size, scheme):
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[which].as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [pages[which].as_uri()]
    assert not complaints
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.title")
    # Pages of points, drawn while training at steps 2 and 4; a comparison shows none of them.
    assert page.evaluate("document.images.length") == (2 if which == "single" else 0)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    figures = page.evaluate(
        "[...document.querySelectorAll('.figures svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert figures and min(figures) > 300 and max(figures) <= width
    texts = page.evaluate(TEXTS)
    assert any("λ = log SNR" in text for text, _, _ in texts)
    assert any(text.startswith("1,000 samples") for text, _, _ in texts)
    for text, colour, behind in texts:
        assert contrast(rgb(colour), rgb(behind)) >= 4.5, (text, colour, behind)
    dark = luminance(rgb(page.evaluate("getComputedStyle(document.body).backgroundColor"))) < 0.1
    assert dark == (scheme == "dark")
    context.close()


def test_the_measure_of_contrast_is_that_of_the_standard():
    # WCAG 2.1: black on white 21, equal colours 1; #767676 is the lightest grey that passes.
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((9, 9, 9), (9, 9, 9)) == 1.0
    assert contrast((0x76,) * 3, (255,) * 3) > 4.5 > contrast((0x77,) * 3, (255,) * 3)


def rgb(text):
    numbers = text[text.index("(") + 1 : -1].split(",")
    assert len(numbers) == 3 or float(numbers[3]) == 1.0, text
    return tuple(float(number) for number in numbers[:3])


def luminance(colour):
    share = np.asarray(colour) / 255.0
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(colour, other):
    darker, lighter = sorted([luminance(colour), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)
