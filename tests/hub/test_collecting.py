import pytest

from layerlock_hf.hub.client import PushFailed
from layerlock_hf.hub.collecting import update_collection


pytestmark = pytest.mark.usefixtures("waits")
ITEMS = [("tester/a", "pixels"), ("tester/b", "latents")]


@pytest.fixture(autouse=True)
def models(hub):
    for name in ("a", "b", "c"):
        hub.add_repository(f"tester/{name}")


def notes(hub) -> dict[str, str]:
    (collection,) = hub.collections.values()
    return {item["id"]: item["note"]["text"] for item in collection["items"]}


def test_a_new_collection(hub):
    url = update_collection("Demo runs", "tester", ITEMS)
    (slug,) = hub.collections
    assert url == f"{hub.url}/collections/{slug}"
    assert notes(hub) == dict(ITEMS) and not hub.collections[slug]["private"]


def test_an_update(hub):
    url = update_collection("Demo runs", "tester", ITEMS, private=True)
    assert update_collection("Demo runs", "tester", [("tester/b", "all targets"), ("tester/c", "frozen")]) == url
    assert notes(hub) == {"tester/a": "pixels", "tester/b": "all targets", "tester/c": "frozen"}
    (collection,) = hub.collections.values()
    assert collection["private"]


def test_nothing_new(hub):
    update_collection("Demo runs", "tester", ITEMS)
    hub.requests.clear()
    update_collection("Demo runs", "tester", iter(ITEMS))
    assert not hub.count("PATCH", "") and not hub.count("POST", "/items")


@pytest.mark.parametrize("fault", ["503", "cut", "lost answer"])
@pytest.mark.parametrize("path", ["/collections$", "/items$"])
def test_what_fails_in_passing(hub, path, fault):
    if fault == "503":
        hub.fail("POST", path, 503)
    else:
        hub.cut("POST", path, is_done=fault == "lost answer")
    update_collection("Demo runs", "tester", ITEMS)
    assert [each.times for each in hub.faults] == [0]
    assert notes(hub) == dict(ITEMS)


@pytest.mark.parametrize(
    "namespace, items, message",
    [
        ("other", ITEMS, "collection: other/Demo runs: the token may not write there: .*403"),
        (
            "tester",
            [("tester/nope", "x")],
            "collection: tester/Demo runs: there is no such thing .*Repository not found",
        ),
    ],
)
def test_refusals(hub, namespace, items, message):
    with pytest.raises(PushFailed, match=message):
        update_collection("Demo runs", namespace, items)
