"""What a search found, as pictures: a sheet of the windows in PNG, and a page of HTML that needs no other file."""

import base64
import html
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data import DECODE_TIMEOUT, DecodingError, Isolated, read_clip
from ..models.video_reading_pictures import pictures_in, read_picture
from ..utils.files import write_aside
from .search import Found, Hit


PNG, HTML = "search.png", "search.html"
NUM_SHOWN = 4  # frames of a window
TILE = (192, 108)  # pixels, width and height
MARGIN, LINE = 8, 24
RATE = 100  # ticks a second, at which the frames to show are looked up
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px sans-serif;margin:24px}} td{{padding:4px 12px 12px 0;vertical-align:top}}
img{{display:block;width:100%;max-width:{width}px}} .name{{overflow-wrap:anywhere}}</style></head>
<body><h1>{title}</h1><p>{summary}</p><table>
{rows}
</table></body></html>
"""
ROW = '<tr><td>{rank}</td><td>{score}</td><td class="name">{name}<br>{time}{picture}</td></tr>'


def write_sheets(found: Found, folder: Path) -> tuple[Path, Path]:
    """Write both to a folder; returns their paths.

    Raises:
        ValueError: if they cannot be written.
    """
    shown = [("query", found.query[0]), *((str(rank), hit) for rank, hit in enumerate(found.hits, start=1))]
    # What the query has lost, no record says
    strips = [strip_of(found.query[0], False), *(strip_of(hit, found.is_whole) for hit in found.hits)]
    sheet = sheet_of([title_of(rank, hit) for rank, hit in shown], strips)
    page = page_of(found, shown, strips)
    try:
        with write_aside(folder / PNG) as aside:
            sheet.save(aside, format="png")
        with write_aside(folder / HTML) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"output_dir: cannot write to {folder}: {reason}: free some space, or choose another folder"
        ) from error
    return folder / PNG, folder / HTML


def time_of(hit: Hit) -> str:
    """When the window is; without times, which of the frames it has."""
    if math.isnan(hit.start_seconds):
        return f"frames {hit.first_frame} to {hit.first_frame + hit.num_frames - 1}"
    return f"{clock(hit.start_seconds)} to {clock(hit.end_seconds)}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03.50"."""
    minutes, seconds = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:05.2f}" if hours else f"{minutes}:{seconds:05.2f}"


def title_of(rank: str, hit: Hit) -> str:
    score = "" if rank == "query" else f"   {hit.score:.3f}"
    return f"{rank}{score}   {Path(hit.video).name}   {time_of(hit)}"


def strip_of(hit: Hit, is_whole: bool) -> Image.Image:
    """Frames of a window side by side; grey where they cannot be read, as out of shards.

    Args:
        hit: the window.
        is_whole: whether all frames of its video are known to decode.
    """
    width, height = TILE
    strip = Image.new("RGB", (NUM_SHOWN * (width + MARGIN) - MARGIN, height), "#dddddd")
    try:
        frames, aspect = Isolated(_read, DECODE_TIMEOUT)(hit, is_whole)
    except DecodingError as error:
        ImageDraw.Draw(strip).text(
            (MARGIN, MARGIN), f"cannot be shown: {error}", "black", ImageFont.truetype(FONT, 12)
        )
        return strip
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame.transpose(1, 2, 0))
        scale = min(width / (picture.width * aspect), height / picture.height)
        size = max(1, round(picture.width * aspect * scale)), max(1, round(picture.height * scale))
        left = number * (width + MARGIN) + (width - size[0]) // 2
        strip.paste(picture.resize(size), (left, (height - size[1]) // 2))
    return strip


def _read(hit: Hit, is_whole: bool) -> tuple[list[np.ndarray], float]:
    """Frames of a window, evenly spread, and the width of a pixel over its height."""
    shares = [(number + 0.5) / NUM_SHOWN for number in range(NUM_SHOWN)]
    if os.path.isdir(hit.video):
        wanted = [hit.first_frame + int(share * hit.num_frames) for share in shares]
        return _pictures(hit.video, wanted, is_whole), 1.0
    begin = float(read_clip(hit.video, lambda length: [0]).timestamps[0])
    length = hit.end_seconds - hit.start_seconds
    wanted = [int((hit.start_seconds + share * length - begin) * RATE) for share in shares]
    clip = read_clip(hit.video, lambda length: [min(tick, length - 1) for tick in wanted], frame_rate=RATE)
    return list(clip.frames.contiguous().numpy()), clip.pixel_aspect


def _pictures(folder: str, wanted: list[int], is_whole: bool) -> list[np.ndarray]:
    """Those with these numbers, which ascend, among the ones that decode: so windows count them."""
    found, number = {}, 0
    for path in pictures_in(folder):
        if number in wanted or not is_whole:
            try:
                picture = read_picture(path)
            except ValueError:  # `layerlock embed` has reported it
                continue
            if number in wanted:
                found[number] = picture.contiguous().numpy()
        if number == wanted[-1]:
            return [found[one] for one in wanted]
        number += 1
    raise DecodingError(f"the folder has {number} pictures that decode, fewer than it had")


def sheet_of(titles: Sequence[str], strips: Sequence[Image.Image]) -> Image.Image:
    font = ImageFont.truetype(FONT, 14)
    width, row = strips[0].width + 2 * MARGIN, LINE + TILE[1] + MARGIN
    sheet = Image.new("RGB", (width, len(strips) * row + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, strip) in enumerate(zip(titles, strips, strict=True)):
        top = MARGIN + number * row
        draw.text((MARGIN, top), shortened(title, font, strips[0].width), "black", font)
        sheet.paste(strip, (MARGIN, top + LINE))
    return sheet


def shortened(text: str, font, width: int) -> str:
    """The text, without its middle where it is too long."""
    cut = text
    while font.getlength(cut) > width:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        cut = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    return cut


def page_of(found: Found, shown: Sequence[tuple[str, Hit]], strips: Sequence[Image.Image]) -> str:
    rows = []
    for (rank, hit), strip in zip(shown, strips, strict=True):
        data = io.BytesIO()
        strip.save(data, format="jpeg", quality=85)
        picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
        score = "" if rank == "query" else f"{hit.score:.3f}"
        name, time = html.escape(hit.video), html.escape(time_of(hit))
        rows.append(ROW.format(rank=rank, score=score, name=name, time=time, picture=picture))
    title = html.escape(f"Windows like {found.query[0].video}")
    summary = f"{found.num_searched} windows, compared after {found.depth} layers by cosine similarity."
    summary += f" {html.escape(found.note)}." if found.note else ""
    return PAGE.format(title=title, summary=summary, width=strips[0].width, rows="\n".join(rows))
