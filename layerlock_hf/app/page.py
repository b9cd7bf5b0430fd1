"""The page: what is on it, and what happens when somebody does something there. What it shows is made in `views`."""

import base64
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..data import DecodingError
from ..data.indexes import VIDEO_SUFFIXES
from ..utils.packages import importing
from . import views
from .reading import BYTES_PER_MB, Reader, Taken, told
from .sheets import Sheet
from .subject import Subject


ENCODER = "encoder"
HOST, PORT = "127.0.0.1", 7860
WIDTH = 420  # pixels at least: two in a row on a desktop, one on a phone
KEPT_SECONDS = 3600  # that files of visitors and pictures stay on the disk
QUEUE = "models"  # visitors wait for each other: models and the process that decodes are there once
# Those of a clip, by their names on the page
PICTURES = {
    "clip": "The clip, moment by moment: click a patch",
    "alike": "What resembles that patch: black is unlike, yellow alike",
    "features": "Features after these layers, as colours",
    "seen": "What the encoder saw in training",
    "predicted": "What the model predicts from that",
}
START = "Drop a video to begin."
# Labels lie above pictures, not on them
CSS = """
#film video {max-width: 100%; max-height: 24rem; min-height: 8rem}
.picture [data-testid="block-label"] {position: static; width: 100%; border: 0}
"""


def load_gradio():
    """
    Raises:
        PackageUnusable: saying what to install.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    with importing("gradio", "the page", "app"):
        return importlib.import_module("gradio")


@dataclass(frozen=True)
class Visit:
    """What is kept of a visitor.

    Attributes:
        taken: the clips of the video by the models that take them, those of readouts by kind.
        token: the patch that was clicked, None before.
    """

    taken: Mapping[str, Taken]
    token: int | None = None

    @property
    def clip(self) -> torch.Tensor:
        """What the encoder takes, (1, T, 3, S, S)."""
        return self.taken[ENCODER].pixels


class Looking:
    """Answers what visitors do. It keeps nothing of them.

    Args:
        subject: what they try.
        max_mb, max_seconds: as of `Reader`.
    """

    def __init__(self, subject: Subject, max_mb: float, max_seconds: float):
        self.subject = subject
        processors = {kind: readout.processor for kind, readout in subject.readouts.items()}
        self.reader = Reader({ENCODER: subject.processor, **processors}, max_mb, max_seconds)

    def read(self, path: str | None) -> tuple[str, Visit | None]:
        """What to tell of a file, and its clips if it can be read."""
        if path is None:
            return START, None
        try:
            taken = self.reader(path)
        except DecodingError as error:
            return f"**{os.path.basename(path)} cannot be shown:** {error}", None
        return told(path, taken[ENCODER]), Visit(taken)

    def classes(self, visit: Visit | None) -> dict[str, float] | None:
        """The likeliest classes, None without such a readout."""
        kind = "classification"
        if visit is None or kind not in self.subject.readouts:
            return None
        return views.class_scores(self.subject.readouts[kind], visit.taken[kind].pixels)

    def film(self, visit: Visit | None) -> str:
        """HTML with the film of depth: in the page itself, so that no file of a visitor lies where others could ask
        for it."""
        if visit is None or "depth" not in self.subject.readouts:
            return ""
        film = base64.b64encode(views.depth_film(self.subject.readouts["depth"], visit.taken["depth"])).decode()
        return f'<video controls autoplay loop muted playsinline src="data:video/mp4;base64,{film}"></video>'

    def pictures(self, visit: Visit | None, place: int, depth: int) -> list:
        """The clip, what resembles the patch that was clicked, the features, what the encoder saw, and what is
        predicted: (H, W, 3), or None where there is nothing to show."""
        if visit is None:
            return [None] * len(PICTURES)
        model, kept = self.subject.model(place), self.subject.kept[place]
        sheet = self._sheet(visit, place)
        tokens, reference = views.tap(model.base_model, visit.clip, depth)
        token = sheet.middle if visit.token is None else visit.token
        pictures = (
            sheet.of_frames(visit.clip[0]),
            views.likeness_picture(sheet, visit.clip[0], views.likeness(tokens, token), token),
            sheet.of_tokens(views.feature_colours(tokens, reference)),
            views.seen_picture(sheet, model, visit.clip, kept),
            views.reconstruction_picture(sheet, model, visit.clip, kept),
        )
        return [None if one is None else one.permute(1, 2, 0).numpy() for one in pictures]

    def clicked(self, visit: Visit | None, place: int, x: int, y: int) -> Visit | None:
        """The same visit, with the patch at a pixel of the pictures; None if the server has started anew since."""
        if visit is None:
            return None
        token = self._sheet(visit, place).token_at(x, y)
        return visit if token is None else replace(visit, token=token)

    def why_no_reconstruction(self, place: int) -> str:
        """Why there is no reconstruction of this model, empty if there is one."""
        kept = self.subject.kept
        if kept[place].objective is not None:
            return ""
        why = "No reconstruction: the last steps of this model did not predict pixels."
        able = [number for number, one in enumerate(kept) if one.objective is not None]
        return f"{why} Move the slider to model {able[-1]} ({kept[able[-1]].name})." if able else why

    def _sheet(self, visit: Visit, place: int) -> Sheet:
        return Sheet(self.subject.model(place).base_model.grid_size(visit.clip))


def build_page(subject: Subject, title: str, max_mb: float, max_seconds: float):
    """The page as a `gradio.Blocks`, to be given to `serve`.

    Args:
        subject: what people can try.
        title: of the page.
        max_mb, max_seconds: as of `Reader`.

    Raises:
        PackageUnusable: without Gradio.
    """
    gr = load_gradio()
    looking = Looking(subject, max_mb, max_seconds)
    last = len(subject.kept) - 1
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        visit = gr.State(None)
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column():
                file = gr.File(
                    label=f"Video, at most {max_mb:g} MB, of which the first {max_seconds:g} s are read",
                    file_types=sorted(VIDEO_SUFFIXES),
                    height=140,
                    elem_id="file",
                )
                line = gr.Markdown(START, elem_id="told")
            with gr.Column():
                place = gr.Slider(0, max(1, last), last, step=1, label="Model", visible=last > 0, elem_id="model")
                name = gr.Markdown(subject.kept[last].name)
                depth = gr.Slider(
                    1, subject.num_layers, subject.num_layers, step=1, label="Layers passed", elem_id="depth"
                )
        with gr.Row():
            pictures = [_picture(gr, label, name) for name, label in PICTURES.items()]
        why = gr.Markdown()
        with gr.Row():
            classes = gr.Label(label="Classes", visible=False, min_width=WIDTH)
            film = gr.HTML(min_width=WIDTH, elem_id="film")

        def look(visit, place, depth):
            why = looking.why_no_reconstruction(place) if visit else ""
            pictures = looking.pictures(visit, place, depth)
            return subject.kept[place].name, why, *(gr.Image(one, visible=one is not None) for one in pictures)

        def read(path, place, depth):
            line, visit = looking.read(path)
            scores = looking.classes(visit)
            scores = gr.Label(scores, visible=scores is not None)
            return line, visit, scores, looking.film(visit), *look(visit, place, depth)

        def click(visit, place, depth, event: gr.SelectData):
            visit = looking.clicked(visit, place, *event.index)
            return visit, *look(visit, place, depth)

        shown = [name, why, *pictures]
        settings = {"concurrency_id": QUEUE, "concurrency_limit": 1, "show_progress": "minimal"}
        file.change(read, [file, place, depth], [line, visit, classes, film, *shown], api_name="read", **settings)
        settings["api_visibility"] = "private"
        for slider in (place, depth):
            # While it is dragged, only where it is last counts
            slider.change(look, [visit, place, depth], shown, trigger_mode="always_last", **settings)
        for picture in pictures:
            picture.select(click, [visit, place, depth], [visit, *shown], **settings)
    return page


def _picture(gr, label: str, name: str):
    """A picture that can be clicked, and is there once there is something to show."""
    settings = {"format": "png", "interactive": False, "visible": False, "buttons": [], "min_width": WIDTH}
    return gr.Image(label=label, elem_id=name, elem_classes="picture", **settings)


def serve(page, max_mb: float, host: str = HOST, port: int = PORT):
    """Serve a page until Ctrl-C.

    Args:
        page: of `build_page`.
        max_mb: of an upload.
        host: that it listens at, "0.0.0.0" for all networks of this machine.
        port: likewise.

    Raises:
        ValueError: if the port is taken, or the host is none of this machine's.
    """
    gr = load_gradio()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            max_file_size=int(max_mb * BYTES_PER_MB),
            # Fonts of the visitor's system: none is fetched
            theme=gr.themes.Default(
                primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
            ),
            css=CSS,
            footer_links=[],
            quiet=True,  # it would advise to share the page
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(
            f"host must be an address of this machine whose port {port} is free, got {host}: choose another --host or "
            "--port"
        ) from error
    print(f"The page is at {page.local_url}. Ctrl-C ends it", flush=True)
    page.block_thread()
