"""Outputs are regular files in the place that was named, or an error before the work; inputs stay."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.runtime import outputs
from tests import GOLDEN
from tests.cli.test_cli import fails

FILES = {
    "sample --grid": "sample model --seeds 0 --steps 1 --grid OUT.png",
    "sample --npz": "sample model --seeds 0 --steps 1 --npz OUT.npz",
    "export": "export model OUT.safetensors",
    "data pack": "data pack images OUT.zip",
    "data latents": "data latents images OUT.zip",
    "eval --json": "eval images --reference images.zip --metrics fd_pixels --json OUT",
    "eval --markdown": "eval images --reference images.zip --metrics fd_pixels --markdown OUT",
    "eval reference": "eval reference images.zip OUT.npz --metrics fd_pixels",
    "eval pairs --json": "eval pairs images images --metrics psnr --json OUT",
    "eval pairs --markdown": "eval pairs images images --metrics psnr --markdown OUT",
}
FOLDERS = {
    "demo": "demo --out OUT",
    "train": "train digits:teacher --out OUT",
    "distill": "distill digits:sid --teacher model --out OUT",
    "compare": "compare model digits:sid --data digits --out OUT",
    "sample --out": "sample model --seeds 0 --steps 1 --out OUT",
    "restore": "restore model digits --task box_inpainting --class 3 --first 1 --samples 1 --nfe 3 --out OUT",
}
MODELS = {
    "convert": f"convert --kind teacher {GOLDEN / 'edm-ddpmpp-cond.pkl'} OUT",
    "pull": "pull owner/name OUT",
}
"""Folders that are replaced as a whole."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, denoiser):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    model_folder.save(denoiser, "model", Card(name="tiny"))
    Path("images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(f"images/{i}.png")
    assert main(["data", "pack", "images", "images.zip"]) == 0


def name(command: str) -> Path:
    return Path(next(word for word in command.split() if word.startswith("OUT")))


def put(what: str, path: Path) -> None:
    """Something at a path that is neither a file nor a folder."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif what == "link":
        Path("target").write_text("mine")
        path.symlink_to("target")
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "link", "loose link"])
@pytest.mark.parametrize("command", [*FILES.values()], ids=[*FILES])
def test_a_file_replaces_nothing_else(command, what, capsys):
    out = name(command)
    put(what, out)
    before = out.lstat()
    assert f"{out}: expected the name of a file to write; it is a {what.split()[-1]}" in fails(capsys, *command.split())
    assert os.path.samestat(out.lstat(), before)
    assert what != "link" or Path("target").read_text() == "mine"


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "link", "loose link"])
@pytest.mark.parametrize("command", [*FOLDERS.values(), *MODELS.values()], ids=[*FOLDERS, *MODELS])
def test_a_folder_replaces_nothing_else(command, what, capsys):
    out = name(command)
    put(what, out)
    before = out.lstat()
    found = {"link": "a file", "loose link": "a link that leads nowhere"}.get(what, f"a {what}")
    assert f"{out}: expected a folder to write; it is {found}; choose" in fails(capsys, *command.split())
    assert os.path.samestat(out.lstat(), before)


@pytest.mark.parametrize("command", [*FILES.values()], ids=[*FILES])
def test_a_file_that_exists_stays(command, capsys):
    out = name(command)
    out.write_text("mine")
    said = f"{out} exists; name another file, or add --overwrite to replace it"
    assert said in fails(capsys, *command.split()) and out.read_text() == "mine"


@pytest.mark.parametrize("command", [*MODELS.values()], ids=[*MODELS])
def test_a_model_that_exists_stays(command, capsys):
    shutil.copytree("model", "OUT")
    assert "or add --overwrite to replace them" in fails(capsys, *command.split())
    assert Path("OUT/model.safetensors").read_bytes() == Path("model/model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["sample --grid", "sample --npz", "export", "data pack", "eval pairs --json"])
def test_overwrite_replaces_a_file(kind):
    out = name(FILES[kind])
    out.write_text("mine")
    assert main([*FILES[kind].split(), "--overwrite"]) == 0
    assert out.read_bytes() != b"mine"


def test_images_are_added_to_images_alone(capsys):
    command = ["sample", "model", "--steps", "1", "--out", "OUT", "--seeds"]
    for seeds in ("0-1", "1003"):
        assert main([*command, seeds, "--subdirs"]) == 0
    assert main([*command, "7"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("OUT").rglob("*.png")}
    assert len(before) == 4
    for seeds in ("1-2", "7", "1003"):
        assert "exists; choose other seeds or another folder, or add --overwrite" in fails(capsys, *command, seeds)
    for folder, file in (("images", "0.png"), ("model", "README.md")):
        said = fails(capsys, *command[:4], "--out", folder, "--seeds", "5", "--overwrite")
        assert f"{folder} holds {file}, " in said and "choose an empty folder" in said
    assert {path: path.stat().st_mtime_ns for path in Path("OUT").rglob("*.png")} == before
    assert main([*command, "7", "--overwrite"]) == 0


@pytest.mark.parametrize("command", [*MODELS.values()], ids=[*MODELS])
def test_a_model_replaces_no_mount_point_and_not_the_current_folder(command, capsys, monkeypatch):
    words = [word if word != "OUT" else "." for word in command.split()]
    assert "it holds the current folder; name another one" in fails(capsys, *words)
    words[-1] = "images/../.."
    assert "it holds the current folder" in fails(capsys, *words)
    monkeypatch.setattr(outputs, "mounted", lambda path: True)
    assert "OUT is a mount point, which cannot be replaced; choose a folder in it" in fails(capsys, *command.split())


def test_what_is_mounted(tmp_path):
    assert outputs.mounted(Path("/")) and outputs.mounted(Path("/proc")) == os.path.ismount("/proc")
    assert not outputs.mounted(tmp_path) and not outputs.mounted(tmp_path / "missing")


def test_no_file_replaces_a_mount_point(capsys, monkeypatch):
    monkeypatch.setattr(outputs, "mounted", lambda path: True)
    assert "OUT.png is a mount point" in fails(capsys, *FILES["sample --grid"].split())


def test_a_link_to_a_folder_is_followed(tmp_path):
    Path("disk").mkdir()
    for link, command in (("a", FOLDERS["sample --out"]), ("b", MODELS["convert"])):
        Path("disk", link).mkdir()
        Path(link).symlink_to(Path("disk", link))
        assert main(command.replace("OUT", link).split()) == 0
        assert Path(link).is_symlink() and any(Path("disk", link).iterdir())
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stream", ["/dev/stdout", "/proc/self/fd/1", "/dev/null"])
def test_streams_are_no_files(stream, capsys):
    command = FILES["eval --json"].replace("OUT", stream).split()
    assert f"{stream}: expected the name of a file to write; it is a" in fails(capsys, *command)


def test_the_file_that_standard_output_goes_to(capfd):
    """It would be replaced, and the rest of the output lost."""
    saved = os.dup(1)
    file = os.open("log.txt", os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.dup2(file, 1)
        code = main(FILES["eval --json"].replace("OUT", "log.txt").split())
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(file)
    assert code == 2
    assert "log.txt is where standard output or standard error goes" in capfd.readouterr().err


SAME = [
    ("export model model/model.safetensors", "model/model.safetensors lies in the input model"),
    ("export model model/more.safetensors", "lies in the input model"),
    ("data pack images.zip images.zip", "images.zip is an input of this command"),
    ("data pack images.zip link/images.zip", "is an input of this command"),
    ("data pack images images/all.zip", "images/all.zip lies in the input images"),
    ("data latents images.zip images.zip", "is an input of this command"),
    ("eval images --reference images.zip --metrics fd_pixels --json images.zip", "is an input of this command"),
    ("eval images.zip --reference digits --metrics fd_pixels --markdown images.zip", "is an input of this command"),
    ("eval images --reference images.zip --metrics fd_pixels --json a --markdown ./a", "are the same file"),
    ("eval reference images images/x.npz --metrics fd_pixels", "images/x.npz lies in the input images"),
    ("eval pairs images images.zip --metrics psnr --json images.zip", "is an input of this command"),
    (
        "convert model/model.safetensors model",
        "the input model/model.safetensors lies in model, which would be replaced",
    ),
    ("distill digits:sid --teacher model --out model --fresh", "model is an input of this command"),
    ("distill digits:sid --teacher run/snapshots/1 --out run --fresh", "the input run/snapshots/1 lies in run"),
    ("compare sid digits:sid --data digits --out . --fresh", "sid is an input of this command"),
    (
        "restore model images --task jpeg --preset balanced --class none --out images",
        "images is an input of this command",
    ),
    (
        "restore model images --task jpeg --preset balanced --class none --out images/x",
        "images/x lies in the input images",
    ),
    ("restore model images --task box_inpainting --mask m/x.png --class none --out m", "the input m/x.png lies in m"),
]


@pytest.mark.parametrize(("command", "message"), SAME, ids=[command for command, _ in SAME])
def test_inputs_stay(command, message, capsys):
    Path("link").symlink_to(".")
    shutil.copytree("model", "run/snapshots/1")
    shutil.copytree("model", "sid")
    shutil.copytree("images", "m")
    shutil.copy("images/0.png", "m/x.png")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert message in fails(capsys, *command.split())
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_hard_link_is_the_same_file(capsys):
    os.link("images.zip", "same.zip")
    assert "is an input" in fails(capsys, "data", "pack", "images.zip", "same.zip")


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys, monkeypatch):
    """Whatever the reason: the check does what the write will do."""

    def full(path, mode=0o777):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "mkdir", full)
    for command, out in ((FILES["sample --grid"], "OUT.png"), (FOLDERS["sample --out"], "OUT")):
        assert fails(capsys, *command.split()) == f"fewstep: error: {out}: no space left on device\n"


def test_long_names(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    assert main(["sample", "model", "--seeds", "0", "--steps", "1", "--grid", str(path)]) == 0
    assert path.is_file()


@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_umask_counts(mask, file, folder):
    before = os.umask(mask)
    try:
        for number, command in enumerate(
            [*FILES.values(), FOLDERS["sample --out"], FOLDERS["restore"], MODELS["convert"]]
        ):
            if "latents" not in command:  # which needs a VAE
                assert main(command.replace("OUT", f"made/{number}/OUT").split()) == 0
    finally:
        os.umask(before)
    for path in [Path("made"), *Path("made").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_a_check_leaves_nothing_behind(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outputs.file(Path("a/b/c.png"), apart=["images"], outside=[None, "digits"])
    outputs.folder(Path("a/b"))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(NotADirectoryError):
        outputs.file(Path("images.zip/x/y.png"))
