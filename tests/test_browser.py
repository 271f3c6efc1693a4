"""The report in a browser: headless Chromium, as a person and a keyboard use it. Skips where there is none."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from distributed import Client

import skylevel as sl
from programs import write_exposure, write_exposures, write_raw, write_truncated
from skylevel.report import page, writing

selenium = pytest.importorskip("selenium", reason="no selenium here")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.once, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")
]  # fmt: skip

DESKTOP, PHONE = (1280, 900), (390, 844)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """A page in Chromium."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*_FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))

    def open(self, output: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
        self.driver.get((output / "report.html").as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def names(self) -> list[str]:
        """The exposures that the table shows, in its order."""
        return self.run("return [...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden)"
                        ".map(r => r.cells[0].textContent.trim())")  # fmt: skip

    def header(self, name: str) -> Any:
        (found,) = [cell for cell in self.all("#table thead th") if cell.text.startswith(name)]
        return found

    def choose(self, column: str, value: str) -> None:
        Select(self.one(f"select[data-column={column}]")).select_by_visible_text(value)

    def opened(self) -> str:
        """Wait for the picture that was asked for; its exposure's name."""
        WebDriverWait(self.driver, 10).until(lambda _: self.all("#picture[open] #content .about"))
        loaded = "return [...document.querySelectorAll('#content img')].every(i => i.complete && i.naturalWidth > 0)"
        WebDriverWait(self.driver, 10).until(lambda _: self.run(loaded))
        return str(self.one("#picture-name").text)

    def press(self, key: str) -> None:
        self.driver.switch_to.active_element.send_keys(key)

    def asked(self) -> list[str]:
        """The addresses that were asked for since the last time."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started: Browser) -> Iterator[Browser]:
    """A browser whose console stays silent, and which asked nothing of a network."""
    started.errors()
    started.asked()
    yield started
    assert started.errors() == []
    assert [address for address in started.asked() if not re.match(r"(file|data|chrome):", address)] == []


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Path:
    """Eleven exposures in two filters, one of them an outlier, a raw, and one that failed; read only."""
    root = tmp_path_factory.mktemp("browser")
    write_exposures(root / "in", 9)
    write_exposure(root / "in" / "e10.fits", 10, stripes=0.3)
    write_exposure(root / "in" / "f1.fits", 11, cards={"FILTER": "F115W"})
    write_raw(root / "in" / "night1.dng", 1)
    write_truncated(root / "in" / "cut.fits")
    sl.run(root / "in", root / "out", client=client)
    sl.write_report(root / "out")
    return root / "out"


NAMES = ["cut", *(f"e{i:02d}" for i in (*range(9), 10)), "f1", "night1"]


class TestTable:
    def test_it_sorts_by_numbers_and_what_is_unknown_comes_last(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        assert browser.names() == NAMES
        header = browser.header("stripes before")
        assert header.get_attribute("aria-sort") == "none"
        header.find_element("tag name", "button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        upwards = browser.names()
        values = browser.run("return [...document.querySelectorAll('#table tbody tr')].map(r => r.cells[4].dataset.v)")
        known = [float(value) for value in values if value]
        assert known == sorted(known)
        assert set(upwards[-2:]) == {"cut", "night1"}
        header.find_element("tag name", "button").click()
        assert header.get_attribute("aria-sort") == "descending"
        assert browser.names()[0] == "e10"
        assert set(browser.names()[-2:]) == {"cut", "night1"}

    def test_it_sorts_by_text(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        for _ in range(2):
            browser.header("exposure").find_element("tag name", "button").click()
        assert browser.names() == NAMES[::-1]

    def test_it_filters_by_state_filter_and_words(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.choose("state", "failed")
        assert browser.names() == ["cut"]
        browser.choose("state", "all")
        browser.choose("filter", "F115W")
        assert browser.names() == ["f1"]
        assert browser.one("output").text == "1 of 13"
        browser.choose("filter", "all")
        browser.one("#words").send_keys("E0 done")
        assert browser.names() == [f"e{i:02d}" for i in range(9)]

    def test_outliers_are_named(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        named = browser.all(".outliers button")
        assert named[0].text == "e10"
        named[0].click()
        assert browser.opened() == "e10"


class TestPicture:
    def test_it_opens_with_its_images_and_plots(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.all("#table button.open")[1].click()
        assert browser.opened() == "e00"
        titles = [caption.text for caption in browser.all("#content .images figcaption")]
        assert titles == ["before", "after", "what was subtracted"]
        assert len(browser.all("#content .images img.outline")) == 3
        assert len(browser.all("#content svg path.line")) >= 4
        browser.one("input.outlines").click()
        assert not any(image.is_displayed() for image in browser.all("img.outline"))

    def test_channels_of_a_camera(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.all("#table button.open")[-1].click()
        assert browser.opened() == "night1"
        titles = [caption.text.split("\n")[0] for caption in browser.all("#content .images figcaption")]
        assert titles == ["before", "after", "background R", "background G", "background B"]

    def test_a_failed_exposure_says_why(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.all("#table button.open")[0].click()
        assert browser.opened() == "cut"
        assert "cut.fits" in browser.one("#content .reason").text

    def test_nothing_of_it_is_there_before(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        assert browser.run("return document.images.length") == 0

    def test_many_stand_in_scripts_that_load_when_one_is_opened(
        self, browser: Browser, output: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(output, tmp_path / "out")
        with patch.object(writing, "PER_PACK", 5), patch.object(page, "PER_PACK", 5):
            sl.write_report(tmp_path / "out")
        browser.open(tmp_path / "out")
        assert self._scripts(browser) == []
        browser.all("#table button.open")[7].click()
        assert browser.opened() == NAMES[7]
        assert self._scripts(browser) == ["-1.js"]
        for _ in range(3):
            browser.press(Keys.ARROW_RIGHT)
        assert browser.opened() == NAMES[10]
        assert self._scripts(browser) == ["-2.js"]

    @staticmethod
    def _scripts(browser: Browser) -> list[str]:
        """The ends of the names of the scripts that were asked for since the last time."""
        return [address[-5:] for address in browser.asked() if address.endswith(".js")]

    def test_a_page_whose_pictures_were_written_anew_says_so(
        self, started: Browser, output: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(output, tmp_path / "out")
        with patch.object(writing, "PER_PACK", 5), patch.object(page, "PER_PACK", 5):
            sl.write_report(tmp_path / "out")
        started.open(tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "report")
        started.all("#table button.open")[0].click()
        WebDriverWait(started.driver, 10).until(lambda _: "load it again" in started.one("#content").text)


class TestKeyboard:
    def test_a_picture_by_keys_alone(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        for _ in range(60):
            browser.press(Keys.TAB)
            if browser.driver.switch_to.active_element.text == "e01":
                break
        browser.press(Keys.ENTER)
        assert browser.opened() == "e01"
        browser.press(Keys.ARROW_RIGHT)
        assert browser.opened() == "e02"
        browser.press(Keys.ARROW_LEFT)
        browser.press(Keys.ESCAPE)
        assert not browser.all("#picture[open]")
        assert browser.driver.switch_to.active_element.text == "e01"

    def test_sorting_by_keys(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.run("arguments[0].focus()", browser.header("seconds").find_element("tag name", "button"))
        browser.press(Keys.ENTER)
        assert browser.header("seconds").get_attribute("aria-sort") == "ascending"
        assert browser.driver.switch_to.active_element.text.startswith("seconds")

    def test_what_has_the_focus_is_seen(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        browser.press(Keys.TAB)
        assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


# Contrast of text as WCAG 2 defines it.
_CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const bent = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = (c) => { const l = c.slice(0, 3).map((v) => bent(v / 255));
  return .2126 * l[0] + .7152 * l[1] + .0722 * l[2]; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).map((e) => {
  const style = getComputedStyle(e), [a, b] = [light(rgb(e instanceof SVGElement ? style[arguments[1]] : style.color)),
    light(behind(e))];
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 80)]; });
"""


class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_and_lines_stand_out(self, browser: Browser, output: Path, scheme: str) -> None:
        browser.open(output, scheme=scheme)
        browser.all("#table button.open")[1].click()
        browser.opened()
        for selector, least in (("h1, h2, p, td, th, a, li, dt, dd, button, label, summary, .state, figcaption", 4.5),):
            found = browser.run(_CONTRAST, selector, "fill")
            assert len(found) > 50
            assert [pair for pair in found if pair[0] < least] == []
        for selector, of in ((".plot text", "fill"), ("path.line", "stroke"), ("circle.dot", "fill")):
            found = browser.run(_CONTRAST, selector, of)
            assert found
            assert [pair for pair in found if pair[0] < 3.0] == []

    def test_dark_is_dark(self, browser: Browser, output: Path) -> None:
        seen = []
        for scheme in ("light", "dark"):
            browser.open(output, scheme=scheme)
            seen.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert seen == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"]

    def test_before_and_after_differ_in_lightness_for_every_eye(self, browser: Browser, output: Path) -> None:
        browser.open(output)
        dots = browser.run("return ['.d0', '.d1'].map(s => document.querySelector('.key ' + s).tagName)")
        assert dots == ["circle", "rect"]

    @pytest.mark.parametrize("size", [PHONE, (360, 640)])
    def test_a_phone_scrolls_one_way(self, browser: Browser, output: Path, size: tuple[int, int]) -> None:
        browser.open(output, size)
        assert browser.run("return document.documentElement.scrollWidth") <= size[0]
        sizes = browser.run(
            "return [...document.querySelectorAll('p, td, th, li, dd, .plot text')].filter(e => e.checkVisibility())"
            ".map(e => parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement?.getScreenCTM().a ?? 1))"
        )
        assert min(sizes) > 8
        # What came of the stripes is seen without a finger.
        ends = browser.run(
            "return [...document.querySelectorAll('#table .of-before, #table .of-after')]"
            ".map(e => e.getBoundingClientRect().right)"
        )
        assert 0 < min(ends) <= max(ends) <= size[0]
        browser.all("#table button.open")[1].click()
        browser.opened()
        assert browser.run("return document.getElementById('picture').scrollWidth") <= size[0]


class TestHostile:
    def test_text_of_headers_and_names_runs_nowhere(self, browser: Browser, tmp_path: Path, client: Client) -> None:
        name = "<img src=x onerror=hacked=3>&'\".fits"
        cards = {"DETECTOR": "<script>hacked=1</script>", "FILTER": "\"><svg onload=hacked=2>"}
        write_exposure(tmp_path / "in" / name, cards=cards)
        write_truncated(tmp_path / "in" / "<svg onload=hacked=4>.fits")
        sl.run(tmp_path / "in", tmp_path / "out", client=client)
        sl.write_report(tmp_path / "out")
        browser.open(tmp_path / "out")
        browser.all("#table button.open")[0].click()
        shown = browser.opened()
        browser.press(Keys.ARROW_RIGHT)
        browser.opened()
        names = {state.name for state in sl.status(tmp_path / "out")}
        assert all("hacked=" in name for name in names)
        assert {shown, browser.one("#picture-name").text} == names
        assert browser.run("return typeof hacked") == "undefined"

    def test_what_gets_in_all_the_same_runs_nowhere(self, started: Browser, output: Path, tmp_path: Path) -> None:
        text = (output / "report.html").read_text(encoding="utf-8")
        (tmp_path / "report.html").write_text(
            text.replace("<main>", "<main><script>hacked=1</script><img src=x onerror=hacked=2>")
            .replace("<h2 id=", "<h2 onclick='hacked=3' id=")
        )  # fmt: skip
        started.open(tmp_path)
        started.run("document.querySelector('h2').click()")
        assert started.run("return typeof hacked") == "undefined"
        assert all("Content Security Policy" in error for error in started.errors())


@pytest.mark.slow
class TestThousand:
    def test_a_thousand_exposures_are_usable(self, browser: Browser, tmp_path: Path, client: Client) -> None:
        source = write_exposure(tmp_path / "in" / "e0000.fits", shape=(64, 64))
        for i in range(1, 1000):
            shutil.copy(source, tmp_path / "in" / f"e{i:04d}.fits")
        sl.run(tmp_path / "in", tmp_path / "out", client=client)
        sl.write_report(tmp_path / "out")
        browser.open(tmp_path / "out")
        assert (tmp_path / "out" / "report.html").stat().st_size < 2e6
        assert len(list((tmp_path / "out" / "report").iterdir())) == 10
        assert len(browser.names()) == 1000
        browser.one("#words").send_keys("e0999")
        assert browser.names() == ["e0999"]
        browser.one("#table tbody tr:not([hidden]) button.open").click()
        assert browser.opened() == "e0999"
        assert browser.run("return document.images.length") <= 6
