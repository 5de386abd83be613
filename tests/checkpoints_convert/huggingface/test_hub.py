"""Hub ids, against a local server that answers as the hub does."""

import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
from support.checkpoints.hf_folders import hf_config, hf_tensors, write_hf

from checkpoints_convert import CheckpointError, load_checkpoint

COMMITS = {"main": "a" * 40, "older": "b" * 40}


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `folders[commit]` as the repository org/tiny."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path))
        if path.startswith("/api/models/org/tiny"):
            revision = path.rsplit("/", 1)[-1] if "/revision/" in path or "/tree/" in path else "main"
            commit = COMMITS.get(revision, revision)
            if commit in self.server.folders:
                files = sorted(self.server.folders[commit].iterdir())
                sizes = {file.name: file.stat().st_size for file in files}
                if "/tree/" in path:  # newer clients list files by this, older ones by "siblings"
                    tree = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()]
                    return self.send(200, json.dumps(tree).encode())
                siblings = [{"rfilename": name} for name in sizes]
                return self.send(200, json.dumps({"id": "org/tiny", "sha": commit, "siblings": siblings}).encode())
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/org/tiny/resolve/"):
            revision, name = path.removeprefix("/org/tiny/resolve/").split("/", 1)
            commit = COMMITS.get(revision, revision)
            file = self.server.folders[commit] / name
            if file.is_file():
                data = file.read_bytes()
                etag = hashlib.sha256(data).hexdigest()
                return self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send(self, status, data, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Runs the server; each revision has weights of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    server.folders = {}
    server.tensors = {}
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        config = hf_config("llama")
        server.tensors[revision] = hf_tensors(config, seed)
        num_shards = 2 if revision == "main" else 0
        folder = write_hf(tmp_path / revision, config, server.tensors[revision], num_shards=num_shards)
        (folder / "modeling_tiny.py").write_text("raise SystemExit('remote code ran')")
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        server.folders[commit] = folder
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_revision_is_pinned_and_only_data_is_fetched(hub):
    for revision in (None, "older", COMMITS["older"]):
        checkpoint = load_checkpoint("org/tiny", revision=revision, endpoint=hub.endpoint)
        wanted = hub.tensors["main" if revision is None else "older"]["model.embed_tokens.weight"]
        np.testing.assert_array_equal(checkpoint.params["embed"], wanted)
        assert checkpoint.name == "org/tiny"
    assert not np.array_equal(*(tensors["model.embed_tokens.weight"] for tensors in hub.tensors.values()))
    fetched = {path.rsplit("/", 1)[-1] for command, path in hub.requests if command == "GET"}
    assert "config.json" in fetched
    assert not {"modeling_tiny.py", "pytorch_model.bin"} & fetched


def test_what_was_fetched_loads_again_without_the_hub(hub):
    load_checkpoint("org/tiny", endpoint=hub.endpoint)
    hub.shutdown()
    hub.server_close()
    assert load_checkpoint("org/tiny", endpoint=hub.endpoint).params["embed"].shape == (293, 36)


@pytest.mark.parametrize(("name", "revision"), [("org/absent", None), ("org/tiny", "no-such-revision")])
def test_unknown_ids_and_revisions_are_named(hub, name, revision):
    with pytest.raises(CheckpointError, match=f"{name}.*could not be fetched from the hub") as error:
        load_checkpoint(name, revision=revision, endpoint=hub.endpoint)
    assert "\n" not in str(error.value)
    assert revision is None or repr(revision) in str(error.value)


def test_an_unreachable_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="org/tiny is no folder here and could not be fetched") as error:
        load_checkpoint("org/tiny", endpoint="http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_a_repository_with_only_its_own_code_is_refused(hub):
    config = hf_config("llama", architectures=["TinyForCausalLM"], model_type="tiny")
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    for folder in hub.folders.values():
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"TinyForCausalLM.*its own code \(auto_map\) is never run"):
        load_checkpoint("org/tiny", endpoint=hub.endpoint)


def test_a_revision_of_a_local_folder_is_refused(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    with pytest.raises(CheckpointError, match="has no revisions; leave 'main' out"):
        load_checkpoint(folder, revision="main")
