"""Pushing small folders, and what a Hub holds afterwards."""

from hub_server import HubServer

from layerlock_hf.hub.pushing import Pushed, Revision, push_revisions


NAME = "tester/model"
RUN = "1a2b"


def push(*revisions: Revision, repo_id: str = NAME, run_id: str | None = RUN, replaces: bool = False) -> list[Pushed]:
    return push_revisions(revisions, repo_id, run_id=run_id, replaces=replaces)


def titles(hub: HubServer, branch: str = "main") -> list[str]:
    """Of the commits, oldest first."""
    return [commit.title for commit in reversed(hub.repositories[NAME].commit(branch).history())]


def files_of(revision: Revision) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in revision.folder.iterdir()}


def shown(hub: HubServer, branch: str = "main") -> dict[str, bytes]:
    """The files of a branch, but the one that the Hub adds to every repository."""
    files = dict(hub.repositories[NAME].commit(branch).files)
    del files[".gitattributes"]
    return files
