"""The page in a real browser: marking by keys and mouse, a killed server, a run, its report, the next round."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from atu.data.mnist import mnist

pytest.importorskip("uvicorn", reason="the page's packages are not installed (atu-ext[label])")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

sync_api.expect.set_options(timeout=30_000)  # a busy machine
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHOTS = os.environ.get("LABEL_SHOTS")  # a folder for pictures of each step
QUICK = """
[feedback]
pool = 150
[adapt]
steps = 5
fisher.n = 8
[repel]
steps = 6
check_every = 3
check_samples = 100
guide_steps = 2
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium at /usr/bin/chromium"),
]


class Server:
    """`atu label`, and the link that it tells."""

    def __init__(self, folder: Path, samples: int = 1000, more: tuple[str, ...] = ()):
        config = folder / "quick.toml"
        config.write_text(QUICK)
        words = ["label", "mnist", "--out", str(folder / "marks"), "--samples", str(samples), "--quiet"]
        words += ["--evaluate", "200", "--config", str(config), *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atu.cli.main", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.link = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def server(tmp_path):
    found = Server(tmp_path)
    yield found
    found.process.terminate()
    found.process.wait(60)


@contextmanager
def new_page(browser):
    """A page in a browser of its own, which keeps its faults."""
    context = browser.new_context(viewport=dict(width=1280, height=800))
    found = context.new_page()
    found.set_default_timeout(60_000)
    found.faults = []
    found.on("pageerror", lambda error: found.faults.append(str(error)))
    found.on("console", lambda message: found.faults.append(message.text) if message.type == "error" else None)
    yield found
    context.close()


@pytest.fixture
def page(browser):
    with new_page(browser) as found:
        yield found


@pytest.fixture(scope="module")
def marked_page(browser, tmp_path_factory):
    """Opened, with sixty marks: for tests that look at it only."""
    server = Server(tmp_path_factory.mktemp("marked"))
    try:
        with new_page(browser) as found:
            opened(found, server.link)
            mark_sixty(found)
            yield found
    finally:
        server.process.terminate()
        server.process.wait(60)


def opened(page, link: str) -> None:
    page.goto(link)
    page.wait_for_selector(".cell img.there")


def counts(page) -> tuple[int, int, int]:
    return tuple(int(page.text_content(f"#count-{name}")) for name in ("unwanted", "good", "unsure"))


def wait_for_counts(page, *expected: int) -> None:
    sync_api.expect(page.locator("#count-unwanted")).to_have_text(str(expected[0]))
    sync_api.expect(page.locator("#count-good")).to_have_text(str(expected[1]))
    sync_api.expect(page.locator("#count-unsure")).to_have_text(str(expected[2]))
    sync_api.expect(page.locator(".pending")).to_have_count(0)


def shot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def mark_sixty(page) -> None:
    """30 by keys, 30 with the mouse: 24 unwanted, 33 good, 3 unsure."""
    page.locator("#grid").focus()
    for key in "ngngngnugg" * 3:
        page.keyboard.press(key)
    wait_for_counts(page, 12, 15, 3)
    page.click("#brush [data-label=unwanted]")
    for position in range(30, 42):
        page.locator(f"#cell-{position}").click()
    page.click("#brush [data-label=good]")
    page.locator("#cell-42").click()
    page.locator("#cell-59").click(modifiers=["Shift"])
    wait_for_counts(page, 24, 33, 3)


def judge_fifty(page) -> None:
    """Two pages of what is judged blind: two are called unwanted."""
    page.click("#judge")
    page.locator("#grid").focus()
    for first in (1, 25):
        page.wait_for_selector("#cell-23 img.there")
        sync_api.expect(page.locator("#cell-0")).to_have_attribute("aria-label", f"Sample {first} to judge, not marked")
        page.keyboard.press("n")
        page.keyboard.press("Shift+Enter")
    shot(page, "7-judging")
    sync_api.expect(page.locator("#verdict")).to_contain_text("48 of 400 judged")
    page.click("#reveal")
    told = re.compile("Of [0-9]+ random samples you called [012] unwanted")
    sync_api.expect(page.locator("#verdict")).to_contain_text(told)
    sync_api.expect(page.locator("#empty")).to_be_visible()
    shot(page, "7-verdict")


def replayed(folder: Path) -> int:
    return len((folder / "marks" / "journal.jsonl").read_text().splitlines())


def test_from_marks_to_a_report(page, server, tmp_path):
    opened(page, server.link)
    assert "token" not in page.url
    shot(page, "1-opened")
    mark_sixty(page)
    shot(page, "2-sixty")
    for _ in range(5):
        page.keyboard.press("z")
    wait_for_counts(page, 21, 15, 3)  # the range, a good one and three unwanted ones
    page.keyboard.press("y")
    page.keyboard.press("Control+y")
    wait_for_counts(page, 23, 15, 3)
    lines = replayed(tmp_path)

    page.reload()
    page.wait_for_selector(".cell img.there")
    wait_for_counts(page, 23, 15, 3)
    assert page.locator("#cell-0").get_attribute("aria-label") == "Sample 1024, unwanted"

    assert page.faults == []
    server.kill()
    sync_api.expect(page.locator("#alert")).to_contain_text("What is marked is kept")
    again = Server(tmp_path)
    try:
        opened(page, again.link)
        page.faults.clear()  # of requests that nobody answered
        wait_for_counts(page, 23, 15, 3)
        assert replayed(tmp_path) == lines
        page.keyboard.press("y")
        page.keyboard.press("y")
        wait_for_counts(page, 24, 16, 3)
        page.keyboard.press("y")
        wait_for_counts(page, 24, 33, 3)

        page.click("#tab-likely")
        page.wait_for_selector("#cell-0 img.there")
        page.wait_for_selector("#agreement:not([hidden])")
        shot(page, "3-likely")
        page.locator("#grid").focus()
        first = page.locator("#cell-0").get_attribute("aria-label").split(",")[0]
        page.keyboard.press("n")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#cell-0")).not_to_have_attribute("aria-label", re.compile(f"^{first},"))

        before = counts(page)  # 24 shown, of which one is good: two keys
        page.click("#tab-unsure")
        page.wait_for_selector("#cell-23 img.there")
        page.locator("#grid").focus()
        page.keyboard.press("g")
        page.keyboard.press("Control+Enter")
        wait_for_counts(page, before[0] + 23, before[1] + 1, before[2])
        page.keyboard.press("z")
        page.keyboard.press("z")
        wait_for_counts(page, *before)

        page.click("#tab-random")
        page.locator("#grid").focus()
        page.keyboard.press("n")
        page.keyboard.press("Shift+Enter")
        sync_api.expect(page.locator("#share")).to_contain_text(
            "Of 24 random samples you called 1 unwanted: 4.2\u00a0%"
        )
        wait_for_counts(page, 26, 56, 3)
        shot(page, "4-random")

        page.click("#run")
        page.wait_for_selector("#stop:not([hidden])")
        shot(page, "5-running")
        again.kill()  # the run goes on, and is found again
        again = Server(tmp_path)
        opened(page, again.link)
        page.faults.clear()
        page.wait_for_selector("#stop:not([hidden]), #report:not([hidden])")
        shot(page, "5-running-still")
        page.wait_for_selector("#report:not([hidden])", timeout=300_000)
        shot(page, "6-done")
        sync_api.expect(page.locator("#run-outcome")).to_contain_text("of 200 samples were unwanted before")
        with page.context.expect_page() as tab:
            page.click("#report")
        report = tab.value
        report.wait_for_load_state()
        assert report.locator("h1").count() == 1 and report.locator("img, svg").count() > 0
        shot(report, "7-report")
        report.close()
        judge_fifty(page)
        run = tmp_path / "marks-run-1"
        person = json.loads((run / "report.json").read_text())["person"]
        assert person["before"]["n"] + person["after"]["n"] == 48
        assert person["before"]["unwanted"] + person["after"]["unwanted"] == 2
        with page.context.expect_page() as tab:
            page.click("#report")
        sync_api.expect(tab.value.get_by_role("heading", name="By a person")).to_be_visible()
        shot(tab.value, "7-report-judged")
        tab.value.close()
        assert json.loads((run / "run.json").read_text())["identity"]["positives"] is not None

        page.click("#round-button")
        sync_api.expect(page.locator("#round")).to_have_text("round 2")
        sync_api.expect(page.locator("#share-note")).to_contain_text("Round 1: 4.2\u00a0%")
        for name in ("were_unwanted", "were_good", "damaged"):
            page.click(f"#tab-{name}")
            page.wait_for_selector("#cell-0 img.there >> nth=1")
            shot(page, f"8-round-2-{name}")
        page.locator("#grid").focus()
        page.keyboard.press("n")
        wait_for_counts(page, 27, 56, 3)
        assert page.faults == []
    finally:
        again.process.terminate()
        assert again.process.wait(60) == 0
    # The same in a terminal: on from the first run.
    words = page.text_content("#command").split()
    assert words[words.index("--from") + 1] == str(tmp_path / "marks-run-1") and words[2] == "mnist"
    data = json.loads((tmp_path / "marks" / "labels.json").read_text())
    assert [one["random_sample"]["marked"] for one in data["rounds"]] == [24, 0]
    assert len(list((tmp_path / "marks" / "unwanted").glob("r2-*.png"))) == 1


def test_keys_do_what_they_say_whatever_was_clicked(page, server):
    opened(page, server.link)
    page.click("#tab-all")
    for key in "nnn":
        page.keyboard.press(key)
    wait_for_counts(page, 3, 0, 0)
    page.keyboard.press("Enter")  # the next page, and not this one from its beginning
    active = page.locator(".cell.active")
    sync_api.expect(active).to_have_count(1)
    first = int(active.get_attribute("data-position"))
    assert first > 3
    page.click("#zoom [data-zoom='1']")
    page.keyboard.press(" ")
    sync_api.expect(page.locator(f"#cell-{first}")).to_have_attribute("aria-label", f"Sample {1024 + first}, unwanted")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#tab-all")).to_have_attribute("aria-selected", "true")
    sync_api.expect(active).to_have_attribute("data-position", str(first + 1))

    page.click("#rest-unwanted")
    unwanted = int(page.get_attribute(".cell.active", "data-position")) - first + 3
    wait_for_counts(page, unwanted, 0, 0)
    page.keyboard.press("Shift+Enter")
    good = int(page.get_attribute(".cell.active", "data-position")) - first - (unwanted - 3)
    assert good > 0
    wait_for_counts(page, unwanted, good, 0)
    page.click("#undo")
    wait_for_counts(page, unwanted, 0, 0)
    page.keyboard.press("Shift+Enter")
    sync_api.expect(page.locator("#count-good")).not_to_have_text("0")
    assert counts(page)[0] == unwanted

    # Whoever came to a button by keys presses it.
    more = counts(page)[1]
    page.locator("#undo").focus()
    page.keyboard.press("Enter")
    wait_for_counts(page, unwanted, 0, 0)
    page.keyboard.press(" ")
    wait_for_counts(page, 4, 0, 0)
    page.locator("#redo").focus()
    page.keyboard.press(" ")
    wait_for_counts(page, unwanted, 0, 0)
    page.keyboard.press("Shift+Enter")  # no key of a button's
    sync_api.expect(page.locator("#count-good")).not_to_have_text("0")
    assert more > 0 and page.faults == []


def test_a_touch_presses_buttons(browser, server):
    context = browser.new_context(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    opened(page, server.link)
    page.tap("#brush [data-label=good]")
    page.tap("#cell-1")
    wait_for_counts(page, 0, 1, 0)
    page.tap("#undo")
    wait_for_counts(page, 0, 0, 0)
    page.tap("#tab-random")
    sync_api.expect(page.locator("#tab-random")).to_have_attribute("aria-selected", "true")
    page.tap("summary")
    sync_api.expect(page.locator("#command")).to_be_visible()
    context.close()


def test_a_phone_and_a_dark_room(marked_page):
    page = marked_page
    for scheme in ("light", "dark"):
        for width, height in ((1280, 800), (390, 844)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(dict(width=width, height=height))
            page.wait_for_timeout(300)
            sync_api.expect(page.locator(".cell img:not(.there)")).to_have_count(0)
            shot(page, f"{scheme}-{width}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator(".cell").count() < 250
    page.emulate_media(color_scheme="light")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != colour
    assert page.faults == []


def test_samples_like_a_picture_are_offered_first(page, tmp_path):
    picture = tmp_path / "photo.png"
    Image.fromarray((mnist()[0][7, 0].numpy() * 127.5 + 127.5).astype("uint8")).resize((301, 301)).save(picture)
    server = Server(tmp_path, more=("--like", str(picture)))
    try:
        page.goto(server.link)
        page.wait_for_selector("#cell-23 img.there")
        sync_api.expect(page.locator("#tab-like")).to_have_attribute("aria-selected", "true")
        shot(page, "9-like")
        page.locator("#grid").focus()
        page.keyboard.press("n")
        wait_for_counts(page, 1, 0, 0)
        assert page.faults == []
    finally:
        server.process.terminate()
        server.process.wait(60)


def test_what_the_oracle_proposes_is_marked_once_accepted(page, tmp_path):
    server = Server(tmp_path, more=("--oracle", "mnist", "--class", "8"))
    try:
        page.goto(server.link)
        page.wait_for_selector("#cell-23.proposed img.there")
        sync_api.expect(page.locator("#tab-ranked")).to_have_attribute("aria-selected", "true")
        assert counts(page) == (0, 0, 0)
        shot(page, "9-oracle")
        page.locator("#grid").focus()
        page.keyboard.press("g")  # a correction
        before = page.locator(".cell.proposed").count()
        page.click("#rest")
        wait_for_counts(page, before, 24 - before, 0)
        assert before == 23 and page.faults == []
    finally:
        server.process.terminate()
        server.process.wait(60)


def test_the_whole_range_scrolls_with_few_elements(page, tmp_path):
    server = Server(tmp_path, samples=100_000)
    try:
        opened(page, server.link)
        page.click("#zoom [data-zoom='0']")
        for share in (0.3, 0.71, 1.0, 0.0):
            page.evaluate("s => { const g = document.getElementById('grid'); g.scrollTop = s * g.scrollHeight }", share)
            sync_api.expect(page.locator(".cell img:not(.there)")).to_have_count(0, timeout=60_000)
            assert page.locator(".cell").count() < 400
        page.locator("#grid").focus()
        page.keyboard.press("End")
        page.keyboard.press("n")
        sync_api.expect(page.locator("#cell-99999")).to_have_attribute("aria-label", "Sample 101023, unwanted")
    finally:
        server.process.terminate()
        server.process.wait(60)


def test_axe_finds_no_serious_fault(marked_page):
    page = marked_page
    page.set_viewport_size(dict(width=1280, height=800))
    page.wait_for_selector("#agreement:not([hidden])")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for open_help in (False, True):
            if open_help:
                page.keyboard.press("?")
            found = axe.Axe().run(page).response["violations"]
            told = [(f["id"], f["impact"], [n["html"][:120] for n in f["nodes"][:3]]) for f in found]
            assert [f for f in told if f[1] in ("serious", "critical")] == [], told
            if open_help:
                page.keyboard.press("Escape")
    assert re.search(r"\d", page.text_content("#advice"))
