"""Models on the hub, through a stand-in for its client that keeps repositories in folders."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import fewstep as fs
from fewstep.cli import main
from fewstep.io import hub, model_folder
from fewstep.io.card import Card
from fewstep.metrics.protocol import MetricResult, write_results
from fewstep.runtime.environment import OFFLINE, optional
from fewstep.runtime.files import sha256
from tests.cli.test_cli import fails
from tests.fakehub import blob_id

NAMES = ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "LocalEntryNotFoundError")


def errors():
    missing = type("RepositoryNotFoundError", (OSError,), {})
    found = {name: type(name, (OSError,), {}) for name in NAMES} | {"RepositoryNotFoundError": missing}
    found |= {"GatedRepoError": type("GatedRepoError", (missing,), {})}
    return SimpleNamespace(**found, HFValidationError=type("HFValidationError", (ValueError,), {}))


class Client:
    """What of `huggingface_hub.HfApi` is used. root: a folder for each repository, and in `cache` what was fetched."""

    def __init__(self, module):
        self.module, self.root = module, module.root

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns, local_files_only):
        source, target = self.root / repo_id, self.root / "cache" / repo_id
        self.module.calls.append((repo_id, revision, local_files_only))
        if local_files_only:
            if not target.exists():
                raise self.module.errors.LocalEntryNotFoundError("not cached")
            return str(target)
        for word, error in (("gated", "GatedRepoError"), ("private", "RepositoryNotFoundError")):
            if word in repo_id:
                raise getattr(self.module.errors, error)("403")
        if not source.exists():
            raise self.module.errors.RepositoryNotFoundError("404")
        if revision not in (None, "main", "v1"):
            raise self.module.errors.RevisionNotFoundError(revision)
        target.mkdir(parents=True, exist_ok=True)
        for file in source.rglob("*"):
            if any(fnmatch.fnmatch(str(file.relative_to(source)), pattern) for pattern in allow_patterns):
                (target / file.name).unlink(missing_ok=True)
                (target / file.name).symlink_to(file)  # as the client's cache has it
        return str(target)

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        if "private" in repo_id:
            raise self.module.errors.RepositoryNotFoundError("401")
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.module.private = private

    def create_commit(self, repo_id, operations, *, commit_message):
        assert commit_message
        for name, content in operations:
            data = content if isinstance(content, bytes) else content.read_bytes()
            (self.root / repo_id / name).write_bytes(data)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    module = ModuleType("huggingface_hub")
    module.__dict__.update(root=tmp_path / "hub", calls=[], private=None, errors=errors())
    module.__dict__.update(HfApi=lambda: Client(module), CommitOperationAdd=lambda name, content: (name, content))
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", module.errors)
    monkeypatch.delenv(OFFLINE, raising=False)
    hub.fetch.cache_clear()
    yield module
    hub.fetch.cache_clear()


@pytest.fixture
def model(denoiser, tmp_path):
    data = {"name": "digits", "n": 1797, "sha256": "ab" * 32}
    card = Card("tiny", "EDM", 640, data, ["hf://nv/edm"], "CC BY-NC-SA 4.0")
    return model_folder.save(denoiser, tmp_path / "model", card)


def metadata(path):
    text = path.read_text()
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_a_model_comes_back_from_the_hub_as_it_went(fake, model, tmp_path, capsys):
    result = MetricResult(
        "fid", 3.25, 50_000, {"weights": sha256(model / "model.safetensors"), "reference": {"name": "c10"}}
    )
    write_results(tmp_path / "fid.json", [result])
    assert main(["push", str(model), "me/tiny", "--metrics", str(tmp_path / "fid.json"), "--private"]) == 0
    assert capsys.readouterr().out == "https://hub/me/tiny/commit/1\n"
    assert fake.private is True
    sent = fake.root / "me" / "tiny"
    assert sorted(p.name for p in sent.iterdir()) == sorted(hub.FILES)
    about = metadata(sent / "README.md")
    assert (about["library_name"], about["license"], about["base_model"]) == ("fewstep", "cc-by-nc-sa-4.0", "nv/edm")
    assert (about["training_data"]["name"], about["lineage"]) == ("digits", ["hf://nv/edm"])
    [found] = about["model-index"][0]["results"]
    assert found["dataset"]["name"] == "c10"
    assert found["metrics"] == [{"type": "fid", "value": 3.25, "args": {"n": 50_000, **result.protocol}}]
    page = (sent / "README.md").read_text()
    assert 'fs.load("hf://me/tiny")' in page and "| fid    |  3.25 |" in page

    (sent / "payload.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (sent / "code.py").write_text("")
    assert main(["pull", "me/tiny@v1", str(tmp_path / "copy")]) == 0
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == sorted(hub.FILES)
    assert not any(p.is_symlink() for p in (tmp_path / "copy").iterdir())
    assert fake.calls == [("me/tiny", "v1", False)]
    ours, theirs = model_folder.load(model).state_dict(), model_folder.load(tmp_path / "copy").state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert model_folder.card(tmp_path / "copy").metrics == [result.asdict()]
    assert "license of the weights: CC BY-NC-SA 4.0" in capsys.readouterr().out


def test_an_address_is_as_good_as_a_folder(fake, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(model), "me/tiny"]) == 0
    assert torch.equal(
        next(iter(fs.load("hf://me/tiny").parameters())), next(iter(model_folder.load(model).parameters()))
    )
    assert model_folder.card("hf://me/tiny").student("SiD").lineage == ["hf://me/tiny", "hf://nv/edm"]
    images = []
    for path in ("hf://me/tiny", str(model)):
        assert main(["sample", path, "--seeds", "0-1", "--steps", "1", "--npz", "x.npz", "--overwrite"]) == 0
        with np.load("x.npz") as file:
            images.append(file["arr_0"])
    assert np.array_equal(*images)
    evaluate = ["eval", "hf://me/tiny@main", "--reference", "digits", "--metrics", "fd_pixels", "--seeds", "0-3"]
    assert main([*evaluate, "--steps", "1", "--json", "r.json"]) == 0
    [measured] = json.loads(Path("r.json").read_text())
    assert measured["protocol"]["model"] == "hf://me/tiny@main"
    assert main(["export", "hf://me/tiny", "x.safetensors"]) == 0
    assert fake.calls == [("me/tiny", None, False), ("me/tiny", "main", False)]  # once for each address
    hub.fetch.cache_clear()
    assert main(["export", "hf://me/tiny", "x.safetensors", "--overwrite", "--offline"]) == 0
    assert fake.calls[-1] == ("me/tiny", None, True)


def test_a_vae_of_this_machine_is_not_published(fake, model, tmp_path, capsys):
    """`convert --vae FOLDER` records the folder, which others do not have and which may say who its user is."""
    config = json.loads((model / "config.json").read_text())
    codec = {"kind": "StabilityVAE", "vae": str(tmp_path / "me" / "vae")}
    (model / "config.json").write_text(json.dumps(config | {"codec": codec}))
    assert "names its VAE by a folder of this machine" in fails(capsys, "push", str(model), "me/tiny")
    assert not (fake.root / "me" / "tiny").exists()


def test_what_the_hub_refuses_is_explained(fake, model, tmp_path, capsys):
    target = str(tmp_path / "x")
    assert "no such model, or it is private; log in" in fails(capsys, "pull", "me/private", target)
    assert "asks for consent" in fails(capsys, "pull", "me/gated", target)
    assert "no such model" in fails(capsys, "sample", "hf://me/none", "--grid", "g.png")
    assert "cannot be while offline" in fails(capsys, "pull", "me/tiny", target, "--offline")
    assert "cannot be written while offline" in fails(capsys, "push", str(model), "me/tiny", "--offline")
    assert "it is private; log in" in fails(capsys, "push", str(model), "you/private")
    assert "leave @v2 out" in fails(capsys, "push", str(model), "me/tiny@v2")
    for name in ("tiny", "a/b/c", "../../x", "me/..", "https://huggingface.co/me/x", ""):
        assert "expected a model on the hub" in fails(capsys, "pull", name, target)
    assert not (tmp_path / "x").exists()
    assert main(["push", str(model), "me/tiny"]) == 0
    assert "no such branch" in fails(capsys, "pull", "me/tiny@v9", target)
    (fake.root / "me" / "tiny" / "model.safetensors").unlink()
    assert "is not a model of fewstep: it has no model.safetensors" in fails(capsys, "pull", "me/tiny@main", target)


class AnswerError(OSError):
    """An error of the client with the hub's answer."""

    def __init__(self, status):
        super().__init__("several\nlines")
        self.response = SimpleNamespace(status_code=status)


def failing(error):
    raise error


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "answers HTTP 401; log in with: hf auth login"),
        (403, "answers HTTP 403; your account, or its token, has no access"),
        (404, "answers HTTP 404; check the address"),
        (429, "answers HTTP 429; too many requests"),
        (500, "answers HTTP 500; try again later; what was fetched before is there with --offline"),
    ],
)
def test_every_answer_is_one_line(fake, model, tmp_path, monkeypatch, capsys, status, words):
    """Directly, and behind the client's own error of a file that is not in its cache."""
    for error in (AnswerError(status), fake.errors.LocalEntryNotFoundError("many\nwords")):
        error.__cause__ = None if isinstance(error, AnswerError) else AnswerError(status)
        monkeypatch.setattr(Client, "snapshot_download", lambda *_, error=error, **__: failing(error))
        assert f"hf://me/tiny: the hub {words}" in fails(capsys, "pull", "me/tiny", str(tmp_path / "x"))
    monkeypatch.setattr(Client, "create_repo", lambda *_, **__: failing(AnswerError(status)))
    assert words in fails(capsys, "push", str(model), "me/tiny")


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("no\nroute"), RuntimeError("at https://u:5ecret@h/x?sig=5ecret"), KeyError("sha")]
)
def test_whatever_breaks_off_is_one_line(fake, monkeypatch, error):
    monkeypatch.setattr(Client, "snapshot_download", lambda *_, **__: failing(error))
    with pytest.raises(ValueError, match=rf"breaks off \({type(error).__name__}: .*with --offline$") as said:
        hub.fetch(hub.parse("me/tiny"))
    assert "5ecret" not in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_what_was_fetched_has_the_announced_hash(fake, model, tmp_path, monkeypatch, capsys, name):
    """The client's cache names files after it: SHA-256 of large ones, git's SHA-1 of others. A damaged one is removed."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    blobs = {}
    for file in hub.FILES:
        data = (model / file).read_bytes()
        digest = hashlib.sha256(data).hexdigest() if file == "model.safetensors" else blob_id(data)
        blobs[file] = tmp_path / digest
        blobs[file].write_bytes(data)
        (folder / file).symlink_to(blobs[file])
    monkeypatch.setattr(Client, "snapshot_download", lambda *_, **__: str(folder))
    assert main(["pull", "me/tiny", str(tmp_path / "x")]) == 0
    data = bytearray(blobs[name].read_bytes())
    data[-1] ^= 1
    blobs[name].write_bytes(data)
    hub.fetch.cache_clear()
    assert f"hf://me/tiny: {name} came damaged" in fails(capsys, "pull", "me/tiny", str(tmp_path / "y"))
    assert not blobs[name].exists() and not (tmp_path / "y").exists()


def test_a_damaged_model_is_neither_sent_nor_kept(fake, model, tmp_path, capsys):
    assert main(["push", str(model), "me/tiny"]) == 0
    for path in (fake.root / "me" / "tiny" / "model.safetensors", model / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    assert "truncated or corrupt" in fails(capsys, "pull", "me/tiny", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    assert "truncated or corrupt" in fails(capsys, "push", str(model), "me/other")
    assert not (fake.root / "me" / "other").exists()


def test_licenses_and_metrics_are_those_of_the_weights(fake, denoiser, model, tmp_path, capsys):
    bare = str(model_folder.save(denoiser, tmp_path / "bare"))
    assert "does not state the license" in fails(capsys, "push", bare, "me/bare")
    assert main(["push", bare, "me/bare", "--license", "Apache-2.0"]) == 0
    assert metadata(fake.root / "me" / "bare" / "README.md")["license"] == "apache-2.0"
    assert "states the license" in fails(capsys, "push", str(model), "me/tiny", "--license", "MIT")
    write_results(tmp_path / "r.json", [MetricResult("fid", 1.0, 9, {"weights": "0"})])
    assert "results of another model" in fails(
        capsys, "push", str(model), "me/x", "--metrics", str(tmp_path / "r.json")
    )


def test_a_card_says_its_license_in_the_hub_s_words(model):
    config = model_folder.read_config(model)
    words = {
        "CC BY-NC-SA 4.0 (NVIDIA): no commercial use": {"license": "cc-by-nc-sa-4.0"},
        "MIT": {"license": "mit"},
        "ask me": {"license": "other", "license_name": "ask-me"},
        "not stated": {},
    }
    for text, names in words.items():
        about = yaml.safe_load(Card(license=text).markdown(config).split("---\n")[1])
        assert {k: about[k] for k in ("license", "license_name") if k in about} == names
    hostile = Card(name="x\n---\ny", license="a: [b", lineage=["---", "'"]).markdown(config)
    assert yaml.safe_load(hostile.split("\n---\n")[0])["lineage"] == ["---", "'"]


def test_a_package_that_breaks_is_one_line(monkeypatch, tmp_path):
    """Not only where it is missing: an optional package raises anything when it, or what it imports, does not fit."""
    monkeypatch.syspath_prepend(tmp_path)
    for number, (raised, words) in enumerate(
        [
            ('raise RuntimeError("operator a::b\\ndoes not exist")', r"RuntimeError: operator a::b does not exist"),
            ("import absent_of_all", "ModuleNotFoundError: No module named 'absent_of_all'"),
            ("from json import none", "ImportError: cannot import name 'none'"),
        ]
    ):
        (tmp_path / f"broken{number}.py").write_text(raised)
        needed = rf"^it needs the package broken{number}, which cannot be imported \({words}"
        with pytest.raises(ValueError, match=rf'{needed}.*"fewstep\[x\]"'):
            optional(f"broken{number}", "it", "x")
    with pytest.raises(ValueError, match="^it needs the package absent, which is not installed: pip"):
        optional("absent.part", "it", "x")


def test_the_package_is_asked_for(monkeypatch, model, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.fetch.cache_clear()
    assert 'pip install "fewstep[hub]"' in fails(capsys, "push", str(model), "me/tiny")
    assert 'pip install "fewstep[hub]"' in fails(capsys, "sample", "hf://me/tiny", "--grid", "g.png")
