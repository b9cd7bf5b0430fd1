"""The page, written to a file."""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..hub.words import public_name, public_text
from ..utils.files import write_aside
from ..utils.outputs import check_output
from . import sections
from .features import feature_pictures
from .reconstructions import reconstruction_pictures
from .recorded import Run


HERE = Path(__file__).parent
OUTPUT = "report.html"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: of its part in the template, and its anchor.
        title: in words.
        content: for the template, None if it cannot be made.
        missing: why not, a line.
    """

    key: str
    title: str
    content: dict | None = None
    missing: str = ""


# In the order of the page
SECTIONS: dict[str, tuple[str, Callable[[Run], dict]]] = {
    "overview": ("Overview", sections.overview),
    "health": ("Health", sections.health),
    "curves": ("Curves", sections.curves),
    "stages": ("Stages", sections.stages),
    "features": ("What the encoder sees", feature_pictures),
    "reconstructions": ("What the model predicts", reconstruction_pictures),
    "readouts": ("Readouts", sections.readouts),
    "cost": ("Cost against plan", sections.cost),
    "bad_videos": ("Bad videos", sections.bad_videos),
    "settings": ("How it was run", sections.settings),
}


def report(run: str | Path, output: str | Path | None = None, data: str | None = None) -> Path:
    """Write a page about a run: one HTML file that needs no server and no network, to be opened or sent.

    Examples:
        >>> report("runs/demo/layerlock", "layerlock.html")  # doctest: +SKIP

    It works while the run goes on, and with what the run has left: a section that cannot be made says why. Models are
    loaded on the CPU, one at a time. Paths of this machine are not told.

    Args:
        run: folder of a run of `pretrain`.
        output: the file to write, by default `report.html` in the folder of the run.
        data: videos for the pictures, as for `load_videos`, at least two; by default those that the run was trained
            on, if they are still there under the names that it has recorded.

    Returns:
        The file.

    Raises:
        ValueError: if the folder is none of a run, or the file cannot be written.
    """
    folder = Path(run).expanduser()
    found = Run(folder, data)
    path = folder / OUTPUT if output is None else Path(output).expanduser()
    if path.is_dir():
        raise ValueError(f"output must be a file, got the folder {path}: add a name, such as {path / OUTPUT}")
    if path.suffix.lower() not in (".html", ".htm"):  # else a slip would overwrite a file of the run
        raise ValueError(f"output must end in .html, got {path}: call it {path.stem}.html")
    check_output(path.parent, [path.name], "output")
    page = render([_section(key, *entry, found) for key, entry in SECTIONS.items()], found.name)
    with write_aside(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _section(key: str, title: str, make: Callable[[Run], dict], run: Run) -> Section:
    try:
        return Section(key, title, make(run))
    except ValueError as error:
        return Section(key, title, missing=_told(str(error), run))
    except Exception as error:  # whatever a damaged or foreign file does to one section, the others are shown
        return Section(key, title, missing=_told(f"it could not be made ({type(error).__name__}: {error})", run))


def _told(text: str, run: Run) -> str:
    """In a line, and without the folders of this machine."""
    places = {str(run.folder.resolve()): run.name, str(run.folder): run.name}
    if run.data is not None:
        places[run.data] = public_name(run.data)
    for place, name in places.items():  # first as a whole: they may have spaces
        text = text.replace(place, name)
    return public_text(" ".join(text.split()))


def render(parts: list[Section], name: str) -> str:
    """The text of the page.

    Args:
        parts: of which the first is the head.
        name: of the run.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,  # names of files and settings are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        head=parts[0],
        parts=parts[1:],
        name=name,
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        style=Markup(style),
        script=Markup(script),
        # The browser runs these two and nothing else, should something slip through the escaping
        allowed_style=_digest(style),
        allowed_script=_digest(script),
    )


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
