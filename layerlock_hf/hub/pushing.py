"""Finished folders become revisions of a repository on the Hub, each of them complete and once."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_url
from huggingface_hub.hf_api import GitCommitInfo
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from .client import PushFailed, ask, check_repo_id, connect, full_name


logger = logging.getLogger(__name__)

# Its history is that of the run, so that `main` never shows half-trained weights. Tags name its commits
STAGES_BRANCH = "stages"
# What an earlier push left in the repository is deleted if the folder has it no longer. All else is the user's
OURS = ("model*.safetensors*", "*.py", "stages.json", "settings.json", "results.json")
USERS = ("handler.py",)  # the name that Inference Endpoints give to a user's own code
# A line of the commit's description, by which a push that was interrupted finds what it has done
CONTENT = re.compile(r"^content: sha256:([0-9a-f]{64})$", re.MULTILINE)

T = TypeVar("T")


@dataclass(frozen=True)
class Revision:
    """A complete repository as a flat folder, which becomes a commit.

    Attributes:
        title: first line of the commit's message.
        tag: name of the revision; None for what `main` shows.
    """

    folder: Path
    title: str
    tag: str | None = None


@dataclass(frozen=True)
class Pushed:
    """Where a revision is on the Hub, and whether it was there already."""

    revision: Revision
    commit_id: str
    was_there: bool


def push_revisions(
    revisions: Iterable[Revision],
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    run_id: str | None = None,
    replaces: bool = False,
) -> list[Pushed]:
    """Make every revision a commit, with its tag if it has one: the tagged ones, in order, on the branch `stages`.

    What is there already is left as it is: started again after it was killed, a push goes on where it was. Files that
    the user has added stay.

    Args:
        repo_id: NAME or NAMESPACE/NAME.
        private: whether a new repository is; None for what the namespace has as its default.
        token: of the Hub; None for that of HF_TOKEN or `hf auth login`.
        run_id: of the run that the folders come from, as their `settings.json` has it; None if from none. The
            repository must hold no other.
        replaces: whether it may.

    Raises:
        PushFailed: if a folder is empty, the repository holds something else, or the Hub refuses or does not answer.
    """
    check_repo_id(repo_id)
    revisions = list(revisions)
    digests = [digest_of(find_files(revision.folder)) for revision in revisions]
    api = connect(token)
    repository = Repository(api, full_name(api, repo_id), run_id, replaces)
    repository.open(private, has_stages=any(revision.tag is not None for revision in revisions))
    return [repository.push(revision, digest) for revision, digest in zip(revisions, digests, strict=True)]


def push_file(repo_id: str, path_in_repo: str, content: bytes, title: str, token: str | None = None) -> str:
    """Make a file of `main` a commit of its own, unless it is there with these bytes.

    Returns:
        The id of the newest commit.

    Raises:
        PushFailed: if the Hub refuses or does not answer.
    """
    api = connect(token)
    repo_id = full_name(api, repo_id)

    def commit() -> str:
        # Without bytes that are new to the Hub, the client makes no commit
        operation = CommitOperationAdd(path_in_repo, content)
        return api.create_commit(repo_id, [operation], commit_message=title).oid

    return ask(f"repo_id: {repo_id}", f"pushing {path_in_repo}", commit)


def find_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths in the repository.

    Raises:
        PushFailed: if there are none.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not paths:
        raise PushFailed(f"folder must hold a model, got {folder} with no files in it: export the model first")
    return paths


def digest_of(files: dict[str, Path]) -> str:
    """SHA-256 of the names and the contents of files."""
    total = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            content = hashlib.sha256()
            while block := file.read(2**20):
                content.update(block)
        total.update(f"{content.hexdigest()}  {name}\n".encode())
    return total.hexdigest()


def find_commit(commits: list[GitCommitInfo], digest: str, tag: str | None) -> str | None:
    """The commit that an earlier push made of this content. On `main` the newest push counts: users get that one."""
    contents = [(commit.commit_id, CONTENT.search(commit.message)) for commit in commits]
    ours = [(commit_id, match[1]) for commit_id, match in contents if match]
    return next((commit_id for commit_id, known in (ours if tag else ours[:1]) if known == digest), None)


def create_repository(api: HfApi, repo_id: str, private: bool | None = None):
    """Make a repository of models, unless it is there.

    Raises:
        PushFailed: if the Hub refuses or does not answer, or it is there and public but should be private.
    """
    subject = f"repo_id: {repo_id}"
    ask(subject, "creating it", lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    # The Hub says nothing if it exists and is public
    if private and not ask(subject, "looking it up", lambda: api.model_info(repo_id)).private:
        raise PushFailed(
            f"private: {repo_id} exists and is public: make it private in its settings on the Hub, or choose another "
            "name"
        )


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, for one run."""

    api: HfApi
    repo_id: str
    run_id: str | None
    replaces: bool

    def ask(self, what: str, action: Callable[[], T]) -> T:
        return ask(f"repo_id: {self.repo_id}", what, action)

    def open(self, private: bool | None, has_stages: bool):
        """Make sure that the repository is there, that it is ours, and that it has the branch of stages if needed."""
        create_repository(self.api, self.repo_id, private)
        self.ask("looking what it holds", self._check_run)
        if has_stages:
            self.ask(f"creating the branch {STAGES_BRANCH}", self._create_branch)

    def push(self, revision: Revision, digest: str) -> Pushed:
        branch = STAGES_BRANCH if revision.tag else "main"
        found = self.ask(f"reading {branch}", lambda: find_commit(self._commits(branch), digest, revision.tag))
        commit_id = found or self.ask(f"pushing {revision.title}", lambda: self._commit(revision, branch, digest))
        if revision.tag:
            self.ask(f"tagging {revision.tag}", lambda: self._tag(revision.tag, commit_id))
        logger.info(f"{revision.title}: {'was already' if found else 'is now'} {commit_id} of {self.repo_id}")
        return Pushed(revision, commit_id, was_there=found is not None)

    def _commits(self, branch: str) -> list[GitCommitInfo]:
        """Newest first."""
        return self.api.list_repo_commits(self.repo_id, revision=branch)

    def _commit(self, revision: Revision, branch: str, digest: str) -> str:
        commits = self._commits(branch)
        done = find_commit(commits, digest, revision.tag)
        if done is not None:  # by an earlier try, whose answer was lost
            return done
        self._check_run()  # again: the head may be another writer's by now
        head = commits[0].commit_id
        files = find_files(revision.folder)
        names = self.api.list_repo_files(self.repo_id, revision=head)
        stale = [name for name in names if name not in files and is_ours(name)]
        operations = [
            *(CommitOperationAdd(name, files[name]) for name in files),
            *(CommitOperationDelete(name, is_folder=False) for name in stale),
        ]
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=revision.title,
            commit_description=f"content: sha256:{digest}",
            revision=branch,
            parent_commit=head,  # so that nothing comes in between unnoticed
        ).oid

    def _create_branch(self):
        if STAGES_BRANCH not in [branch.name for branch in self.api.list_repo_refs(self.repo_id).branches]:
            first = self._commits("main")[-1].commit_id
            self.api.create_branch(self.repo_id, branch=STAGES_BRANCH, revision=first)

    def _tag(self, tag: str, commit_id: str):
        targets = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).tags}
        if targets.get(tag) == commit_id:
            return
        if tag in targets:
            self.api.delete_tag(self.repo_id, tag=tag)
        self.api.create_tag(self.repo_id, tag=tag, revision=commit_id)

    def _check_run(self):
        """Make sure that the repository holds no model yet, or one of our run, unless it may be replaced.

        Raises:
            PushFailed: if it does not.
        """
        if self.replaces:
            return
        heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).branches}
        for branch in ("main", STAGES_BRANCH):  # `main` holds none before all stages are pushed
            names = self.api.list_repo_files(self.repo_id, revision=heads[branch]) if branch in heads else []
            run_id = self._read_run_id(heads[branch]) if "settings.json" in names else None
            if run_id is None and "config.json" not in names:
                continue
            # Models of no run are told apart by who pushed them: an earlier push of ours, or somebody else
            is_known = run_id is not None or any(CONTENT.search(commit.message) for commit in self._commits(branch))
            if run_id != self.run_id or not is_known:
                held = f"another run ({run_id})" if run_id else "a model that is not of this run"
                raise PushFailed(
                    f"repo_id: {self.repo_id} holds {held}: choose another name, or replace it with --replace"
                )
            return

    def _read_run_id(self, commit_id: str) -> str | None:
        url = hf_hub_url(self.repo_id, "settings.json", revision=commit_id, endpoint=self.api.endpoint)
        response = get_session().get(url, headers=build_hf_headers(token=self.api.token))
        hf_raise_for_status(response)
        try:
            settings = json.loads(response.content)
        except ValueError:  # somebody else's file of this name
            return None
        return settings.get("run_id") if isinstance(settings, dict) else None


def is_ours(name: str) -> bool:
    return "/" not in name and name not in USERS and any(fnmatchcase(name, pattern) for pattern in OURS)
