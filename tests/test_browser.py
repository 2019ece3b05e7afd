"""Every page of the book in a real browser: phone, tablet and desk, light and dark, offline."""

import functools
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WIDTHS = (390, 768, 1440)
MOST_BYTES = 1_500_000  # of a page beside its sound
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

# What a screen reader and a keyboard need, found by the page itself.
AUDIT = r"""() => {
  const said = [];
  const name = (e) => [
    e.getAttribute("aria-label"), e.title, e.innerText, e.alt, e.value,
    ...(e.getAttribute("aria-labelledby") || "").split(" ").map((id) =>
      id && document.getElementById(id)?.innerText),
    ...[...(e.labels || [])].map((label) => label.innerText),
    e.querySelector("img")?.alt, e.querySelector("svg title")?.textContent,
  ].some((text) => (text || "").trim());
  const which = (e) => e.outerHTML.slice(0, 120);
  if (document.documentElement.lang !== "en") said.push("no language");
  const seen = (e) => e.getClientRects().length > 0;
  if ([...document.querySelectorAll("h1")].filter(seen).length !== 1) said.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) said.push("not one main");
  if (!document.querySelector("nav")) said.push("no nav");
  for (const e of document.querySelectorAll("img"))
    if (!e.hasAttribute("alt") || (/output_|_images/.test(e.src) && !e.alt.trim()))
      said.push("image without words: " + which(e));
  for (const e of document.querySelectorAll("button, a[href], audio, input, select"))
    if (e.type !== "hidden" && !name(e) && !e.closest("[hidden], [aria-hidden=true]"))
      said.push("nameless: " + which(e));
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i)))
    said.push("id twice: " + id);
  for (const e of document.querySelectorAll("a[href^='#']")) {
    const id = decodeURIComponent(e.getAttribute("href").slice(1));
    if (id && !document.getElementById(id)) said.push("link to nowhere: #" + id);
  }
  return said;
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")  # Playwright runs once at a time
def browser():
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site(smoke_book):
    """The built book behind a server on this host; gives (address, folder)."""
    if not (smoke_book.site / "index.html").exists():
        pytest.fail(f"The book was not built:\n{smoke_book.printed}")
    handler = functools.partial(Quiet, directory=str(smoke_book.site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", smoke_book.site
    server.shutdown()


def pages(folder: Path) -> list[str]:
    """Return every page a reader can reach, as paths below the site."""
    found = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*.html"))
    return [*(page for page in found if not page.startswith("_")), "search.html"]


def visit(browser, address, page, **settings):
    """Open a page; return it and what went wrong with it: console, requests, width."""
    wrong = []
    tab = browser.new_page(**settings)
    tab.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    tab.on("requestfailed", lambda r: wrong.append(f"failed: {r.url[:100]}"))

    def watch(request):
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(f"asks another host: {request.url[:100]}")

    tab.on("request", watch)
    tab.goto(f"{address}/{page}", wait_until="load")
    tab.wait_for_timeout(150)  # deferred scripts
    wide = tab.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    if wide > 0:
        wrong.append(f"{wide} px wider than the screen")
    return tab, wrong


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_quiet_local_and_fit_the_screen(browser, site, width):
    address, folder = site
    wrong = {}
    for page in pages(folder):
        tab, found = visit(browser, address, page, viewport={"width": width, "height": 900})
        tab.close()
        if found:
            wrong[page] = found
    assert not wrong


def test_pages_can_be_heard_and_reached_without_a_mouse(browser, site):
    address, folder = site
    wrong = {}
    for page in pages(folder):
        tab, _ = visit(browser, address, page, viewport={"width": 1440, "height": 900})
        if found := tab.evaluate(AUDIT):
            wrong[page] = found
        tab.close()
    assert not wrong


def test_a_keyboard_gets_to_the_text_at_once_and_sees_where_it_is(browser, site):
    address, _ = site
    tab, _ = visit(browser, address, "book/intro.html", viewport={"width": 1440, "height": 900})
    tab.keyboard.press("Tab")
    focus = tab.evaluate(
        "(() => { const e = document.activeElement, s = getComputedStyle(e);"
        " return [e.innerText.trim(), e.getAttribute('href'), s.outlineStyle] })()"
    )
    assert focus[0] == "Skip to main content" and focus[1] == "#main-content"
    assert focus[2] == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#main-content"
    tab.close()


def test_pages_weigh_little(site):
    _, folder = site
    for page in pages(folder):
        text = (folder / page).read_text(encoding="utf-8")
        weight = len(re.sub(r"data:audio/[^\"')\s]*", "", text).encode())
        for image in set(re.findall(r"(?:src|data)=\"(?:\.\./)*(_images/[^\"]+)\"", text)):
            weight += (folder / image).stat().st_size
        assert weight <= MOST_BYTES, f"{page}: {weight:,} bytes beside its sound"


def test_shared_files_weigh_little(browser, site):
    """What the theme adds to the first page a reader opens."""
    address, _ = site
    weights = []
    tab = browser.new_page()
    tab.on("response", lambda r: weights.append(len(r.body())) if "_static" in r.url else None)
    tab.goto(f"{address}/book/glossary.html", wait_until="networkidle")
    tab.close()
    assert weights and sum(weights) < 1_000_000


def test_links_between_pages_lead_somewhere(site):
    _, folder = site
    for page in pages(folder):
        text = (folder / page).read_text(encoding="utf-8")
        for link in re.findall(r'<a [^>]*href="([^"#:]+\.html)(?:#[^"]*)?"', text):
            assert ((folder / page).parent / link).resolve().exists(), f"{page} → {link}"


def test_a_dark_room_gets_dark_pages(browser, site):
    address, _ = site
    luminance = {}
    for scheme in ("light", "dark"):
        tab, wrong = visit(browser, address, "book/intro.html", color_scheme=scheme)
        colours = tab.evaluate(
            "['background-color', 'color'].map((p) =>"
            " getComputedStyle(document.body).getPropertyValue(p))"
        )
        luminance[scheme] = [
            sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 765 for colour in colours
        ]
        tab.close()
        assert not wrong
    (light_page, light_text), (dark_page, dark_text) = luminance["light"], luminance["dark"]
    assert light_page - light_text > 0.6 and dark_text - dark_page > 0.6


def test_print_leaves_the_text_alone(browser, site):
    address, _ = site
    tab, _ = visit(browser, address, "book/gotchas.html")
    tab.emulate_media(media="print")
    for hidden in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".prev-next-footer"):
        assert tab.locator(hidden).first.is_hidden()
    assert tab.locator("article p").first.is_visible()
    tab.close()


def test_the_book_works_from_a_folder_without_a_server(browser, site):
    _, folder = site
    wrong = []
    tab = browser.new_page()
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto((folder / "index.html").as_uri())
    tab.wait_for_url("**/book/intro.html")
    tab.wait_for_load_state()
    assert not wrong
    tab.goto((folder / "search.html").as_uri() + "?q=residual")
    tab.wait_for_selector(".search li a", timeout=10_000)  # found, though without an excerpt
    tab.close()
