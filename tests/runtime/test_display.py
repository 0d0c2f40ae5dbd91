"""Text from elsewhere: terminals do not obey it, secrets in it are not recorded, pages and cards show it as it is."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fewstep import recipes
from fewstep.cli import main
from fewstep.compare import show
from fewstep.io import model_folder
from fewstep.io.card import Card, body
from fewstep.metrics.protocol import MetricResult, markdown, write_results
from fewstep.runtime.display import Visible, inline, public, visible
from fewstep.runtime.progress import Progress
from fewstep.train.transfer import transfer
from tests import GOLDEN
from tests.cli.test_cli import fails
from tests.report.test_report import write_run

ESCAPES = "\x1b]0;owned\x07\x1b[31m\u202egnp.\x9b2J"
SHOWN = r"\x1b]0;owned\x07\x1b[31m\u202egnp.\x9b2J"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


# --- terminals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ESCAPES, SHOWN),
        ("a\r\nb\tc\x7f\0", r"a\r\nb\tc\x7f\x00"),
        ("\udc80", r"\udc80"),
        ("häuser 家 [red] 1 000", "häuser 家 [red] 1 000"),
        (Path("a"), "a"),
    ],
)
def test_visible(text, expected):
    assert visible(text) == expected
    assert visible("a\n\x1b", keep="\n") == "a\n\\x1b"


def test_a_visible_stream():
    stream = Visible(io.StringIO())
    print("a\x1b[1m", 1, file=stream)
    assert stream.getvalue() == "a\\x1b[1m 1\n" and not stream.isatty()


def archive(path: str, *names: str) -> None:
    png = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(png, "PNG")
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"broken" if "bad" in name else png.getvalue())


def test_members_of_archives(capsys):
    archive("x.zip", "a.png", f"bad{ESCAPES}.png", f"{ESCAPES}.txt")
    for command in ("data check x.zip", "data pack x.zip y.zip"):
        error = fails(capsys, *command.split())
        assert SHOWN in error and not any(c in error for c in "\x1b\x07\u202e\x9b")
    assert main(["data", "pack", "x.zip", "y.zip", "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert SHOWN in out and not any(c in out for c in "\x1b\x07\u202e\x9b")


def test_whatever_a_command_prints(denoiser, capsys):
    model_folder.save(denoiser, "model", Card())
    assert main(["export", "model", f"{ESCAPES}.safetensors"]) == 0
    assert capsys.readouterr().out.startswith(f"{SHOWN}.safetensors: ")


def test_no_name_forges_a_line(capsys):
    archive("x.zip", "a.png", "bad\nfewstep: all is well\n.png")
    assert "\nfewstep" not in fails(capsys, "data", "check", "x.zip")
    assert main(["data", "pack", "x.zip", "y.zip", "--skip-bad"]) == 0
    assert "\nfewstep" not in capsys.readouterr().out


def test_names_of_files_and_of_globals(capsys):
    Path("x.pkl").write_bytes(b"\x80\x04c" + f"os{ESCAPES}\nsystem\n".encode() + b".")
    for name in ("x.pkl", f"missing{ESCAPES}.pkl"):
        error = fails(capsys, "convert", name, "out")
        assert r"\x1b]0;owned" in error and not any(c in error for c in "\x1b\x07\u202e\x9b")


def test_tables_and_bars_take_no_markup(capsys, monkeypatch):
    row = {"model": f"[red]a[/red]{ESCAPES}", "method": "[/]", "sampler": ":smile:", "nfe": 1, "n": 1, "seeds": "[b]0"}
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("FORCE_COLOR", "1")
    show([row | {"images_per_second": 1.0, "training_images": 1, "training_seconds": None}], Path())
    out = capsys.readouterr().out
    assert all(text in out for text in (f"[red]a[/red]{SHOWN}", "[/]", ":smile:", "[b]0")) and "\x1b" not in out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("FORCE_COLOR")
    with Progress(f"[red]packing{ESCAPES}[/blue]", total=1) as progress:
        progress.show_losses({"[b]loss": 1.0})
        progress.show()
    error = capsys.readouterr().err
    assert f"[red]packing{SHOWN}[/blue]" in error and "[b]loss=1" in error


# --- secrets

SECRET = "5ecret"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://h.org/a/b.pkl?X-Amz-Signature={SECRET}&x=1 (sha256 ab)", "https://h.org/a/b.pkl (sha256 ab)"),
        (f"--source=https://h/x?token={SECRET}", "--source=https://h/x"),
        (f"https://user:{SECRET}@h/x", "https://h/x"),
        (f"s3://key:{SECRET}@h@b/x", "s3://b/x"),
        (f"got 'https://h/x?token={SECRET}'; expected", "got 'https://h/x'; expected"),
        (f"(HTTPS://h?{SECRET}), (https://h/#{SECRET}).", "(HTTPS://h), (https://h/)."),
        (f"https://h/x?a='{SECRET}'&b=\"{SECRET}\"&c", "https://h/x"),
        ("hf://owner/name@main a@b?c x.pkl?d", "hf://owner/name@main a@b?c x.pkl?d"),
        ("https://h/a@b/c, https://h:80/d", "https://h/a@b/c, https://h:80/d"),
    ],
)
def test_public(text, expected):
    assert public(text) == expected


@contextmanager
def server(content: bytes, code: int = 200, reason: str = "OK"):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code, reason)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}/edm-ddpmpp-cond.pkl?X-Amz-Signature={SECRET}"
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


def holders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_addresses_are_recorded_without_their_secrets(tmp_path, capsys):
    with server((GOLDEN / "edm-ddpmpp-cond.pkl").read_bytes()) as address:
        assert main(["convert", address, "model", "--kind", "teacher"]) == 0
        run = recipes.get("digits:teacher", until=64).run()
        with pytest.raises(ValueError, match="has no tensor|has the shape"):
            transfer(run, address)
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err and holders(tmp_path) == []
    about = model_folder.card("model")
    assert about.name == "edm-ddpmpp-cond" and address.partition("?")[0] in about.lineage[0]


def test_answers_of_servers(capsys):
    with server(b"", 404, "gone\x1b[31m") as address:
        error = fails(capsys, "convert", address, "model")
    assert SECRET not in error and "\x1b" not in error and r"gone\x1b[31m" in error


def test_a_card_with_a_secret_is_read_without_it(denoiser, tmp_path):
    model_folder.save(denoiser, "model", Card(lineage=["x"]))
    config = json.loads(Path("model/config.json").read_text())
    config["card"]["lineage"] = [f"https://h/x.pkl?token={SECRET} (sha256 12)"]
    Path("model/config.json").write_text(json.dumps(config))
    about = model_folder.card("model")
    assert about.lineage == ["https://h/x.pkl (sha256 12)"]
    assert SECRET not in about.student("sid").markdown(config) + json.dumps(dataclasses.asdict(about))


def test_commands_are_recorded_without_secrets(tmp_path, capsys, monkeypatch):
    from fewstep.runtime.launch import command_line

    address = f"https://user:{SECRET}@h/x.pkl?a=1&token={SECRET}"
    told = command_line(["train", "digits:teacher", "--transfer", address, f"--teacher={address}"])
    assert shlex.split(told)[3:] == ["--transfer", "https://h/x.pkl", "--teacher=https://h/x.pkl"]


# --- Markdown and HTML


def test_inline():
    assert inline("a|b`c<script>") == r"a\|b\`c\<script>"
    assert inline("x\n# y \\<b> [l](u) [l][u] <- 1 < 2 -> fd_pixels*") == (
        r"x\\n# y \\\<b> [l]\(u) [l]\[u] <- 1 < 2 -> fd_pixels*"
    )


HOSTILE = "x\n---\nlicense: mit\n\n# y\n<script>alert(1)</script> `|` [a](javascript:b)"


def test_cards_show_names_as_they_are(denoiser):
    protocol = {"sampler": HOSTILE, HOSTILE: 1, "reference": {"name": HOSTILE}}
    metrics = [{"metric": HOSTILE, "value": 1.0, "n": 5, "protocol": protocol}]
    data = {"name": HOSTILE, "n": HOSTILE, "sha256": HOSTILE}
    about = Card(HOSTILE, HOSTILE, 1, data, [HOSTILE, HOSTILE], HOSTILE, metrics)
    folder = model_folder.save(denoiser, "model", about)
    text = (folder / "README.md").read_text()
    front, page = text.removeprefix("---\n").split("\n---\n", 1)
    known = yaml.safe_load(front)
    assert known["lineage"] == [HOSTILE, HOSTILE] and known["training_data"] == data and known["license"] == "other"
    assert known["model-index"][0]["name"] == HOSTILE
    assert body(text) == page.strip()
    plain = model_folder.save(
        denoiser, "plain", Card("x", "x", 1, {"name": "x", "n": 1, "sha256": "x"}, ["x", "x"], "x")
    )
    lines = body((plain / "README.md").read_text()).count("\n")
    assert page.strip().count("\n") == lines + 4  # the table of metrics
    assert not any(found in page for found in (" <script", "n<script", "](java"))
    assert all(line.count("|") - line.count("\\|") == 5 for line in page.splitlines() if line.startswith("|"))


def test_tables_of_results_have_a_line_for_each(capsys):
    result = MetricResult("fd_x|y", 1.0, 5, {"images": "a\n- reference: b", "x\ny": "<b>"})
    found = markdown([[result]])
    assert len(found.splitlines()) == 6 and r"| fd_x\|y@5 |" in found and r"- images: a\\n- reference: b" in found
    for name in ("a", f"b|{ESCAPES}"):
        write_results(Path(name), [result])
    assert main(["eval", "compare", "a", f"b|{ESCAPES}"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# --- reports


def test_a_report_reads_no_links(tmp_path):
    """They may lead to a file that its reader is not meant to see."""
    secret, out = tmp_path / "elsewhere", tmp_path / "runs"
    write_run(secret, "hidden")
    (secret / "README.md").write_text(SECRET)
    (secret / "metrics.json").write_text(json.dumps({"protocol": {"task": SECRET}, "metrics": {}, "samples": 1}))
    (secret / "eval.json").write_text(json.dumps([{"metric": SECRET, "value": 1, "n": 1, "protocol": {}}]))
    Image.new("L", (7, 7)).save(secret / "sheet.png")
    write_run(out / "run", "plain")
    for name in ("README.md", "metrics.json", "eval.json"):
        (out / "run" / name).symlink_to(secret / name)
    (out / "run" / "config.json").write_text("{}")
    (out / "run" / "sheet.png").symlink_to(secret / "sheet.png")
    for name, target in (("samples", "samples"), ("log.jsonl", "log.jsonl"), ("run.json", "run.json")):
        (out / name).mkdir()
        write_run(out / name / "x", "x")
        path = out / name / "x" / target
        path.rename(path.with_name("old")) if path.exists() else None
        path.symlink_to(secret / target)
    with pytest.warns(UserWarning, match="left out, as links are not followed") as warned:
        assert main(["report", str(out)]) == 0
    told = " ".join(str(w.message) for w in warned)
    page = (out / "report.html").read_text()
    assert SECRET not in page and "hidden" not in page
    for name in ("README.md", "metrics.json", "eval.json", "sheet.png", "samples", "log.jsonl", "run.json"):
        assert name in told


def test_a_report_does_not_write_through_a_link(tmp_path, capsys):
    write_run(tmp_path / "run", "x")
    Path("mine").write_text("mine")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "mine")
    assert "report.html: expected the name of a file to write; it is a link to" in fails(capsys, "report", "run")
    assert Path("mine").read_text() == "mine"


def test_a_report_shows_the_beginning_of_a_long_card(tmp_path):
    write_run(tmp_path / "run", "x")
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "README.md").write_text("a" * 2**20 + SECRET)
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "a" * 2**20 + "\n[the rest is left out]" in page and SECRET not in page
