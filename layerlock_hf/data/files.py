"""Reading files, local or at a URL, with limits on time and size, and retries after temporary failures."""

import glob
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import fsspec
from transformers.utils import logging

from .clips import one_line


logger = logging.get_logger(__name__)

# Seconds without an answer, or without a byte more of it, until a request is given up
TIMEOUT = 30.0
# Bytes a second that a request must bring
SLOWEST = 2**20
NUM_ATTEMPTS = 5
# Seconds before the second attempt, give or take a half; doubled before each further one
FIRST_PAUSE = 1.0
# Bytes that are read at once: what a process has memory for
MAX_SIZE = 4 * 2**30
# Bytes of a request while an archive is indexed: a header, small members beside it and the header after them
INDEX_BLOCK = 2**14

# Answers of a server after which trying again may help, besides its own errors (5xx)
PASSING = {408, 425, 429}

# Filesystems of this and, never to be touched, of the processes it was forked from
_filesystems: dict[tuple[int, str], fsspec.AbstractFileSystem] = {}


class FileError(Exception):
    """A file cannot be read; the message gives the reason, in one line.

    Attributes:
        kind: a word or two by which reasons are counted.
    """

    kind = "unreadable"


class NetworkError(FileError):
    """A server does not answer as it should."""

    kind = "network"


class TooLarge(FileError):
    """The file is larger than a process has memory for."""

    kind = "too large"

    def __init__(self, size: int):
        super().__init__(f"too large: {size} bytes, more than {MAX_SIZE}")


class MissingFile(FileError):
    """There is no such file."""

    kind = "missing"


class ChangedFile(FileError):
    """A file is shorter than it was, or than it should be."""

    kind = "changed"


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as "https://host/a.mp4", rather than a path."""
    return re.match(r"[A-Za-z][\w+.-]*(::|://)", name) is not None


def suffix_of(name: str) -> str:
    """The suffix of a path or URL, in lower case: ".mp4"."""
    return Path(urlsplit(name).path if is_url(name) else name).suffix.lower()


def folder_of(name: str) -> str:
    """The folder that a file lies in; that of a URL ends in a slash."""
    return name.split("?")[0].rpartition("/")[0] + "/" if is_url(name) else os.path.dirname(name)


def join(folder: str, name: str) -> str:
    """The path or URL of a name in a list, which is relative to the folder of the list.

    A list on disk, the user's own, may name anything. One at a URL may only name files under its own folder.

    Raises:
        ValueError: if it names something else.
    """
    if not is_url(folder):
        return name if is_url(name) else str(Path(folder, name))
    parts = re.split(r"[/\\]", unquote(name))
    # "::" chains filesystems
    if ".." in parts or not parts[0] or "::" in name or is_url(unquote(name)):
        raise ValueError(
            f"{name!r} does not lie under {folder}: a list at a URL may only name files in its own folder"
        )
    return folder + (quote(name, safe="/%") if _is_http(folder) else name)


def expand(pattern: str) -> list[str]:
    """The names that a pattern matches: {a,b} and {00..99} as in bash, then * and the like.

    Raises:
        ValueError: if it matches nothing.
        FileError: if a server cannot be asked.
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces:
        words = braces[1].split(",")
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
        if numbers:
            words = [f"{n:0{len(numbers[1])}}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
        start, end = pattern[: braces.start()], pattern[braces.end() :]
        return [name for word in words for name in expand(f"{start}{word}{end}")]
    if not has_pattern(pattern):
        return [pattern]
    if is_url(pattern):
        names = _persist(lambda fs: [fs.unstrip_protocol(n) for n in fs.glob(pattern, **_strict(pattern))], pattern)
    else:
        names = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    names = sorted(name for name in names if not os.path.basename(name).startswith("."))  # as in bash
    if not names:
        raise ValueError(f"{pattern!r} matches no files")
    return names


def has_pattern(name: str) -> bool:
    """Whether `expand` has anything to do. A question mark in a URL begins its query."""
    return any(character in name for character in ("*[{" if is_url(name) else "*?[{"))


def walk(folder: str, is_deep: bool = True) -> list[str]:
    """The files of a folder, in order, without hidden ones; with `is_deep` also those of its subfolders.

    Raises:
        FileError: if they cannot be listed.
    """
    if not is_url(folder):
        found = sorted(_files_below(folder) if is_deep else Path(folder).iterdir())
        names = [str(file) for file in found if file.is_file() and not _is_hidden(str(file.relative_to(folder)))]
        return [name for name in names if _is_text(name)]
    limits = {} if is_deep else {"maxdepth": 1}
    base = folder.rstrip("/") + "/"
    names = _persist(
        lambda fs: [fs.unstrip_protocol(name) for name in fs.find(base, **limits, **_strict(folder))], folder
    )
    # As the filesystem spells it, such as "memory:///a/" for "memory://a/"
    root = filesystem(base).unstrip_protocol(fsspec.core.strip_protocol(base)).rstrip("/") + "/"
    relative = sorted({name.removeprefix(root) for name in names if name.startswith(root)} - {""})
    # Listings of web servers link to themselves in other orders ("?C=N;O=D"), and to other places
    return [root + name for name in relative if not _is_hidden(unquote(name)) and not re.search("[?#]|:/", name)]


def _files_below(folder: str) -> Iterator[Path]:
    """Also what lies in the folders that links lead to, as large sets are laid out, but in none of them twice."""
    root = os.path.realpath(folder)
    seen = {root}
    for parent, folders, names in os.walk(folder, followlinks=True):
        yield from map(Path(parent).joinpath, names)
        for name in sorted(folders):
            path = os.path.join(parent, name)
            target = os.path.realpath(path)
            # What a link finds within the root is found without it
            is_inside = os.path.islink(path) and Path(target).is_relative_to(root)
            if _is_hidden(name) or is_inside or target in seen:
                folders.remove(name)
            else:
                seen.add(target)


def _is_text(name: str) -> bool:
    """Whether a name can be written down. One that cannot costs its file, not the folder."""
    try:
        name.encode()
    except UnicodeEncodeError:
        logger.warning(f"skipped {name!r}, whose name is not valid UTF-8: rename it")
        return False
    return True


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _strict(url: str) -> dict:
    """What makes a listing fail where a part of it fails. Filesystems but fsspec's for HTTP do so by themselves."""
    return {"on_error": "raise"} if _is_http(url) else {}


def read(name: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or those from `start` to `end`.

    Raises:
        FileError: `MissingFile` if there is none, `ChangedFile` if it ends before `end`, else for another reason.
    """
    if end is not None and end - start > MAX_SIZE:
        raise TooLarge(end - start)
    if not is_url(name):
        return _read_local(name, start, end)
    if end is None and not _is_http(name):  # whose answers tell the size, see _check_answer
        start, end = 0, size_of(name)
        return read(name, start, end)
    timeout = TIMEOUT + (end - start if end is not None else MAX_SIZE) / SLOWEST

    def attempt(fs: fsspec.AbstractFileSystem) -> bytes:
        if fs.async_impl:
            return fs.cat_file(name, start, end, timeout=timeout)
        with fs.open(name, "rb", cache_type="none") as file:  # others would read ahead
            file.seek(start)
            return file.read(end - start)

    data = _persist(attempt, name)
    # A connection that breaks is an error, hence not this: the server takes the file to end here
    if end is not None and len(data) != end - start:
        raise ChangedFile(f"changed: ends after {start + len(data)} bytes, not {end}")
    return data


def size_of(name: str) -> int:
    """The number of bytes of a file.

    Raises:
        FileError: as `read`, or if a server does not give it.
    """
    if not is_url(name):
        return _local(lambda: os.stat(name).st_size)
    size = _persist(lambda fs: fs.size(name), name)
    if size is None:
        raise NetworkError("network: the server does not give the size of the file")
    return size


def open_file(name: str, block: int | None = None) -> io.BufferedIOBase | io.RawIOBase:
    """A file opened for random access.

    Args:
        name: path or URL.
        block: minimum size in bytes of a request for a part of a file at a URL; by default what is asked for.
    """
    if not is_url(name):
        _check_regular(name)
        return _local(lambda: open(name, "rb"))
    file = Ranges(name, size_of(name))
    return file if block is None else io.BufferedReader(file, block)


class Ranges(io.RawIOBase):
    """A file at a URL, of known size; every read is a request."""

    def __init__(self, url: str, size: int):
        self.url = url
        self.size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        end = min(self._position + len(buffer), self.size)
        if end <= self._position:
            return 0
        data = read(self.url, self._position, end)
        buffer[: len(data)] = data
        self._position = end
        return len(data)


def filesystem(url: str) -> fsspec.AbstractFileSystem:
    """The filesystem of a URL, one per process and host.

    fsspec clears its own cache of them in a forked process. Once they are collected there, the sockets of the parent
    are closed, which an event loop of both processes watches: the parent waits for answers in vain. Ours are kept.
    """
    try:
        if "::" in url:  # every link of the chain decides
            return fsspec.url_to_fs(url)[0]
        key = os.getpid(), "/".join(url.split("/", 3)[:3])
        if key not in _filesystems:
            options = {"get_client": _client} if _is_http(url) else {}
            # No lock, which a fork could find taken: of two that are made at once, the first is used
            _filesystems.setdefault(key, fsspec.url_to_fs(url, skip_instance_cache=True, **options)[0])
        return _filesystems[key]
    except (ImportError, ValueError) as error:  # of a package for the protocol; no such protocol
        raise FileError(f"cannot read {url.split(':')[0]}:// addresses: {one_line(error)}") from error


async def _client(loop, headers: dict | None = None, **settings):
    import aiohttp

    headers = {"Accept-Encoding": "identity", **(headers or {})}  # ranges and sizes are those of the file
    limits = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    settings = {"timeout": limits, **settings}
    return aiohttp.ClientSession(loop=loop, headers=headers, raise_for_status=_check_answer, **settings)


async def _check_answer(response):
    """Refuse an answer before its body is read. A listing may come without its size, and compressed."""
    has_content = response.method == "GET" and response.status in (200, 206)
    if not has_content:
        return
    is_whole, is_file = response.status == 200, response.content_type != "text/html"
    if is_whole and "Range" in response.request_info.headers:
        raise NetworkError("the server ignores byte ranges and sends whole files only: use one that supports them")
    if is_whole and is_file and response.content_length is None:
        raise NetworkError("network: the server does not give the size of the file")
    # Nobody knows how large it becomes
    if is_file and response.headers.get("Content-Encoding", "identity") != "identity":
        raise NetworkError("the server compresses the file in transit: use one that sends files as they are")
    if (response.content_length or 0) > MAX_SIZE:
        raise TooLarge(response.content_length)


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _persist(action: Callable[[fsspec.AbstractFileSystem], object], url: str):
    """The result of an action, tried again after failures that may pass."""
    for attempt in range(NUM_ATTEMPTS):
        try:
            return action(filesystem(url))
        except FileError:
            raise
        except Exception as error:  # every filesystem has its own
            failure, may_pass = _diagnose(error)
            if not may_pass or attempt == NUM_ATTEMPTS - 1:
                raise failure from error
        # Not the random numbers of the run, which would then depend on the weather
        time.sleep(FIRST_PAUSE * 2**attempt * random.SystemRandom().uniform(0.5, 1.5))


def _diagnose(error: Exception) -> tuple[FileError, bool]:
    """What an error means, and whether trying again may help."""
    # fsspec takes any failure to ask for a size for a missing file
    error = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    if isinstance(error, FileError):
        return error, False
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingFile("no such file"), False
    if isinstance(error, PermissionError) or status in (401, 403):
        return FileError(f"no access: {one_line(error)}"), False
    if status == 416:
        return ChangedFile("changed: ends before the part that is asked for"), False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:  # of Python 3.10 too
        return NetworkError("network: no answer in time"), True
    if isinstance(error, (ValueError, TypeError, AttributeError, LookupError, NotImplementedError)):
        return FileError(f"cannot be read: {type(error).__name__}: {one_line(error)}"), False
    may_pass = status in PASSING or status >= 500 if isinstance(status, int) else True
    return NetworkError(f"network: {type(error).__name__}: {one_line(error)}"), may_pass


def _read_local(path: str, start: int | None, end: int | None) -> bytes:
    _check_regular(path)

    def attempt() -> bytes:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Asked first: to read makes room for all that is asked for
            if end is not None and size < end:
                raise ChangedFile(f"changed: ends after {size} bytes, not {end}")
            file.seek(start or 0)
            return file.read(-1 if end is None else end - start)

    return _local(attempt)


def _check_regular(path: str):
    # Pipes and devices might never answer
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileError("not a regular file")


def _local(action: Callable):
    try:
        return action()
    except FileNotFoundError as error:
        raise MissingFile("no such file") from error
    except OSError as error:
        raise FileError(f"cannot be read: {one_line(error.strerror)}") from error
