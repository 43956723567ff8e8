"""Models are pushed to a hub, fetched by address and checked as a folder is, over its HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch
from huggingface_hub import ModelCard

import clprompt
from clprompt import plain_yaml
from clprompt.cli.main import main
from clprompt.errors import CheckpointError, HubError
from clprompt.experiment import push
from clprompt.system.documents import read_json, write_json

OLD = Path(__file__).parents[1] / "fixtures" / "old-run"
REPO = "ada/letters"


class Hub(ThreadingHTTPServer):
    """What of the hub's interface pushing and fetching need; repositories by name, commits by number."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.heads: dict[tuple[str, str], str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        sha = f"{len(self.commits) + 1:040x}"
        self.private.setdefault(repo, False)
        self.commits[sha], self.heads[repo, revision] = files, sha
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.heads[repo, revision]]


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def commit_of(self, repo: str, revision: str) -> str | None:
        """The commit of a revision; None where it was refused."""
        if repo not in self.server.private:
            return self.refuse(404, "RepoNotFound")
        sha = self.server.heads.get((repo, revision), revision)
        return sha if sha in self.server.commits else self.refuse(404, "RevisionNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/(.+))?", path):
            repo, revision = match[1], match[2] or "main"
            if sha := self.commit_of(repo, revision):
                siblings = [{"rfilename": name} for name in self.server.commits[sha]]
                private = self.server.private[repo]
                self.answer({"id": repo, "sha": sha, "private": private, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/(\w+/\w+)/tree/(.+)", path):
            if sha := self.commit_of(match[1], match[2]):
                files = self.server.commits[sha].items()
                self.answer([{"type": "file", "path": n, "size": len(d), "oid": etag(d)} for n, d in files])
        elif match := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            if sha := self.commit_of(match[1], match[2]):
                data = self.server.commits[sha].get(match[3])
                if data is None:
                    self.refuse(404, "EntryNotFound")
                else:
                    self.answer(data, X_Repo_Commit=sha, ETag=f'"{etag(data)}"')
        else:
            self.refuse(404, "NoSuchCall")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_ada":
            self.refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.server.private:
                return self.answer({"error": "there already", "url": f"{self.server.url}/{repo}"}, 409)
            self.server.private[repo] = "private" in (asked.get("visibility"), *asked)  # older: private: true
            self.server.add(repo, {})
            self.answer({"url": f"{self.server.url}/{repo}"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(\w+/\w+)/branch/(.+)", path):
            repo, branch = match.groups()
            if (repo, branch) in self.server.heads:
                return self.answer({"error": "there already"}, 409)
            self.server.add(repo, self.server.files(repo), branch)
            self.answer({})
        elif match := re.fullmatch(r"/api/models/(\w+/\w+)/preupload/(.+)", path):
            if self.commit_of(*match.groups()):
                paths = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self.answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(\w+/\w+)/commit/(.+)", path):
            repo, branch = match.groups()
            lines = [json.loads(line) for line in body.splitlines()]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            sha = self.server.add(repo, self.server.files(repo, branch) | new, branch)
            self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})
        else:
            self.refuse(404, "NoSuchCall")


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which was read when timm was imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # older ones keep a copy
        monkeypatch.setattr(module, "ENDPOINT", url, raising=False)
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One that Ada may write to, and a cache of its own."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_to(server.url, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "finished", tmp_path / "finished"))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("clprompt: error: ")


def test_a_pushed_model_is_loaded_and_predicts_as_its_run_does(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), REPO, "--private"]) == 0
    assert capsys.readouterr().out.startswith(f"uploaded: {hub.url}/{REPO}/commit/")
    assert hub.private == {REPO: True}
    assert hub.files(REPO).keys() == {"model.json", "model.safetensors", "README.md"}
    here, there = clprompt.load(run), clprompt.load(f"hf://{REPO}")
    assert all(torch.equal(value, there.state_dict()[key]) for key, value in here.state_dict().items())
    assert there.class_names == here.class_names
    said = []
    for place in (str(run), f"hf://{REPO}"):
        assert main(["predict", place, str(OLD / "images")]) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert said[0].out.count("\n") > 1


def test_the_card_says_what_the_model_is_and_tells_nothing_of_the_machine(run: Path, tmp_path: Path) -> None:
    config = plain_yaml.read((run / "config.yaml").read_text())
    config |= {"data": {"name": "imagefolder", "path": "/home/ada/photos"}, "note": "secret"}
    (run / "config.yaml").write_text(plain_yaml.write(config))
    (tmp_path / "README.md").write_text(push.card(run, REPO, "v2"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "clprompt"
    assert card.data.pipeline_tag == "image-classification"
    assert {"continual-learning", "vpt_deep"} <= set(card.data.tags)
    assert card.data.license is None
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    told = json.loads((run / "results.json").read_text())
    assert figures == {key: round(100 * told[key], 2) for key in figures}
    assert "average_accuracy" in figures
    for line in (
        *("- **Strategy**: vpt_deep (Jia et al., ", "- **Data set**: imagefolder", "- **Stream**: split"),
        *(
            "- **Classes** (6): blob 0, blob 1",
            "| average accuracy | incremental |",
            "| 58.3 | 66.7 | 8.3 | -8.3 | 58.3 |",
            "path: photos",
        ),
        f'import clprompt\nmodel = clprompt.load("hf://{REPO}@v2")\n',
        f"\nclprompt predict hf://{REPO}@v2 images/\n",
    ):
        assert line in card.text
    assert "/home" not in card.text
    assert "secret" not in card.text


def test_a_branch_is_another_model_and_a_card_that_is_there_stays(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, {"README.md": b"Ada's own words"})
    assert main(["push", str(run), REPO, "--revision", "v2"]) == 0
    assert "its README.md stays as it is; the card of this run is " in capsys.readouterr().out
    assert "vpt_deep" in (run / "exported" / "README.md").read_text()
    assert hub.files(REPO) == {"README.md": b"Ada's own words"}
    assert hub.files(REPO, "v2")["README.md"] == b"Ada's own words"
    assert clprompt.load(f"hf://{REPO}@v2").num_classes == 6
    line = refused(["predict", f"hf://{REPO}", str(OLD / "images")], capsys)
    assert line == f"hf://{REPO} holds no model of clprompt: it has no model.json"


def test_what_was_fetched_is_there_without_a_network(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.push(run, REPO)
    clprompt.load(f"hf://{REPO}")
    point_to("http://127.0.0.1:9", monkeypatch)
    assert clprompt.load(f"hf://{REPO}").num_classes == 6
    with pytest.raises(HubError, match="hf://ada/other cannot be fetched, and the cache holds no copy"):
        clprompt.load("hf://ada/other")


def test_what_a_repository_holds_is_checked_as_a_folder_is(hub: Hub, run: Path, tmp_path: Path) -> None:
    push.push(run, REPO)
    files = hub.files(REPO)
    weights = files["model.safetensors"]
    hub.add(REPO, files | {"model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])}, "damaged")
    with pytest.raises(CheckpointError, match="changed or damaged: its checksum"):
        clprompt.load(f"hf://{REPO}@damaged")
    path = run / "exported" / "model.json"
    facts = read_json(path, ("backbone", "files"))
    for name, backbone in {
        "other": {"sha256": "0" * 64},
        "elsewhere": {"checkpoint": str(tmp_path / "weights.pth")},
        "downloads": {"pretrained": True},
    }.items():
        write_json(path, facts | {"backbone": facts["backbone"] | backbone}, ("backbone", "files"))
        hub.add(REPO, files | {"model.json": path.read_bytes()}, name)
    with pytest.raises(CheckpointError, match="has other weights than in the run"):
        clprompt.load(f"hf://{REPO}@other")
    for name in ("elsewhere", "downloads"):
        with pytest.raises(CheckpointError, match=f"hf://{REPO}@{name}: model.json names a backbone"):
            clprompt.load(f"hf://{REPO}@{name}")


def test_mistakes_are_one_line(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = str(OLD / "images")
    missing = "hf://ada/none: there is no such repository, or your token does not open it (hf auth login)"
    assert refused(["predict", "hf://ada/none", images], capsys) == missing
    assert refused(["push", str(run), "ada/none", "--no-create"], capsys) == missing
    assert refused(["push", str(run), "letters"], capsys) == 'a repository is named user/name, got "letters"'
    assert refused(["predict", "hf://letters", images], capsys).startswith("a repository is named user/name")
    assert "is not the folder of a run" in refused(["push", str(run / "none"), REPO], capsys)
    hub.add(REPO, {})
    assert refused(["predict", f"hf://{REPO}@v9", images], capsys) == f'hf://{REPO} has no revision "v9"'
    line = refused(["push", str(run), REPO, "--revision", "v9", "--no-create"], capsys)
    assert line == f'hf://{REPO} has no revision "v9"'
    line = refused(["push", str(run), REPO, "--private"], capsys)
    assert line == f"hf://{REPO} is there already, and public; nothing was uploaded"
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    line = refused(["push", str(run), "ada/new"], capsys)
    assert line == "hf://ada/new: there is no token, or it does not allow this (hf auth login)"
    point_to("http://127.0.0.1:9", monkeypatch)
    assert refused(["push", str(run), REPO], capsys).startswith(f"hf://{REPO}: Connect")
    assert hub.files(REPO) == {}
