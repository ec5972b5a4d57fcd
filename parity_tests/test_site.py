"""The documentation as a site: built with warnings as errors and without a network, and looked at in a browser."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = (1400, 390)  # pixels: a desk, a phone
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

# The parts of a page that scroll sideways and should not: tables, code and formulas scroll in boxes of their own.
TOO_WIDE = """
    return [document.documentElement, ...document.querySelectorAll("main, article, .bd-article-container")]
        .filter(e => e.scrollWidth > Math.min(e.clientWidth, innerWidth))
        .map(e => `${e.tagName} ${e.className} is ${e.scrollWidth} wide, ${e.clientWidth} are seen`)
"""


def _pages(site):
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. All that is fetched while it is built goes to a proxy that is not there."""
    for module in ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", folder / ".doctrees", DOCS, folder]
    built = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    return folder


class _Page(HTMLParser):
    """What a page links to and loads, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = [], {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("href", "src") and value is not None:
                self.targets.append(value)
            elif key == "id" or (key == "name" and tag == "a"):
                self.anchors.add(value)


def test_links(site):
    """Every link leads to a page and an anchor that are there, or to another site by https."""
    pages = {path.resolve(): _Page(path) for path in _pages(site)}
    dead = []
    for path, page in pages.items():
        for link in page.targets:
            address, anchor = urldefrag(link)
            if urlsplit(link).scheme:
                fine = urlsplit(link).scheme in ("https", "data")
            else:
                target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
                fine = target.exists() and (target not in pages or unquote(anchor) in pages[target].anchors)
            if not fine:
                dead.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 10 and not dead, dead


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.get("about:blank")
    _requests(browser)  # the browser's own, of its first tab
    yield browser
    browser.quit()


def _resize(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _requests(browser):
    """The addresses that pages have asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_pages(site, address, browser):
    """Each page loads without an error, asks no other machine for anything, and does not scroll sideways."""
    wrong = []
    for path in _pages(site):
        name = path.relative_to(site)
        browser.get(f"{address}/{name}")
        wrong += [f"{name}: {entry['message']}" for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        asked = _requests(browser)
        assert f"{address}/{name}" in asked
        wrong += [f"{name} asks for {url}" for url in asked if not url.startswith((f"{address}/", "data:"))]
        for width in WIDTHS:
            _resize(browser, width)
            wide = browser.execute_script(TOO_WIDE)
            wrong += [f"{name}, in a window of {width} pixels: {what}" for what in wide]
    assert not wrong, "\n".join(wrong)


def test_microscope(address, browser):
    """Every layer of every network of the microscope is chosen, and another map that it is seen on: each says its own words."""
    _resize(browser, WIDTHS[0])
    browser.get(f"{address}/lessons/microscope.html")
    choose = """
        const said = new Set(), [networks, ontos] = document.querySelectorAll("#microscope select");
        const status = document.querySelector("#microscope [role=status]");
        for (const network of [...networks.options]) {
            networks.value = network.value;
            networks.dispatchEvent(new Event("change"));
            for (const button of document.querySelectorAll(".microscope-layers button")) {
                button.click();
                ontos.selectedIndex = ontos.length - 1;
                ontos.dispatchEvent(new Event("change"));
                said.add(network.text + status.textContent);
            }
        }
        document.querySelectorAll(".microscope-stage").forEach(stage => stage.click());
        return [said.size, document.querySelectorAll("[id^=microscope-grid-]").length];
    """
    assert browser.execute_script(choose) == [64, 3]
    assert not [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all(url.startswith((f"{address}/", "data:")) for url in _requests(browser))


def test_search(address, browser):
    """What a reader types into the search box finds pages, without another machine's help."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    _resize(browser, WIDTHS[0])
    browser.get(f"{address}/index.html")
    browser.find_element(By.CSS_SELECTOR, ".search-button__button").click()
    field = browser.find_element(By.CSS_SELECTOR, "#pst-search-dialog input")
    field.send_keys("dilation")
    field.submit()
    hit = (By.CSS_SELECTOR, "#search-results a[href*='reference/spec.html']")
    assert WebDriverWait(browser, 20).until(lambda browser: browser.find_elements(*hit))
    assert all(url.startswith((f"{address}/", "data:")) for url in _requests(browser))


SHOWN = """
    return [...document.querySelectorAll(".beside")].map(pair =>
        [...pair.querySelectorAll(":scope > .sd-tab-content")].map(panel => panel.checkVisibility()))
"""


def test_frameworks_beside(site, address, browser):
    """PyTorch and Keras are seen at once on a desk; on a phone they are tabs, which a finger or a key switches together."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    pages = [path for path in _pages(site) if 'class="sd-tab-set beside' in path.read_text(encoding="utf-8")]
    assert pages
    for path in pages:
        browser.get(f"{address}/{path.relative_to(site)}")
        for width, torch, keras in ((1400, True, True), (390, True, False)):
            _resize(browser, width)
            assert all(pair == [torch, keras] for pair in browser.execute_script(SHOWN)), (path, width)
        pair = browser.find_elements(By.CLASS_NAME, "beside")[-1]
        pair.find_elements(By.TAG_NAME, "label")[1].click()
        assert all(pair == [False, True] for pair in browser.execute_script(SHOWN)), path
        pair.find_elements(By.TAG_NAME, "input")[1].send_keys(Keys.ARROW_LEFT)
        assert all(pair == [True, False] for pair in browser.execute_script(SHOWN)), path
        for hint in browser.find_elements(By.CSS_SELECTOR, ".exercise summary"):
            hint.click()
        assert all(browser.execute_script("return [...document.querySelectorAll('.exercise details')].map(d => d.open)"))
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"], path
        assert all(url.startswith((f"{address}/", "data:")) for url in _requests(browser)), path
