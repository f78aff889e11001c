# SPDX-License-Identifier: Apache-2.0
"""The report of `blipstream filter`: one HTML file with counts, a histogram and examples as pictures."""

import html
import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from blipstream_client._client import Client
from blipstream_client._exceptions import BlipstreamError, InvalidImage
from blipstream_client._pictures import upright_picture
from blipstream_client._text import LONGEST_SENTENCE, excerpt
from blipstream_client.bulk.filter import BINS, DROPPED, KEPT, REPLACED, VERDICTS, FilterSummary
from blipstream_client.bulk.items import Item
from blipstream_client.bulk.rows import Row
from blipstream_client.bulk.sinks import replace
from blipstream_client.bulk.sources import Sources

TILE = 240  # pixels of a picture's longer side
QUALITY = 80  # of its JPEG
LONGEST_TEXT = 300  # characters
WIDTH, HEIGHT, MARGIN = 720, 200, 24  # of the histogram
FAILS = "#8c959f"  # a bar of texts that were dropped or replaced
COLORS = {KEPT: "#0072b2", REPLACED: "#56b4e9", DROPPED: "#d55e00"}  # of Okabe and Ito: all can tell them apart
HEADINGS = {
    KEPT: "Kept, with the lowest match",
    DROPPED: "Dropped, with the highest match",
    REPLACED: "Replaced, with the lowest match of the new caption",
}
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; color: #24292f; background: white; max-width: 1100px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.4em; overflow-wrap: anywhere } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: 0.2em 1em 0.2em 0; text-align: right }
td:first-child { text-align: left }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: #57606a }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(${tile}px, 1fr)); gap: 1.5em 1em }
figure { margin: 0; overflow-wrap: anywhere } img { max-width: 100%; display: block; margin-bottom: 0.4em }
figcaption { font-size: 0.9em } .name, .none, del { color: #57606a } .name, .none { font-size: 0.85em }
.swatch { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em }
</style>
<h1>$title</h1>
<p>$words</p>
<table>$counts</table>
<h2>Match of the texts</h2>
$histogram
$examples
</html>
""")


class Reader(Client):
    """Reads images, from files and URLs, too."""

    def picture(self, item: Item) -> str:
        """The image, small, as a data URL. Raises InvalidImage."""
        encoded = self._read(item.load(), self._deadline(None))
        try:
            picture = upright_picture(encoded)
            picture.thumbnail((TILE, TILE))
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=QUALITY)
        except Exception as exc:  # on bad data, PIL raises nearly every built-in type
            raise InvalidImage(f"Cannot draw the image: {excerpt(exc)}") from exc
        return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def write_report(
    path: Path, summary: FilterSummary, output: str, min_match: float, sources: Sources, reader: Reader
) -> None:
    """Write the report of a whole run. Raises OSError."""
    examples = {verdict: _sorted(summary, verdict) for verdict in VERDICTS}
    names = {row["name"] for rows in examples.values() for row in rows}
    pictures = dict(_pictures(sources, names, reader))
    page = PAGE.substitute(
        title=html.escape(output),
        words=f"A text is kept if its match, the probability that it belongs to its image, is at least {min_match:g}.",
        tile=TILE,
        counts=_counts(summary),
        histogram=_histogram(summary.histogram, min_match),
        examples="".join(_examples(verdict, examples[verdict], pictures) for verdict in HEADINGS),
    )
    replace(path, page.encode())


def _sorted(summary: FilterSummary, verdict: str) -> list[Row]:
    return [row for _, _, row in sorted(summary.examples[verdict], reverse=True)]


def _pictures(sources: Sources, names: set[str], reader: Reader) -> Iterator[tuple[str, str]]:
    """The names of images and their pictures, or why there is none."""
    for item in sources.find(names):
        try:
            yield item.name, f'<img src="{reader.picture(item)}" alt="">'
        except BlipstreamError as exc:
            yield item.name, f'<p class="none">{html.escape(excerpt(exc, LONGEST_SENTENCE))}</p>'


def _counts(summary: FilterSummary) -> str:
    rows = [(summary.verdicts[verdict], verdict, COLORS[verdict]) for verdict in VERDICTS]
    rows.append((summary.failures, "not judged, for an error", "transparent"))
    return "".join(
        f'<tr><td><span class="swatch" style="background: {color}"></span>{words}</td><td>{number:,}</td>'
        f"<td>{number / max(summary.rows, 1):.1%}</td></tr>"
        for number, words, color in rows
    )


def _histogram(counts: Sequence[int], min_match: float) -> str:
    """Bars over the match, from 0 to 1, and a line where the threshold is."""
    highest, step = max(*counts, 1), WIDTH / BINS
    bars = []
    for number, count in enumerate(counts):
        height = HEIGHT * count / highest
        color = FAILS if (number + 0.5) / BINS < min_match else COLORS[KEPT]
        span = f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count:,}"
        left, top = MARGIN + number * step + 1, MARGIN + HEIGHT - height
        bars.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{step - 2:.1f}" height="{height:.1f}" fill="{color}">'
            f"<title>{span}</title></rect>"
        )
        if count:
            bars.append(f'<text x="{left + step / 2 - 1:.1f}" y="{top - 4:.1f}" text-anchor="middle">{count:,}</text>')
    bottom = MARGIN + HEIGHT
    ticks = "".join(
        f'<text x="{MARGIN + at * WIDTH / 10:.1f}" y="{bottom + 16}" text-anchor="middle">{at / 10:g}</text>'
        for at in range(11)
    )
    at = MARGIN + min_match * WIDTH
    return (
        f'<svg viewBox="0 0 {WIDTH + 2 * MARGIN} {HEIGHT + 2 * MARGIN}" width="{WIDTH + 2 * MARGIN}" role="img">'
        f"{''.join(bars)}{ticks}"
        f'<line x1="{MARGIN}" x2="{MARGIN + WIDTH}" y1="{bottom}" y2="{bottom}" stroke="#8c959f"/>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{MARGIN}" y2="{bottom}" stroke="#24292f" stroke-dasharray="4"/></svg>'
    )


def _examples(verdict: str, rows: Sequence[Row], pictures: dict[str, str]) -> str:
    if not rows:
        return ""
    return f'<h2>{HEADINGS[verdict]}</h2><div class="examples">{"".join(_example(row, pictures) for row in rows)}</div>'


def _example(row: Row, pictures: dict[str, str]) -> str:
    texts = f"{row['match']:.3f} {_shown(row['text'])}"
    if row["verdict"] == REPLACED:
        texts = f"<del>{texts}</del><br>{row['caption_match']:.3f} {_shown(row['caption'])}"
    picture = pictures.get(row["name"], '<p class="none">The image is not there any more.</p>')
    return f'<figure>{picture}<figcaption>{texts}<div class="name">{_shown(row["name"])}</div></figcaption></figure>'


def _shown(text: str) -> str:
    return html.escape(excerpt(text, LONGEST_TEXT))
