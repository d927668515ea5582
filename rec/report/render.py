"""A report as one HTML file: no other file, no network, light and dark, wide and narrow."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from rec.report.charts import curve_svg, map_svg
from rec.report.contents import Item, Report, ResultTable, Value

_THUMBNAIL = 144  # pixels of the longer side; shown at half of it on a dense screen
MAX_BYTES = 5 << 20


def thumbnail(picture: bytes | None) -> str:
    """A small JPEG as a data URI; empty where there is no picture or it cannot be decoded."""
    if not picture:
        return ""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    scale = _THUMBNAIL / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 72])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class _Cell:
    """A figure as it is printed: text, interval, whether it is best, and where it lies."""

    text: str
    interval: str = ""
    best: bool = False
    left: float = 0.0  # of the interval, in % of the column's range
    width: float = 0.0
    at: float = 0.0  # of the value


def _text(value: float | None, rank: bool) -> str:
    if value is None:
        return "∞" if rank else "–"  # noqa: RUF001
    return f"{value:,.0f}" if rank else f"{value:.3f}"


def _cell(found: Value | None, table: ResultTable, column: str, top: float) -> _Cell:
    if found is None:
        return _Cell("")
    rank = column in table.lower_is_better
    text = _text(found.value, rank)
    if found.value is None or found.low is None or found.high is None:
        return _Cell(text, best=found.value is not None and found.value == table.best(column))

    def place(value: float) -> float:
        return round(100 * min(max(value / top, 0), 1), 1)

    return _Cell(
        text,
        f"{_text(found.low, rank)} … {_text(found.high, rank)}",
        found.value == table.best(column),
        place(found.low),
        max(1.0, place(found.high) - place(found.low)),
        place(found.value),
    )


def _cells(table: ResultTable) -> list[tuple[str, bool, list[_Cell]]]:
    top = {
        column: max(
            (v.high or v.value or 0.0 for r in table.rows if (v := r.values.get(column))), default=0
        )
        or 1.0
        for column in table.columns
    }
    return [
        (row.method, row.ours, [_cell(row.values.get(c), table, c, top[c]) for c in table.columns])
        for row in table.rows
    ]


def _shared(query: Item, neighbour: Item) -> tuple[list[str], list[str]]:
    """The neighbour's labels that the query has too, and the others."""
    own = set(query.labels)
    labels: Sequence[str] = list(dict.fromkeys(neighbour.labels))
    return [x for x in labels if x in own], [x for x in labels if x not in own]


def render(report: Report) -> str:
    """The whole page. Every text of `report` is escaped.

    Raises:
        ValueError: the page is over MAX_BYTES: there are too many points or neighbours.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rec.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawing, legend = map_svg(report.points) if report.points else ("", [])
    page = environment.get_template("report.html.j2").render(
        report=report,
        curves=[(c.name, Markup(curve_svg(c))) for c in report.curves if c.train or c.validation],
        tables=[(table, _cells(table)) for table in report.tables],
        map=Markup(drawing),
        legend=legend,
        thumbnail=thumbnail,
        shared=_shared,
    )
    size = len(page.encode())
    if size > MAX_BYTES:
        raise ValueError(f"report of {size} bytes, expected at most {MAX_BYTES}: show fewer items")
    return page
