"""Reading at URLs: what is tried again, what is not, and what is never read."""

import gc
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from layerlock_hf.data import files
from layerlock_hf.data.files import ChangedFile, FileError, MissingFile


DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(files, "TIMEOUT", 1.0)
    monkeypatch.setattr(files, "SLOWEST", 2**40)


@pytest.fixture
def site(website):
    (website.root / "a.mp4").write_bytes(DATA)
    return website


def test_a_part_is_one_request_for_no_more(site):
    assert files.read(f"{site.url}/a.mp4", 100, 300) == DATA[100:300]
    assert site.requests == [("GET", "/a.mp4", "bytes=100-299")]
    assert files.read(f"{site.url}/a.mp4") == DATA
    assert len(site.requests) == 2


@pytest.mark.parametrize("limits", [(), (100, 3000)])
@pytest.mark.parametrize("faults", [[503, 500, 429, 408], ["cut"], ["cut", 502]])
def test_failures_that_may_pass_are_tried_again(site, faults, limits):
    site.faults = list(faults)
    assert files.read(f"{site.url}/a.mp4", *limits) == (DATA[slice(*limits)] if limits else DATA)
    assert len(site.requests) == len(faults) + 1


@pytest.mark.parametrize("fault, message", [(503, "network: .*503"), ("cut", "network: ClientPayloadError")])
def test_attempts_end(site, fault, message):
    site.faults = [fault] * 99
    with pytest.raises(FileError, match=message):
        files.read(f"{site.url}/a.mp4", 0, 100)
    assert len(site.requests) == files.NUM_ATTEMPTS


@pytest.mark.parametrize("fault, message", [(404, "^no such file"), (403, "^no access.*403"), (400, "network: .*400")])
def test_failures_that_stay_are_told_at_once(site, fault, message):
    site.faults = [fault]
    with pytest.raises(FileError, match=message):
        files.read(f"{site.url}/a.mp4")
    assert len(site.requests) == 1


@pytest.mark.parametrize("limits", [(), (0, 100)])
def test_a_server_that_hangs_is_given_up(site, monkeypatch, limits):
    monkeypatch.setattr(files, "NUM_ATTEMPTS", 2)
    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    site.faults = ["hang"] * 2
    begin = time.monotonic()
    with pytest.raises(FileError, match="network: no answer in time"):
        files.read(f"{site.url}/a.mp4", *limits)
    assert time.monotonic() - begin < 3
    assert len(site.requests) == 2


def test_a_server_that_is_away(site, monkeypatch):
    monkeypatch.setattr(files, "NUM_ATTEMPTS", 2)
    with pytest.raises(FileError, match="network: ClientConnectorError"):
        files.read("http://127.0.0.1:9/a.mp4", 0, 100)
    with pytest.raises(FileError, match="network: ClientConnectorError"):  # fsspec calls it a missing file
        files.size_of("http://127.0.0.1:9/a.mp4")
    with pytest.raises(FileError, match="network: ClientConnectorError"):  # fsspec calls it an empty folder
        files.walk("http://127.0.0.1:9/folder")


def test_a_server_without_ranges_is_refused_before_its_whole_file_comes(site):
    site.has_ranges = False
    with pytest.raises(FileError, match="ignores byte ranges"):
        files.read(f"{site.url}/a.mp4", 100, 300)
    assert len(site.requests) == 1
    assert files.read(f"{site.url}/a.mp4") == DATA


def test_a_file_that_has_become_shorter(site, tmp_path):
    (tmp_path / "a.mp4").write_bytes(DATA)
    fsspec.filesystem("memory").pipe("/short/a.mp4", DATA)
    for name in (f"{site.url}/a.mp4", str(tmp_path / "a.mp4"), "memory://short/a.mp4"):
        for start in (0, len(DATA)):
            with pytest.raises(ChangedFile, match="^changed: ends"):
                files.read(name, start, len(DATA) + 10)
    assert len(site.requests) == 2  # trying again would not help


def test_a_file_too_large_for_memory_is_not_read(site, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(DATA)
    fsspec.filesystem("memory").pipe("/large/a.mp4", DATA)
    monkeypatch.setattr(files, "MAX_SIZE", 1000)
    for name in (f"{site.url}/a.mp4", "memory://large/a.mp4"):
        with pytest.raises(FileError, match=f"too large: {len(DATA)} bytes, more than 1000"):
            files.read(name)
    with pytest.raises(FileError, match="too large"):
        files.read(str(tmp_path / "a.mp4"), 0, 1001)


@pytest.mark.parametrize("limits", [(), (100, 3000)])
def test_what_a_server_compresses_is_not_unpacked(site, limits):
    """A few of its bytes may become any number."""
    site.encoding = "gzip"
    with pytest.raises(FileError, match="compresses the file"):
        files.read(f"{site.url}/a.mp4", *limits)


def test_other_filesystems(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("b.mp4", "sub/a.mp4", ".hidden", "sub/.hidden/c.mp4"):
        memory.pipe(f"/other/{name}", DATA)
    assert files.walk("memory://other") == ["memory:///other/b.mp4", "memory:///other/sub/a.mp4"]
    assert files.walk("memory://other/", is_deep=False) == ["memory:///other/b.mp4"]
    assert files.expand("memory://other/*.mp4") == ["memory:///other/b.mp4"]
    assert files.read("memory://other/b.mp4", 3, 9) == DATA[3:9]
    assert files.read("memory://other/b.mp4") == DATA
    assert files.size_of("memory://other/b.mp4") == len(DATA)
    with pytest.raises(MissingFile):
        files.read("memory://other/c.mp4", 3, 9)
    with pytest.raises(FileError, match="cannot read nonsense:// addresses: .*nonsense"):
        files.read("nonsense://other/c.mp4")


def test_local_files(tmp_path):
    with pytest.raises(MissingFile):
        files.read(str(tmp_path / "a.mp4"), 0, 10)
    with pytest.raises(FileError, match="not a regular file"):
        files.read(str(tmp_path))


def test_a_local_folder_is_walked_through_links_but_never_twice(tmp_path):
    for name in ("root/b/x.mp4", "root/a.mp4", "root/.hidden/y.mp4", "disk/z.mp4", "disk/deep/z.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    links = {"a": root / "b", "b/loop": root, "c": tmp_path / "disk", "d": tmp_path / "disk", "e.mp4": root / "a.mp4"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "lost").symlink_to(tmp_path / "nowhere")
    found = [os.path.relpath(name, root) for name in files.walk(str(root))]
    assert found == ["a.mp4", "b/x.mp4", "c/deep/z.mp4", "c/z.mp4", "e.mp4"]


def test_listings(site):
    (site.root / "sub").mkdir()
    (site.root / "sub" / "b c.mp4").write_bytes(DATA)
    (site.root / ".hidden.mp4").write_bytes(DATA)
    names = files.walk(site.url)
    assert names == [f"{site.url}/a.mp4", f"{site.url}/sub/b%20c.mp4"]
    assert [files.read(name) for name in names] == [DATA, DATA]
    assert files.walk(f"{site.url}/", is_deep=False) == names[:1]
    assert files.expand(f"{site.url}/*.mp4") == names[:1]


def test_a_listing_that_fails_in_part_is_no_shorter_listing(site, monkeypatch):
    (site.root / "sub").mkdir()
    (site.root / "sub" / "b.mp4").write_bytes(DATA)
    monkeypatch.setattr(files, "NUM_ATTEMPTS", 1)
    site.faults = [None, 503]
    with pytest.raises(FileError, match="503"):
        files.walk(site.url)


def test_a_listing_may_not_lead_elsewhere(site):
    links = ["../secret.mp4", "/secret.mp4", "http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "?C=N;O=D", "good.mp4"]
    (site.root / "sub").mkdir()
    (site.root / "sub" / "index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links))
    assert files.walk(f"{site.url}/sub") == [f"{site.url}/sub/good.mp4"]


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("s3://b/{08..11}.tar", ["s3://b/08.tar", "s3://b/09.tar", "s3://b/10.tar", "s3://b/11.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("https://h/a.tar?x=1", ["https://h/a.tar?x=1"]),
        ("plain", ["plain"]),
    ],
)
def test_patterns(pattern, names):
    assert files.expand(pattern) == names


def test_local_patterns(tmp_path):
    for name in ("b.tar", "a.tar", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    assert files.expand(f"{tmp_path}/*.tar") == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with pytest.raises(ValueError, match="matches no files"):
        files.expand(f"{tmp_path}/*.zip")


ESCAPES = [
    *("../a.mp4", "sub/../../a.mp4", "%2e%2e/a.mp4", "..\\a.mp4", "/a.mp4", "/etc/passwd", "//other/a.mp4", ""),
    *("http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "file%3A///etc/passwd", "x::file:///etc/passwd", "x::memory"),
]


@pytest.mark.parametrize("folder", ["https://host/list/", "s3://bucket/list/"])
@pytest.mark.parametrize("name", ESCAPES)
def test_a_list_at_a_url_names_what_lies_beside_it_alone(folder, name):
    with pytest.raises(ValueError, match="does not lie under"):
        files.join(folder, name)


def test_names_in_lists():
    assert files.join("https://host/list/", "sub/a b#1.mp4") == "https://host/list/sub/a%20b%231.mp4"
    assert files.join("s3://bucket/", "a b#1.mp4") == "s3://bucket/a b#1.mp4"
    assert files.join("/list", "../a.mp4") == "/list/../a.mp4"
    assert files.join("/list", "https://host/a.mp4") == "https://host/a.mp4"
    assert files.folder_of("https://host/list/a.csv?token=/x") == "https://host/list/"
    assert [files.is_url(name) for name in ("a:b.mp4", "/a://b", "s3://b/a", "C:\\a.mp4")] == [
        False,
        False,
        True,
        False,
    ]


def test_many_threads_share_a_filesystem(site):
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda i: files.read(f"{site.url}/a.mp4", i, i + 100), range(200)))
    assert parts == [DATA[i : i + 100] for i in range(200)]


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_forked_process_reads_beside_its_parent(site, is_busy):
    """Without and with requests of the parent under way: neither waits in vain for an answer."""
    read_part = lambda i: files.read(f"{site.url}/a.mp4", i, i + 100)  # noqa: E731
    parts = [DATA[i : i + 100] for i in range(20)]
    stop, busy_parts = threading.Event(), []

    def keep_reading():
        while not stop.is_set():
            busy_parts.append(read_part(5))

    def child(pipe):
        gc.collect()  # sooner or later it runs, and finds what fsspec forgets in a forked process
        with ThreadPoolExecutor(4) as pool:
            pipe.send(list(pool.map(read_part, range(20))))

    assert read_part(0) == parts[0]
    thread = threading.Thread(target=keep_reading)
    if is_busy:
        thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=child, args=(theirs,))
            process.start()
            assert ours.poll(10), "the child hangs"
            assert ours.recv() == parts
            process.join(10)
            assert process.exitcode == 0
            begin = time.monotonic()
            assert [read_part(i) for i in range(20)] == parts
            # Less than the limit of one request
            assert time.monotonic() - begin < 0.9
    finally:
        stop.set()
        if is_busy:
            thread.join(10)
    assert not thread.is_alive() and set(busy_parts) == ({parts[5]} if is_busy else set())
