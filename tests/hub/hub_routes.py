"""How a Hub answers, as huggingface.co does where `huggingface_hub` can tell the difference."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

import yaml
from hub_state import (
    LFS_SUFFIXES,
    ORGANIZATION,
    TOKENS,
    USER,
    Commit,
    Hub,
    Refusal,
    Repository,
    is_lfs,
    make_commit,
    oid,
)


DATE = "2026-12-01T00:00:00.000Z"
MODEL = "/api/models/(?P<name>[^/]+/[^/]+)"
COLLECTION = "/api/collections/(?P<slug>[^/]+/[^/]+)"
JSON = {"Content-Type": "application/json"}
ROUTES: list[tuple[str, re.Pattern, Callable]] = []


def route(method: str, pattern: str):
    """The function below answers such requests: with what becomes JSON, or with (status, body, headers)."""

    def keep(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return keep


@dataclass(frozen=True)
class Request:
    hub: Hub
    headers: Mapping[str, str]
    query: dict[str, list[str]]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)

    def role(self) -> str | None:
        """What the token allows; None without one."""
        if "Authorization" not in self.headers:
            return None
        token = self.headers["Authorization"].removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def check_write(self, namespace: str):
        if self.role() is None:
            raise Refusal(401, "Invalid username or password.")
        if self.role() != "write" or namespace not in (USER, ORGANIZATION):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')

    def repository(self, name: str, is_written: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or repository.private and self.role() is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if is_written:
            self.check_write(name.split("/")[0])
        return repository


def describe(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": oid(path, data)}
    if is_lfs(path, data):
        entry["lfs"] = {"oid": oid(path, data), "size": len(data), "pointerSize": 130}
    return entry


@route("GET", "/api/whoami-v2")
def who_am_i(request: Request):
    if request.role() is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"role": request.role()}}
    return {"type": "user", "name": USER, "orgs": [{"name": ORGANIZATION}], "auth": token}


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request):
    block = re.match(r"---\n(.*?)\n---\n", request.json()["content"], re.DOTALL)
    if block is None:
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    try:
        if isinstance(yaml.safe_load(block[1]), dict):
            return {"errors": [], "warnings": []}
        message = "metadata must be a mapping"
    except yaml.YAMLError as error:
        message = str(error)
    return 400, json.dumps({"errors": [{"message": message}], "warnings": []}).encode(), {}


@route("POST", "/api/repos/create")
def create_repository(request: Request):
    asked = request.json()
    namespace = asked.get("organization") or USER
    name = f"{namespace}/{asked['name']}"
    url = f"{request.hub.url}/{name}"
    request.check_write(namespace)
    if name in request.hub.repositories:
        body = {"error": "You already created this model repo", "url": url}
        return 409, json.dumps(body).encode(), JSON
    # "visibility" since huggingface_hub 2
    request.hub.add_repository(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
    return {"url": url, "name": name}


@route("GET", f"{MODEL}(/revision/(?P<revision>[^/]+))?")
def model_info(request: Request, name: str, revision: str = "main"):
    repository = request.repository(name)
    commit = repository.find(revision)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    info = {"id": name, "modelId": name, "sha": commit.id, "private": repository.private, "siblings": siblings}
    return {**info, "tags": [], "downloads": 0, "likes": 0, "lastModified": DATE}


@route("GET", f"{MODEL}/refs")
def list_refs(request: Request, name: str):
    repository = request.repository(name)

    def describe_refs(kind: str, refs: dict[str, Commit]) -> list[dict]:
        return [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": refs[ref].id} for ref in refs]

    branches, tags = describe_refs("heads", repository.branches), describe_refs("tags", repository.tags)
    return {"branches": branches, "tags": tags, "converts": []}


@route("GET", f"{MODEL}/commits/(?P<revision>[^/]+)")
def list_commits(request: Request, name: str, revision: str):
    commits = request.repository(name).find(revision).history()
    return [
        {"id": commit.id, "title": commit.title, "message": commit.message, "date": DATE, "authors": [{"user": USER}]}
        for commit in commits
    ]


@route("GET", f"{MODEL}/tree/(?P<revision>[^/]+)")
def list_tree(request: Request, name: str, revision: str):
    files = request.repository(name).find(revision).files
    return [describe(path, files[path]) for path in sorted(files)]


@route("POST", f"{MODEL}/paths-info/(?P<revision>[^/]+)")
def list_paths(request: Request, name: str, revision: str):
    files = request.repository(name).find(revision).files
    is_form = "json" not in request.headers["Content-Type"]
    paths = parse_qs(request.body.decode())["paths"] if is_form else request.json()["paths"]
    return [describe(path, files[path]) for path in paths if path in files]


@route("POST", f"{MODEL}/branch/(?P<branch>[^/]+)")
def create_branch(request: Request, name: str, branch: str):
    repository = request.repository(name, is_written=True)
    if branch in repository.branches:
        raise Refusal(409, "Reference already exists")
    repository.branches[branch] = repository.find(request.json().get("startingPoint", "main"))
    return {}


@route("POST", f"{MODEL}/tag/(?P<revision>[^/]+)")
def create_tag(request: Request, name: str, revision: str):
    repository = request.repository(name, is_written=True)
    tag = request.json()["tag"]
    if tag in repository.tags:
        raise Refusal(409, f"Tag {tag} already exists")
    repository.tags[tag] = repository.find(revision)
    return {}


@route("DELETE", f"{MODEL}/tag/(?P<tag>[^/]+)")
def delete_tag(request: Request, name: str, tag: str):
    if request.repository(name, is_written=True).tags.pop(tag, None) is None:
        raise Refusal(404, f"Tag {tag} does not exist", "RevisionNotFound")
    return {}


@route("POST", f"{MODEL}/preupload/(?P<revision>[^/]+)")
def preupload(request: Request, name: str, revision: str):
    """How each file is to be sent, and what it is now, so that the client leaves out what has not changed."""
    files = request.repository(name, is_written=True).find(revision).files
    answers = []
    for path in (file["path"] for file in request.json()["files"]):
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        known = oid(path, files[path]) if path in files else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
    return {"files": answers}


@route("POST", "/(?P<name>[^/]+/[^/]+).git/info/lfs/objects/batch")
def plan_uploads(request: Request, name: str):
    request.repository(name, is_written=True)
    objects = []
    for entry in ({"oid": asked["oid"], "size": asked["size"]} for asked in request.json()["objects"]):
        if entry["oid"] not in request.hub.objects:
            upload, verify = (f"{request.hub.url}/lfs/{part}{entry['oid']}" for part in ("", "verify/"))
            entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(entry)
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/(?P<sha256>[0-9a-f]{64})")
def receive(request: Request, sha256: str):
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise Refusal(400, "BadDigest")
    request.hub.objects[sha256] = request.body
    return {}


@route("POST", "/lfs/verify/(?P<sha256>[0-9a-f]{64})")
def verify(request: Request, sha256: str):
    if len(request.hub.objects.get(sha256, b"")) != request.json()["size"]:
        raise Refusal(404, "Object does not exist")
    return {}


@route("POST", f"{MODEL}/commit/(?P<branch>[^/]+)")
def commit(request: Request, name: str, branch: str):
    repository = request.repository(name, is_written=True)
    if request.hub.before_commit is not None:
        second_writer, request.hub.before_commit = request.hub.before_commit, None
        second_writer(repository)
    if branch not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head = repository.branches[branch]
    header, *operations = (json.loads(line) for line in request.body.splitlines())
    if header["value"].get("parentCommit", head.id) != head.id:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in request.hub.objects:
                raise Refusal(400, "Your push was rejected: an LFS pointer points to a file that does not exist")
            files[value["path"]] = request.hub.objects[value["oid"]]
        elif kind == "deletedFile" and value["path"] in files:
            del files[value["path"]]
        else:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    made = make_commit(files, header["value"]["summary"], header["value"]["description"], head)
    repository.branches[branch] = made
    url = f"{request.hub.url}/{name}/commit/{made.id}"
    return {"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""}


@route("GET", "/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def download(request: Request, name: str, revision: str, path: str):
    found = request.repository(name).find(revision)
    if path not in found.files:
        message = json.dumps({"error": "Entry not found"}).encode()
        return 404, message, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.id}
    data = found.files[path]
    headers = {"ETag": f'"{oid(path, data)}"', "X-Repo-Commit": found.id, "Accept-Ranges": "bytes"}
    limits = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if limits is None:
        return 200, data, headers
    start, end = int(limits[1]), min(int(limits[2] or len(data)), len(data) - 1)
    if start > end:
        return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
    return 206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}


def collection_of(request: Request, slug: str, is_written: bool = False) -> dict:
    if is_written:
        request.check_write(slug.split("/")[0])
    if slug not in request.hub.collections:
        raise Refusal(404, "Collection not found")
    return request.hub.collections[slug]


@route("GET", "/api/collections")
def list_collections(request: Request):
    """With their first four items only, as the Hub does."""
    owner = request.query["owner"][0]
    found = [each for each in request.hub.collections.values() if each["owner"] == owner]
    return [{**each, "items": each["items"][:4]} for each in found]


@route("POST", "/api/collections")
def create_collection(request: Request):
    asked = request.json()
    request.check_write(asked["namespace"])
    slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-{len(request.hub.collections):024x}"
    for known in request.hub.collections.values():
        if (known["owner"], known["title"]) == (asked["namespace"], asked["title"]):
            return 409, json.dumps({"error": "Collection already exists", "slug": known["slug"]}).encode(), JSON
    made = {
        "slug": slug,
        "title": asked["title"],
        "owner": asked["namespace"],
        "private": asked["private"],
        "items": [],
    }
    request.hub.collections[slug] = {**made, "lastUpdated": DATE, "position": 0, "theme": "green", "upvotes": 0}
    return request.hub.collections[slug]


@route("GET", COLLECTION)
def get_collection(request: Request, slug: str):
    return collection_of(request, slug)


@route("POST", f"{COLLECTION}/items")
def add_item(request: Request, slug: str):
    collection, asked = collection_of(request, slug, is_written=True), request.json()
    request.repository(asked["item"]["id"])
    if asked["item"]["id"] in [item["id"] for item in collection["items"]]:
        raise Refusal(409, "Item already in collection")
    position = len(collection["items"])
    item = {"_id": f"{position:024x}", **asked["item"], "position": position}
    collection["items"].append({**item, "note": {"text": asked["note"]}} if "note" in asked else item)
    return collection


@route("PATCH", f"{COLLECTION}/items/(?P<item_id>[^/]+)")
def update_item(request: Request, slug: str, item_id: str):
    items = collection_of(request, slug, is_written=True)["items"]
    (item,) = [item for item in items if item["_id"] == item_id]
    item["note"] = {"text": request.json()["note"]}
    return {}
