"""The page: whole in one file, hostile texts escaped, best marked, gaps told."""

from __future__ import annotations

import base64
import doctest
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

import rec.report.charts
from rec.report.charts import curve_svg, large_groups, map_svg, ticks
from rec.report.contents import (
    Curve,
    Item,
    LedgerRow,
    Neighbourhood,
    Point,
    Problem,
    Report,
    ResultRow,
    ResultTable,
    Value,
)
from rec.report.layout import layout
from rec.report.render import render, thumbnail

HOSTILE = """<script>alert(1)</script>"'&</title><img src=x onerror=alert(2)>"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, text; nesting must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] not in ("style", "script"):
            self.text += data


def jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def full_report() -> Report:
    query = Item(HOSTILE, jpeg(300, 500), ["drama", HOSTILE])
    near = Item(HOSTILE, None, ["drama", "war"], 0.5, heldout=True)
    rows = [
        ResultRow(
            "model", {"mAP": Value(0.5, 0.4, 0.6), "median rank": Value(9, 8, 10)}, ours=True
        ),
        ResultRow(HOSTILE, {"mAP": Value(0.2, 0.1, 0.3), "median rank": Value(7, 6, None)}),
        ResultRow("lost", {"median rank": Value(None)}),
    ]
    table = ResultTable("Genres", HOSTILE, rows, frozenset({"median rank"}), ["+0.3 " + HOSTILE])
    return Report(
        title=HOSTILE,
        created_at="now",
        summary=[("Source", HOSTILE)],
        ledger=[LedgerRow("tokenise", 1200, 1000, {HOSTILE: 200})],
        curves=[Curve(HOSTILE, [(0, 2.0), (10, 1.0)], [(10, 1.5)]), Curve("empty", [])],
        tables=[table],
        neighbourhoods=[Neighbourhood(query, [near, near])],
        points=[Point(0, 0, HOSTILE, HOSTILE), Point(1, 2, "", "plain", heldout=True)],
        problems=[Problem("pictures", 3, [HOSTILE])],
        notes=[HOSTILE],
    )


def test_hostile_texts_are_shown_and_never_run() -> None:
    page = Page(render(full_report()))
    assert page.stack == []
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # our own
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert all(
        (a.get("src") or "").startswith("data:image/jpeg") for t, a in page.tags if t == "img"
    )


def test_the_file_needs_no_other_file() -> None:
    html = render(full_report())
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "base")]
    links = [a["href"] or "" for tag, a in page.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") for link in links)
    targets = {a.get("id") for _, a in page.tags}
    assert {link[1:] for link in links} <= targets
    assert not re.search(r"url\(|@import|https?://", html)


def test_the_best_of_a_column_is_marked_ranks_from_below() -> None:
    html = render(full_report())
    best = re.findall(r'class="value best">([^<]+)<', html)
    assert best == ["0.500", "7"]
    assert "0.400 … 0.600" in html
    assert "∞" in html


def test_labels_that_are_shared_are_marked() -> None:
    html = render(full_report())
    assert html.count("<mark>drama</mark>") == 2
    assert "<mark>war</mark>" not in html
    assert html.count("no picture") == 2
    assert html.count("held out") >= 2


def test_a_long_list_of_labels_is_cut_and_told() -> None:
    query = Item("film", None, [f"label{i}" for i in range(20)])
    text = Page(render(Report("r", "now", [], neighbourhoods=[Neighbourhood(query, [])]))).text
    assert "label7 and 12 more" in text


def test_an_empty_report_says_so_and_links_nowhere() -> None:
    page = Page(render(Report("empty", "now", [])))
    assert "None were recorded." in page.text
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#problems"]


def test_thumbnails_are_small_and_broken_pictures_are_none() -> None:
    uri = thumbnail(jpeg(1000, 2000))
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    shape = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape
    assert shape == (144, 72, 3)
    assert len(data) < 15_000  # noise is the worst case of JPEG
    assert thumbnail(b"broken") == ""
    assert thumbnail(None) == ""


def test_a_page_that_is_too_large_is_refused() -> None:
    points = [Point(i, i, "", "x" * 100) for i in range(40_000)]
    with pytest.raises(ValueError, match="show fewer items"):
        render(Report("large", "now", [], points=points))


def test_two_thousand_points_and_sixty_pictures_stay_well_below_the_limit() -> None:
    item = Item("title " * 5, jpeg(160, 224), ["drama"] * 6)
    report = Report(
        "real size",
        "now",
        [],
        points=[Point(math.sin(i), i, f"g{i % 8}", "a film title") for i in range(2000)],
        neighbourhoods=[Neighbourhood(item, [item] * 6)] * 8,
    )
    assert len(render(report)) < 2 << 20


def coordinates(svg: str, name: str) -> np.ndarray:
    (line,) = (e for e in ET.fromstring(svg) if e.get("class") == name and e.tag == "polyline")
    points = [pair.split(",") for pair in (line.get("points") or "").split()]
    return np.array(points, dtype=float)


def test_a_curve_goes_where_its_values_go() -> None:
    svg = curve_svg(Curve("loss", [(0, 3.0), (50, 1.0), (100, 2.0)], [(50, 2.0), (100, math.nan)]))
    x, y = coordinates(svg, "train").T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[0] < y[2] < y[1]  # larger values are higher, and y grows downwards
    assert y[2] - y[0] == pytest.approx(y[1] - y[2], abs=0.2)
    assert curve_svg(Curve("nothing", [(0, math.nan)])) == ""
    assert "circle" in curve_svg(Curve("one point", [(0, 1.0)]))


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    svg = curve_svg(Curve("loss", [(i, 1.0 + i % 2) for i in range(5000)]))
    found = coordinates(svg, "train")
    assert len(found) <= 401
    assert found[-1, 0] == max(found[:, 0]) == pytest.approx(332, abs=0.5)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (1e-5, 3e-4), (999, 100_001), (2, 2)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert min(found) >= low - 1e-9
    assert max(found) <= high + 1e-9


def test_the_map_colours_groups_by_size_and_keeps_its_shape() -> None:
    points = [Point(0, 0, "b", "one"), Point(10, 5, "a", "two"), Point(5, 0, "a", "three")]
    svg, legend = map_svg(points)
    assert legend == [("a", 2), ("b", 1)]
    circles = {e[0].text: e for e in ET.fromstring(svg)}
    assert circles["two · a"].get("class") == "dot g1"
    assert circles["one · b"].get("class") == "dot g2"
    wide = float(circles["two · a"].get("cx") or 0) - float(circles["one · b"].get("cx") or 0)
    high = float(circles["two · a"].get("cy") or 0) - float(circles["one · b"].get("cy") or 0)
    assert wide == pytest.approx(2 * high, abs=0.2)


def test_an_item_has_the_colour_of_its_rarest_common_label() -> None:
    labels = [["drama", "war"], ["drama"], ["drama", "odd"], ["war"], []]
    assert large_groups(labels, count=2) == ["war", "drama", "drama", "war", ""]


def test_the_layout_keeps_clusters_apart_and_takes_any_number() -> None:
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 20) * 10, 40, axis=0)
    places = layout(centres + generator.normal(size=(120, 20)))
    means = places.reshape(3, 40, 2).mean(axis=1)
    within = np.linalg.norm(places.reshape(3, 40, 2) - means[:, None], axis=2).mean()
    between = np.linalg.norm(means[0] - means[1])
    assert between > 2 * within
    for count in (0, 1, 2, 5):
        assert layout(centres[:count]).shape == (count, 2)


def test_the_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(rec.report.charts)
    assert result.attempted > 0
    assert result.failed == 0
