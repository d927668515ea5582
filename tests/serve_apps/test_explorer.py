"""The page at / in headless Chromium over real services without Ray, as a person uses it."""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, Browser
from local_services import (
    LocalContent,
    LocalItems,
    listening,
    local_recommender,
    one_app,
)
from sequence_cases import ITEM_IDS, read_side

from serve_apps.explorer import add_page
from serve_apps.gateway import Limits, make_app
from serve_apps.items_gateway import add_items
from serve_apps.recommend import Places
from serve_apps.recommend_gateway import RecommendLimits, make_recommend_app
from serve_apps.releases import fixed
from serve_apps.versions import match, match_users

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
    ),
]

PHONE, DESKTOP = (390, 844), (1280, 800)
READY = """const page = document.querySelector("main");
return !page.hasAttribute("aria-busy") && !page.querySelector("[aria-busy]") &&
    page.querySelector("h1, .notice") !== null"""


class Page(Browser):
    """A window on the service at `url`."""

    url = ""

    def show(self, address: str = "/") -> None:
        self.open(self.url + address)
        self.ready()

    def ready(self) -> None:
        self.wait(lambda: self.run(READY))

    def headed(self, title: str) -> None:
        self.wait(lambda: self.run(READY) and self.text("h1") == title)

    def address(self) -> str:
        return self.run("return location.pathname + location.search")


@pytest.fixture(scope="module")
def users(recommendable: dict[str, Places], served: Any) -> Places:
    return recommendable["sasrec"]


@pytest.fixture(scope="module")
def url(served: Any, users: Places, catalogued: str) -> Iterator[str]:
    version = match(served.encoder_uri, served.index_uri)
    content, items = LocalContent(served.encoder_uri, served.index_uri), LocalItems(catalogued)
    limits = Limits()
    app = make_app(content, version, limits)
    add_items(app, fixed(content, version), items, items.catalogue.version, limits)
    add_page(app)
    told = match_users(users.encoder, users.index, users.rows)
    people = make_recommend_app(local_recommender(users), told, RecommendLimits())
    with listening(one_app(app, people)) as url:
        yield url


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path / "profile", request.param)
    page.url = url
    try:
        yield page
        assert page.errors() == []
    finally:
        page.close()


def fits(page: Page) -> None:
    """Nothing sticks out to the side, and what is touched is large enough to touch."""
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    small = page.run("""return [...document.querySelectorAll("main a, main button, header button")]
        .map(e => [e.innerText, e.getBoundingClientRect()])
        .filter(([, box]) => box.width && (box.width < 24 || box.height < 24))
        .map(([text]) => text)""")
    assert [one for one in small if one != "all items"] == []  # which stands within a sentence
    named = page.run("""return [...document.querySelectorAll("a, button, input")]
        .filter(e => !(e.innerText || e.getAttribute("aria-label") || e.labels?.length))
        .map(e => e.outerHTML)""")
    assert named == []


def test_browse_open_an_item_and_come_back(page: Page, served: Any) -> None:
    page.show()
    titles = page.texts(".card b")
    assert titles[:12] == [*reversed(served.texts[1:]), served.texts[0]]
    page.wait(lambda: page.run("return [...document.images].some(i => i.naturalWidth)"))
    fits(page)
    page.click('a[href="/?item=item-3"]')
    page.headed(served.texts[3])
    assert page.address() == "/?item=item-3"
    scores = served.vectors @ served.vectors[3]
    order = [i for i in np.argsort(-scores) if i != 3]
    assert page.texts(".card b") == [served.texts[i] for i in order]
    shown = [float(text.split()[-1]) for text in page.texts(".likeness")]
    np.testing.assert_allclose(shown, scores[order], atol=0.01)
    assert [one == 1 for one in shown] == [one >= 0.9995 for one in scores[order]]
    assert {"\uff03RED", "\uff03MACHINE"} <= set(page.texts(".chip"))
    fits(page)
    page.back()
    page.headed("Items")
    assert page.focus().startswith(served.texts[3])  # where it was left
    page.click('a[href="/?tag=planet"]')
    page.headed("Tag: planet")
    assert len(page.texts(".card")) == 3


def test_more_are_shown_on_demand_and_still_are_on_the_way_back(page: Page) -> None:
    page.show()
    assert len(page.texts(".card")) == 30
    assert page.texts(".more button") == ["Show more (11 left)"]
    page.click(".more button")
    page.wait(lambda: len(page.texts(".card")) == 41)
    assert page.run("return document.querySelector('.more button').hidden")
    last = page.texts(".card b")[30]
    assert last in page.focus()
    page.press("Enter")
    page.headed(last)
    page.press("Escape")
    page.headed("Items")
    assert len(page.texts(".card")) == 41
    assert last in page.focus()
    assert all("404" in one for one in page.errors())  # of the item that no index has


def test_search_by_words_picture_and_both(page: Page, served: Any, tmp_path: Path) -> None:
    page.show()
    page.type("#words", served.texts[7])
    page.press("Enter")
    page.headed(f"Nearest to “{served.texts[7]}”")
    assert page.address() == f"/?q={quote(served.texts[7]).replace('%20', '+')}"
    vector = served.encoder.encode_texts([served.texts[7]])[0]
    order = [served.texts[i] for i in np.argsort(-(served.vectors @ vector))]
    assert page.texts(".card b") == order
    assert page.texts(".row .chip")
    page.run(
        """const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
        for (const kind of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(
            new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));""",
        base64.b64encode(served.pictures[4]).decode(),
    )
    page.headed(f"Nearest to “{served.texts[7]}” and the picture")
    page.click("#chosen button")
    page.headed(f"Nearest to “{served.texts[7]}”")
    page.run("document.querySelector('#words').value = ''")
    (tmp_path / "chosen.png").write_bytes(served.pictures[9])
    page.type("#file", str(tmp_path / "chosen.png"))
    page.headed("Nearest to the picture")
    vector = served.encoder.encode_images([served.pictures[9]])[0]
    best = served.texts[int(np.argmax(served.vectors @ vector))]
    assert best in page.texts(".card b")[:3]  # it was made a JPEG on the way
    fits(page)
    page.click(".card")
    page.wait(lambda: page.address().startswith("/?item="))
    page.ready()
    page.back()
    page.headed("Nearest to the picture")


def test_a_user_and_why(page: Page, users: Places) -> None:
    page.show()
    page.wait(lambda: not page.run("return document.querySelector('#users').hidden"))
    page.type("#user", "user3")
    page.press("Enter")
    page.headed("User user3")
    rows = read_side(users.rows, "train").to_pylist()
    past = [ITEM_IDS[i] for row in rows if row["user_id"] == "user3" for i in row["item_index"]]
    assert page.texts("[data-chosen] b") == [f"film {one}" for one in reversed(past)]
    assert page.texts("#interests ~ ol .interest") == ["Interest 1"]
    best = page.texts("[data-why] b")
    assert len(best) > 10
    assert not {f"film {one}" for one in past} & set(best)
    reasons = page.texts(".why button")
    assert all(any(f"film {one} " in f"{text} " for one in past) for text in reasons)
    fits(page)
    page.click(".why button")
    marked = page.texts("[data-chosen].marked b")
    assert marked
    assert set(marked) == {reasons[0].rpartition(" ")[0]}
    assert page.focus().endswith(marked[0])
    page.show("/?user=nobody")
    assert "what is popular" in page.text("main")
    assert page.texts("#best") == ["Popular"]
    # the browser tells in its console of the answer that nobody of that name is known
    assert all("user=nobody" in one and "404" in one for one in page.errors())


def test_by_keyboard_alone(page: Page, served: Any) -> None:
    page.show()
    page.press("/")
    assert page.focus() == "words"
    page.press(*"red river", "Enter")
    page.headed("Nearest to “red river”")
    page.press("/", "Down")
    cards = page.texts(".card b")
    assert page.focus().endswith(page.texts(".card")[0].split("\n")[-1])
    page.press("Right", "Right", "Left", "End", "Home", "Right", "Down")
    per_row = page.run("""const tops = [...document.querySelectorAll(".card")]
        .map(e => Math.round(e.getBoundingClientRect().top));
        return tops.filter(top => top === tops[0]).length""")
    assert cards[min(1 + per_row, 11)] in page.focus()
    visible = page.run("""const style = getComputedStyle(document.activeElement);
        return style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2""")
    assert visible
    page.press("Enter")
    page.wait(lambda: page.address().startswith("/?item="))
    page.ready()
    page.press("Escape")
    page.headed("Nearest to “red river”")
    page.press("Escape")
    page.headed("Items")
    page.show()
    page.press("Tab")
    assert page.focus() == "Skip to what was found"
    reached = []
    for _ in range(7):
        page.press("Tab")
        reached.append(page.focus())
    assert reached[0].startswith("Raycall")
    assert reached.index("words") < reached.index("file") < reached.index("Search")
    assert reached.index("Search") < reached.index("user") < reached.index("Recommend")


def test_deep_links_and_what_is_not_there(page: Page, served: Any) -> None:
    page.show("/?item=gone")
    assert "gone: not in the table of items" in page.text(".notice.bad")
    assert page.texts(".notice button") == []  # it would be no other answer
    assert page.focus() == "All items"
    page.show(f"/?item={quote('only/in the table ü')}")
    assert "not in the index" in page.text("main")
    page.show("/?tag=nothing")
    assert "No item has the tag “nothing”" in page.text("main")
    page.show(f"/?q={quote(served.texts[2])}")
    assert page.text("h1") == f"Nearest to “{served.texts[2]}”"
    assert page.run("return document.title").startswith("Nearest to")
    page.show("/?q=%F0%9F%92%A5")  # a sign that the model has never seen
    assert "nothing in it that the model can read" in page.text(".notice.bad")
    # the browser tells in its console of such answers
    assert all("404" in one or "422" in one for one in page.errors())


def test_a_file_that_is_no_picture_and_markup_in_a_title(page: Page, tmp_path: Path) -> None:
    page.show()
    (tmp_path / "notes.png").write_text("no picture")
    page.type("#file", str(tmp_path / "notes.png"))
    page.wait(lambda: page.texts(".notice.bad"))
    assert "notes.png is not a picture" in page.text(".notice.bad")
    page.show("/?q=" + quote("<img src=x onerror=alert(1)> river"))
    assert page.text("h1") == "Nearest to “<img src=x onerror=alert(1)> river”"
    assert page.run("return document.querySelectorAll('h1 img').length") == 0


def test_a_service_that_goes_away_is_told_and_asked_again(
    url: str, tmp_path: Path, served: Any
) -> None:
    page = Page(tmp_path / "profile", DESKTOP)
    page.url = url
    try:
        page.show()
        page.run("window.real = fetch; window.fetch = () => Promise.reject(new TypeError('gone'))")
        page.click('a[href="/?item=item-3"]')
        page.wait(lambda: page.texts(".notice.bad"))
        assert "does not answer" in page.text(".notice.bad")
        page.run("window.fetch = window.real")
        page.click(".notice button")
        page.headed(served.texts[3])
        # one that wants a key, as one that is open to others does
        page.run("""window.fetch = (path, how) => how?.headers?.Authorization === "Bearer secret"
            ? window.real(path, how) : Promise.resolve(new Response(
                '{"error": {"type": "unauthorized", "message": "key wanted"}}', {status: 401}))""")
        page.click('a[href="/"]')
        page.wait(lambda: page.texts("#key"))
        page.type("#key", "secret")
        page.press("Enter")
        page.headed("Items")
        page.wait(lambda: page.run("return [...document.images].some(i => i.naturalWidth)"))
    finally:
        page.close()


def test_colours_can_be_read_in_the_light_and_in_the_dark(url: str, tmp_path: Path) -> None:
    """Contrast of text and ground is at least 4.5 (WCAG 2.2, AA)."""
    for dark in (False, True):
        page = Page(tmp_path / f"profile-{dark}", DESKTOP, dark=dark)
        page.url = url
        try:
            page.show()
            assert page.run("return matchMedia('(prefers-color-scheme: dark)').matches") == dark
            for css in (
                "h1",
                ".soft",
                ".chip",
                ".card b",
                ".card .soft",
                "footer",
                "header .button",
            ):
                ink, ground = page.run(
                    """let e = document.querySelector(arguments[0]);
                    const ink = getComputedStyle(e).color;
                    while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)")
                        e = e.parentElement;
                    return [ink, getComputedStyle(e).backgroundColor]""",
                    css,
                )
                assert contrast(ink, ground) >= 4.5, (dark, css, ink, ground)
        finally:
            page.close()


def contrast(ink: str, ground: str) -> float:
    def light(colour: str) -> float:
        parts = np.array([float(one) for one in colour[4:-1].split(",")]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((light(ink), light(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_page_without_users(served: Any, catalogued: str, tmp_path: Path) -> None:
    """As the content service alone serves it: no form for users, no error."""
    version = match(served.encoder_uri, served.index_uri)
    content, items = LocalContent(served.encoder_uri, served.index_uri), LocalItems(catalogued)
    app = make_app(content, version, Limits())
    add_items(app, fixed(content, version), items, items.catalogue.version, Limits())
    add_page(app)
    with listening(app) as url:
        page = Page(tmp_path / "profile")
        page.url = url
        try:
            page.show()
            assert page.run("return document.querySelector('#users').hidden")
            assert page.texts("h2") == ["Frequent tags"]
        finally:
            page.close()
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
