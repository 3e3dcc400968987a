"""The report of real runs in a headless Chromium: it renders whole, on a phone, in the dark, and from the keyboard."""

import base64
import html
import io
import os
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from mv2mae_jax.report import __main__ as command
from mv2mae_jax.report import collect, examine, neighbours, pictures
from tests import faults, tiny
from tests.test_report import write_run

PHONE, DESKTOP = (360, 740), (1280, 900)
PRETRAIN_SECTIONS = {
    *("summary", "curves", "reconstructions", "motion-weights", "attention", "neighbours", "embedding", "poses"),
    *("config", "origin"),
}


@pytest.fixture(scope="module")
def pretrained(synthetic_set, tmp_path_factory):
    """A run with the report that it wrote at its end."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    overrides = ("log.report=True", "eval.every_steps=3", "eval.picture_blur_sigma=1.0")
    done = faults.run(workdir, synthetic_set, *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"Report: {workdir}/report.html ("), done.stdout
    return workdir


@pytest.fixture(scope="module")
def compared(pretrained, synthetic_set, tmp_path_factory):
    """The report of that run beside one that is fine-tuned from it."""
    folder = tmp_path_factory.mktemp("compared")
    overrides = (f"data.dir={synthetic_set}", "data.protocol=xsub", f"init_from={pretrained}", "eval.crops_per_clip=1")
    overrides = tiny.overrides(*tiny.FINETUNE_OVERRIDES, *overrides)
    run("run.py", "--config=configs/finetune_base.py", f"--workdir={folder / 'tuned'}", *overrides)
    runs = [f"--workdir={pretrained}", f"--workdir={folder / 'tuned'}"]
    output = folder / "comparison.html"
    run("-m", "mv2mae_jax.report", *runs, f"--output={output}", "--samples=1", "--max_clips=20")
    return output


def run(*command: str) -> None:
    done = faults.finish(faults.start(*command))
    assert done.returncode == 0, done.stderr


class Browser:
    """A headless Chromium: opens pages, runs scripts, takes pictures and presses keys."""

    def __init__(self):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, path, *, size=DESKTOP, dark=False) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def page(self) -> np.ndarray:
        """uint8[h, w, 3], the whole page."""
        height, width = self.run("return [document.documentElement.scrollHeight, innerWidth]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB"))

    def press(self, key: str) -> str:
        """Presses a key and says what has the focus: its id, or its tag and text."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(key).perform()
        focused = "const e = document.activeElement; return e.id || e.tagName + ' ' + e.textContent.slice(0, 40)"
        return self.run(focused)


@pytest.fixture(scope="module")
def browser():
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        advice = "Chromium is missing: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(advice)
        pytest.skip(advice)
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture(params=["pretrained", "compared"])
def page(request):
    found = request.getfixturevalue(request.param)
    return found / "report.html" if found.is_dir() else found


def test_every_section_is_there_and_nothing_is_left_out(browser, pretrained, compared):
    browser.open(pretrained / "report.html")
    assert {section.get_attribute("id") for section in browser.find("section")} == PRETRAIN_SECTIONS
    browser.open(compared)
    ids = {section.get_attribute("id") for section in browser.find("section")}
    assert {"differences", "attention-0", "accuracy-1", "confusion-1", "neighbours-1"} <= ids
    assert "attention-1" not in ids and "left-out" not in ids


def test_the_page_logs_nothing_to_the_console_and_fetches_nothing(browser, page):
    browser.open(page)
    assert browser.driver.get_log("browser") == []
    assert browser.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []
    assert browser.find("script") == []
    anchors = browser.run("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert anchors and all(browser.find(anchor) for anchor in anchors)
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    assert page.stat().st_size < 5e6


# For every visible figure: its number, its description, and its box in the page.
FIGURES = """
return [...document.querySelectorAll('figure img, figure svg')].map((e, i) => {
  const box = e.getBoundingClientRect();
  return [i, e.getAttribute('alt') || e.getAttribute('aria-label'), box.left, box.top + scrollY, box.width, box.height];
}).filter(figure => figure[4]);
"""


def test_every_figure_shows_something(browser, page):
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.run("document.querySelector('#pause').click()")
    seen = set()
    for token in range(1, 6):  # choosing a token shows its pictures
        browser.run("document.querySelectorAll(arguments[0]).forEach(i => i.click())", f".picker input[id$='-{token}']")
        screen = browser.page().astype(int)
        for number, described, *box in browser.run(FIGURES):
            if number in seen:
                continue
            seen.add(number)
            left, top, width, height = (round(value) for value in box)
            assert min(width, height) > 60, described
            pixels = screen[top + 2 : top + height - 2, left + 2 : left + width - 2]
            if "encoder sees" not in described:  # may be all grey, if no token of that moment is visible
                assert pixels.std(axis=(0, 1)).max() > 4, described
    assert len(seen) == len(browser.find("figure img, figure svg")) > 15


def test_every_figure_is_said_in_words(browser, page):
    browser.open(page)
    words = browser.run(
        "return [...document.querySelectorAll('img, svg')].map(e => e.getAttribute('alt') || "
        "(e.getAttribute('role') == 'img' && e.getAttribute('aria-label')) || '')"
    )
    assert all(len(text) > 12 for text in words)
    (curve,) = [text for text in words if text.startswith("Reconstruction loss")][:1]
    assert "at step" in curve and "lowest" in curve


def test_a_phone_needs_no_sideways_scrolling(browser, page):
    browser.open(page, size=PHONE)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    outside = browser.run(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, .skip, .film') && "
        "e.getBoundingClientRect().right > arguments[0] + 1).map(e => e.outerHTML.slice(0, 80))",
        PHONE[0],
    )
    assert outside == []
    widths = browser.run(
        "return [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)"
    )
    assert min(widths) > 250


# For all visible text: its colour, the first background behind it that is not transparent, and its beginning.
COLOURS = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
  if (!text || !element.checkVisibility() || element.closest('style, .skip')) continue;
  const style = getComputedStyle(element);
  let below = element;
  while (below && getComputedStyle(below).backgroundColor == 'rgba(0, 0, 0, 0)') below = below.parentElement;
  const behind = below ? getComputedStyle(below).backgroundColor : 'rgb(255, 255, 255)';
  found.push([element.closest('svg') ? style.fill : style.color, behind, text.slice(0, 40)]);
}
return found;
"""


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        channels = np.array([float(c) for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_have_enough_contrast(browser, page, dark):
    browser.open(page, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    body = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (contrast(body, "rgb(0, 0, 0)") < 2) == dark
    texts = browser.run(COLOURS)
    assert len(texts) > 100
    assert [text for text in texts if contrast(*text[:2]) < 4.5] == []
    surface = browser.run("return getComputedStyle(document.querySelector('.card')).backgroundColor")
    lines = browser.run(
        "return [...document.querySelectorAll('svg path')].filter(p => p.style.stroke.includes('--series'))"
        ".map(p => getComputedStyle(p).stroke)"
    )
    assert lines and min(contrast(line, surface) for line in lines) > 3


def test_the_keyboard_reaches_and_changes_everything(browser, pretrained):
    from selenium.webdriver.common.keys import Keys

    browser.open(pretrained / "report.html")
    order = [browser.press(Keys.TAB) for _ in range(40)]
    assert order[0].startswith("A Skip to")
    for control in ("pause", "look-1-1", "look-2-1", "SUMMARY All metrics", "SUMMARY Keys as in the base"):
        assert control in order, control

    browser.open(pretrained / "report.html")
    first, second, *_ = browser.find(".picker:first-of-type .look")
    assert first.is_displayed() and not second.is_displayed()
    while browser.press(Keys.TAB) != "look-1-1":
        pass
    outline = browser.run("return getComputedStyle(document.querySelector('#look-1-1 + label')).outlineStyle")
    assert outline == "solid", "the focus can be seen"
    assert browser.press(Keys.ARROW_RIGHT) == "look-1-2"
    assert second.is_displayed() and not first.is_displayed()


def test_animations_move_until_they_are_paused(browser, pretrained):
    browser.open(pretrained / "report.html")

    def positions() -> set[str]:
        found = set()
        for _ in range(8):
            found.add(browser.run("return getComputedStyle(document.querySelector('.film img')).objectPosition"))
            time.sleep(0.12)
        return found

    assert positions() >= {"0% 0px", "100% 0px"} or positions() >= {"0% 0%", "100% 0%"}
    browser.run("document.querySelector('#pause').click()")
    assert len(positions()) == 1


def test_a_film_shows_one_frame_at_a_time(browser, pretrained):
    browser.open(pretrained / "report.html")
    for film in browser.find(".film")[:3]:
        width, height = (int(x) for x in film.get_attribute("style").partition("--ratio:")[2].strip(" ;").split("/"))
        (image,) = film.find_elements("css selector", "img")
        assert image.size["width"] / image.size["height"] == pytest.approx(width / height, rel=0.02)


def test_pictures_are_as_blurred_as_the_run_wants_them(pretrained, compared):
    looked_at, tuned = collect.read(str(pretrained)), collect.read(str(compared.parent / "tuned"))
    assert examine.blur_sigma(looked_at.config) == examine.blur_sigma(tuned.config) == 1.0

    def sharpness(uri: str) -> float:
        return float(np.abs(np.diff(pictures.decode(uri).astype(int), axis=0)).mean())

    sharp = neighbours.examine(looked_at, neighbours.open_run(looked_at), max_clips=160, key="a").queries[0].clip
    text = html.unescape((pretrained / "report.html").read_text())
    shown = {alt: uri for uri, alt in re.findall(r'<img src="([^"]+)" alt="([^"]+)"', text)}
    for alt in (sharp.alt, "Animation: the target view", "Animation: the source view"):
        assert sharpness(shown[alt]) < 0.8 * sharpness(sharp.uri), alt


def test_a_report_without_data_says_so_and_how_to_get_it(browser, tmp_path):
    workdir = write_run(tmp_path / "run", overrides=["data.dir=/nowhere"], rows=[{"step": 1, "train/loss": 1.0}])
    assert command.main([f"--workdir={workdir}"]) == 0
    browser.open(tmp_path / "run" / "report.html")
    (left_out,) = browser.find("#left-out")
    assert "/nowhere is not there" in left_out.text and "--data_dir" in left_out.text
    assert len(browser.find("#left-out li")) == 3 and browser.find("#curves svg")
