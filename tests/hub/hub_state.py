"""What a Hub holds: repositories of models with their history, large files, collections. All in memory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field


USER = "tester"
ORGANIZATION = "org"  # where the user may write, too
TOKENS = {"write": "write", "read": "read"}  # -> what they allow
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".mp4", ".png")


class Refusal(Exception):
    """An answer that is an error. The client tells some apart by their code."""

    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


def is_lfs(path: str, data: bytes) -> bool:
    return path.endswith(LFS_SUFFIXES) and len(data) > 0


def oid(path: str, data: bytes) -> str:
    """What the Hub knows a file by: SHA-256 of large ones, git's own hash of others."""
    if is_lfs(path, data):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    id: str
    files: dict[str, bytes]
    title: str
    message: str
    parent: "Commit | None" = None

    def history(self) -> list["Commit"]:
        """Newest first."""
        commits = [self]
        while commits[-1].parent is not None:
            commits.append(commits[-1].parent)
        return commits


def make_commit(files: dict[str, bytes], title: str, message: str = "", parent: Commit | None = None) -> Commit:
    parts = [
        parent.id if parent else "",
        title,
        message,
        *(f"{path} {oid(path, files[path])}" for path in sorted(files)),
    ]
    return Commit(hashlib.sha1("\n".join(parts).encode()).hexdigest(), files, title, message, parent)


@dataclass
class Repository:
    name: str
    private: bool
    branches: dict[str, Commit]
    tags: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str = "main") -> Commit:
        return self.branches[branch]

    def find(self, revision: str) -> Commit:
        """What a branch, a tag or a commit's id stands for."""
        commits = {commit.id: commit for head in self.branches.values() for commit in head.history()}
        for names in (self.branches, self.tags, commits):
            if revision in names:
                return names[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def write(self, path: str, data: bytes, branch: str = "main", title: str = "by hand"):
        """What a user does on the website."""
        head = self.branches[branch]
        self.branches[branch] = make_commit({**head.files, path: data}, title, parent=head)


class Hub:
    """What the Hub holds.

    Attributes:
        url: its address.
        repositories: by their names.
        objects: the large files, by their SHA-256.
        collections: by their slugs, as the client gets them.
        before_commit: called with the repository before the next commit is made: a second writer.
    """

    def __init__(self, url: str):
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.before_commit: Callable[[Repository], object] | None = None

    def add_repository(self, name: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        head = make_commit({".gitattributes": attributes}, "initial commit")
        self.repositories[name] = Repository(name, private, {"main": head})
        for path, data in (files or {}).items():
            self.repositories[name].write(path, data)
        return self.repositories[name]
