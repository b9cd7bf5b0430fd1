"""Names that users give, of local folders or on the Hub, and whether the Hub can be reached."""

import os
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled


TIMEOUT_S = 5.0  # of one try. The Hub's own functions try for half a minute, and then for other files again


def check_checkpoint(name: str | os.PathLike) -> str:
    """The folder, with `~` resolved, or the id on the Hub that a user means.

    Raises:
        ValueError: if a local folder is meant that does not exist or holds no model, or if the Hub has to be asked and
            does not answer.
    """
    if not str(name).strip():
        raise ValueError("the name must be a folder or an id on the Hub, got nothing")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} holds no model: it has no config.json")
        return str(path)
    if path.exists():
        raise ValueError(f"{name} is a file: give the folder that it lies in")
    parts = Path(name).parts
    # The Hub has ORGANISATION/NAME, and a few names alone
    is_relative = len(parts) == 2 and Path(parts[0]).is_dir()
    if is_relative or len(parts) > 2 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"there is no folder {name}")
    if not isinstance(try_to_load_from_cache(str(name), "config.json"), str):
        check_hub(f"there is no folder {name}")
    return str(name)


def check_hub(why: str):
    """Raise a `ValueError` unless the Hub answers.

    Args:
        why: why it has to be asked, as the beginning of the message, such as "there is no folder a/b".
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except OfflineModeIsEnabled:
        raise ValueError(f"{why}, and HF_HUB_OFFLINE forbids asking the Hub: unset it") from None
    except Exception as error:  # whatever the library for HTTP is
        raise ValueError(f"{why}, and the Hub does not answer: check the name and the network ({error})") from error
