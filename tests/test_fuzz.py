"""What `make fuzz` has found stays mended, and its watch sees what it must."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fewstep.cli.arguments import read_yaml
from fewstep.data import images
from fewstep.data.sources import open_source
from fewstep.inverse.tasks import read_array, task_operator
from fewstep.io import model_folder
from fewstep.io.convert.feature_weights import published_tensors
from fewstep.io.reference_files import open_reference
from fewstep.metrics.protocol import read_results
from fewstep.report.page import write_report
from fewstep.report.records import read_log
from fewstep.train.log import Lines
from fewstep.train.loop import fit
from tests import ROOT
from tests.train.test_run import teacher_run

BAD_READERS = """
import os, socket, sys
from pathlib import Path
from tests.fuzz.watch import Watch

def compute(folder):
    while True:
        pass

readers = {
    "runs code": lambda folder: eval(compile("1 + 1", "<pickle>", "eval")),
    "starts a process": lambda folder: os.system("true"),
    "connects": lambda folder: socket.socket(),
    "writes beside": lambda folder: (folder.parent / "x").write_text(""),
    "removes": lambda folder: os.rename(folder / "a", folder.parent / "b"),
    "raises": lambda folder: {}["a"],
    "takes memory": lambda folder: len(bytearray(100 << 20)),
    "computes": compute,
    "is good": lambda folder: (folder / "x").write_text("") and os.mkdir(folder / "y"),
    "refuses": lambda folder: int("x"),
}
watch, case = Watch(), Path(sys.argv[1])
import tests.fuzz.watch
tests.fuzz.watch.SECONDS, tests.fuzz.watch.MEBIBYTES = 0.2, 80
for name, reader in readers.items():
    case.mkdir(exist_ok=True)
    (case / "a").touch()
    print(name, "|", *watch.failure(reader, case))
"""


def test_the_watch_sees_what_a_reader_must_not_do(tmp_path):
    command = [sys.executable, "-c", BAD_READERS, str(tmp_path / "case")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seen = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert seen.pop("is good") == "None False" and seen.pop("refuses") == "None True"
    words = (
        "exec",
        "os.system",
        "socket.__new__",
        "open changes",
        "os.rename changes",
        "KeyError",
        "took 1",
        "Slow: computed",
    )
    assert all(text.startswith(word) for text, word in zip(seen.values(), words, strict=True)), seen


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_pipes_are_not_waited_for(denoiser, tmp_path):
    model = model_folder.save(denoiser, tmp_path / "model")
    for read, name in [
        (lambda p: model_folder.load(p.parent), "model/model.safetensors"),
        (images, "x.zip"),
        (open_source, "x.tar"),
        (images, "x.npz"),
        (open_reference, "y.npz"),
        (open_reference, "y.pkl"),
        (read_array, "x.npy"),
        (read_results, "x.json"),
        (lambda p: Lines(p, 0), "log.jsonl"),
        (lambda p: task_operator("box_inpainting", (1, 8, 8), mask=p), "x.png"),
    ]:
        with pytest.raises(ValueError, match="it is a pipe"):
            read(pipe(tmp_path / name))
    pipe(model / "config.json")
    with pytest.raises(ValueError, match="neither a model"):
        model_folder.load(model)


def test_a_link_to_itself_is_no_picture(tmp_path):
    (tmp_path / "results.json").write_text('[{"model": "m", "grid": "a.png"}]')
    (tmp_path / "a.png").symlink_to("a.png")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        write_report(tmp_path)


def array_file(shape, kind="|u1", content=b"\0"):
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_headers_of_arrays_are_not_believed(tmp_path):
    path = tmp_path / "x.npy"
    broken = b"\x93NUMPY\x01\x00" + struct.pack("<H", 12) + b"{'descr': '\n" + bytes(9)  # half a text, for the parser
    for content, message in [
        (broken, "expected an array of NumPy"),
        (array_file((2**40,)), "cut off or damaged; expected .* bytes of .*; got 1$"),
        (array_file((True,)), "expected an array of numbers"),
        (array_file((-1,)), "expected an array of numbers"),
        (array_file((1,), "|O"), "expected an array of numbers"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_array(path)
    np.save(path, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert np.array_equal(read_array(path), np.arange(6.0).reshape(2, 3))


def test_a_small_file_does_not_unfold_to_a_large_array(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.runtime.archives.MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", array_file((3, 1024, 1024, 1), content=bytes(3 << 20)))
    with pytest.raises(ValueError, match="no images are so regular"):
        images(tmp_path / "x.npz")
    head = bytes([0, 0, 8, 1]) + struct.pack(">I", 2**28 - 1)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 28, 28))
    )
    with pytest.raises(ValueError, match="expected 268435455 images of 28x28"):
        open_source(tmp_path / "t10k-images-idx3-ubyte.gz")


def test_damaged_archives_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
    data = (tmp_path / "x.zip").read_bytes()
    at = data.index(b"PK\x01\x02")
    (tmp_path / "x.zip").write_bytes(data[: at + 6] + b"\xff" + data[at + 7 :])  # a version that is yet to come
    with pytest.raises(ValueError, match="is it truncated, or another format"):
        images(tmp_path / "x.zip")
    (tmp_path / "x.pt").write_bytes(data[:at] + b"PK\x07\x07" + data[at + 4 :])
    with pytest.raises(ValueError, match="the archive is damaged"):
        published_tensors(tmp_path / "x.pt")
    # The end of an archive on several disks, which Python's check of the kind of a file refuses by another error
    disks = b"PK\x06\x07" + struct.pack("<IQI", 1, 0, 2) + b"PK\x05\x06" + bytes(18)
    (tmp_path / "x.pt").write_bytes(data[:at] + disks)
    with pytest.raises(ValueError, match="the archive is damaged: zipfiles that span multiple disks"):
        published_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("value", ["[]", '"x"', "null", "NaN", "Infinity", "1" * 400, "true"])
def test_results_are_numbers(tmp_path, value):
    (tmp_path / "x.json").write_text(f'[{{"metric": "fid", "value": {value}, "n": 9}}]')
    with pytest.raises(ValueError, match="expected a list of results"):
        read_results(tmp_path / "x.json")


def test_entries_of_a_card_have_their_types(denoiser, tmp_path):
    path = model_folder.save(denoiser, tmp_path / "model") / "config.json"
    config = json.loads(path.read_text())
    config["card"] |= {"nimg": "many", "ema": []}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the wrong type: nimg, ema"):
        model_folder.card(tmp_path / "model")


def test_deep_options_are_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("[" * 500)
    with pytest.raises(ValueError, match="cannot be read as options"):
        read_yaml(tmp_path / "x.yaml")


def test_pictures_are_no_programs(tmp_path):
    """PostScript under another name, for which the image library would start an interpreter."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for path, read in [
        (tmp_path / "run" / "samples" / "1.png", lambda p: write_report(tmp_path)),
        (tmp_path / "mask.png", lambda p: task_operator("box_inpainting", (1, 8, 8), mask=p)),
    ]:
        path.write_bytes(postscript)
        with pytest.raises(ValueError, match="the content is not an image"):
            read(path)


def test_counters_of_a_checkpoint_are_numbers(tmp_path, capsys):
    fit(teacher_run(until=16), tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir()) / "state.json"
    state = json.loads(newest.read_text())
    varies = {"seconds": state["seconds"], "shards": state["shards"]}  # the library orders a shard's metadata at random
    for change in ({"nimg": None}, {"position": -1}, {"scalers": ""}, {"seconds": []}):
        newest.write_text(json.dumps(state | change))
        fit(teacher_run(until=16), tmp_path)  # from the checkpoint before
        assert "is damaged" in capsys.readouterr().err
        found = json.loads(newest.read_text())  # written anew
        assert found["seconds"] > 0 and found | varies == state | varies


def test_values_of_options_that_refer_to_each_other_are_refused(tmp_path):
    """Ten lines, a billion words; in the message of an error, too."""
    anchors = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(10))
    merged = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    for text in (anchors, merged, "? [a]\n: 1\n", "lr: [[[[1]]]]\n"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match="option .* must be a number, a word or true/false") as caught:
            read_yaml(tmp_path / "x.yaml")
        assert len(str(caught.value)) < 300
    (tmp_path / "x.yaml").write_text("a: 1\n" * 2**14)
    with pytest.raises(ValueError, match="longer than the 65536 characters"):
        read_yaml(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("lr: &lr 0.001\nfake_lr: *lr\n")
    assert read_yaml(tmp_path / "x.yaml") == {"lr": 0.001, "fake_lr": 0.001}


def nested(depth):
    return json.loads('{"a":' * depth + "1" + "}" * depth)


def test_numbers_and_depths_of_records_have_bounds(tmp_path):
    row = {"metric": "fid", "value": 1.0, "n": 9, "protocol": {}}
    for name, content in [
        ("results.json", [{"model": "m", "fid": 1.0, "protocol": nested(900)}]),
        ("a.json", [row | {"protocol": nested(900)}]),
        ("run.json", {"identity": nested(900)}),
    ]:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"{name} is not readable as JSON .*more than 100 deep"):
            write_report(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "a.json").write_text(json.dumps([row | {"value": 10**400}]))
    with pytest.raises(ValueError, match="expected results as fewstep eval writes them"):
        write_report(tmp_path)
    (tmp_path / "a.json").unlink()
    (tmp_path / "results.json").write_text(json.dumps([{"model": "m", "nfe": 10**400, "fid": 10**400, "kid": 1.0}]))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text(
        f'{{"nimg": 1, "loss": 1{"0" * 400}}}\n{{"nimg": 1{"0" * 400}, "loss": 1}}\n{{"nimg": NaN, "loss": 1}}\n'
        + '{"nimg": 2, "loss": 2}\n{"nimg": 3, "seconds": 1e999, "loss": 3, "x": '
        + "[" * 900
        + "]" * 900
        + "}\n"
    )
    write_report(tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    assert log.unreadable == 3 and log.curves["loss"].value.tolist() == [2.0]


def test_deep_lines_of_a_log_are_left_out(tmp_path, capsys):
    """Python's JSON reads deeper values than it writes."""
    deep = '{"nimg": 2, "x": ' + "[" * 950 + "]" * 950 + "}"
    (tmp_path / "log.jsonl").write_text(f'{{"nimg": 1}}\n{deep}\n{{"nimg": 3}}\n')
    assert [line["nimg"] for line in Lines(tmp_path / "log.jsonl", 9).kept] == [1, 3]
    assert "has 1 line that is damaged" in capsys.readouterr().err
