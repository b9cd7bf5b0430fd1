"""Asking the Hub: what fails in passing is tried again, and what fails for good says what to do."""

import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id


logger = logging.getLogger(__name__)

NUM_TRIES = 6
FIRST_WAIT_S = 1.0  # doubled after each try
MAX_WAIT_S = 30.0  # unless the Hub says how long
# Another writer was faster: 412 for a commit, 409 for a tag or a branch
CONFLICTS = (409, 412)
# Of httpx or httpx2, whichever huggingface_hub uses
HTTPError = HfHubHTTPError.__mro__[1]
# JSON: the client reads some answers before it looks at their status, and proxies fail in HTML.
# RuntimeError: uploads of large files wrap their errors in it; Xet knows no other
PASSING = (HTTPError, ConnectionError, TimeoutError, RuntimeError, json.JSONDecodeError)

T = TypeVar("T")


class PushFailed(ValueError):
    """The Hub could not be changed as asked; the message says why and what to do."""


class HubUnreachable(PushFailed):
    """The Hub does not answer, or not with what it should."""


def check_repo_id(repo_id: str, setting: str = "repo_id"):
    """Check the name of a repository, without asking the Hub.

    Args:
        setting: what gave it, in messages.

    Raises:
        PushFailed: if it cannot be a name, or is the path of a local folder. A name without a namespace may be that of
            a folder, as by default it is for a run that is pushed while it trains.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushFailed(
            f"{setting} must be NAME or NAMESPACE/NAME, got {repo_id}: choose another ({error})"
        ) from error
    if "/" in repo_id and Path(repo_id).is_dir():
        raise PushFailed(
            f"{setting} must be a name on the Hub, got {repo_id}, which is a local folder: choose another"
        )


def connect(token: str | None) -> HfApi:
    """The Hub of HF_ENDPOINT, asked with this token, or with the one of HF_TOKEN or of `hf auth login`.

    Raises:
        PushFailed: if there is none.
    """
    token = token or get_token()
    if token is None:
        raise PushFailed("token: there is none: log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(token=token)


def full_name(api: HfApi, repo_id: str) -> str:
    """NAMESPACE/NAME, where the namespace is the user if none is given."""
    check_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    return f"{ask(f'repo_id: {repo_id}', 'looking up who you are', api.whoami)['name']}/{repo_id}"


def ask(subject: str, what: str, action: Callable[[], T]) -> T:
    """What an action returns that asks the Hub, which is tried again where that may help.

    Args:
        subject: the setting that names what is asked about, such as "repo_id: me/model".
        what: what the action does, such as "tagging step-1000".
        action: finds out itself what is left to do, for a try that failed may have done it and lost the answer.

    Raises:
        PushFailed: if the Hub refuses.
        HubUnreachable: if all tries failed.
    """
    for num_tries in itertools.count(1):
        try:
            return action()
        except OfflineModeIsEnabled as error:
            raise PushFailed(f"{subject}: HF_HUB_OFFLINE forbids asking the Hub: unset it") from error
        except PASSING as error:
            cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
            if not isinstance(cause, PASSING):  # a file that cannot be read
                raise cause from None
            # The storage of large files refuses addresses that have expired (wrapped): a new try gets new ones
            if isinstance(error, HfHubHTTPError) and not _may_pass(error):
                raise PushFailed(f"{subject}: {_explain(error)}") from error
            reason = f"{type(cause).__name__}: {_first_line(cause)}"
            if num_tries == NUM_TRIES:
                raise HubUnreachable(
                    f"{subject}: {what} failed {num_tries} times, at last with {reason}: check the network, and start "
                    "the same command again, which goes on from here"
                ) from error
            wait = _wait_s(cause, num_tries)
            logger.warning(f"{what} failed ({reason}): try {num_tries + 1} of {NUM_TRIES} in {wait:.0f} s")
            time.sleep(wait)


def _may_pass(error: HfHubHTTPError) -> bool:
    status = error.response.status_code
    return status >= 500 or status in (408, 429, *CONFLICTS)


def _wait_s(error: Exception, num_tries: int) -> float:
    """Seconds until the next try: as the Hub says, or else twice as long each time."""
    if isinstance(error, HfHubHTTPError):
        headers = error.response.headers
        limit = parse_ratelimit_headers(headers)
        if limit is not None and limit.remaining == 0:
            return limit.reset_in_seconds
        if headers.get("Retry-After", "").isdigit():
            return int(headers["Retry-After"])
    return min(FIRST_WAIT_S * 2 ** (num_tries - 1), MAX_WAIT_S)


def _explain(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = f"(the Hub says {status}: {error.server_message or _first_line(error)})"
    if status == 401:
        return f"the token is not valid: log in again with `hf auth login`, or set HF_TOKEN to one that is {said}"
    if status == 403:
        return f"the token may not write there: give it that right, or choose another namespace {said}"
    if status == 404:
        return f"there is no such thing on the Hub, or the token may not see it: check the name {said}"
    return f"the Hub refuses: correct what it says {said}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
