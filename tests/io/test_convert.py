"""Upstream networks: imported strictly, equal in every bit, and equal in numbers to the reference implementations."""

from __future__ import annotations

import dataclasses
import math
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import EDM, IDDPM, VE, VP, Boundary
from fewstep.io.convert import convert, fetch, load_snapshot, to_denoiser, weights_license
from fewstep.io.convert.snapshot import UpstreamSnapshot, parse_snapshot
from fewstep.io.export import upstream_state_dict
from fewstep.io.unpickle import Record, read
from tests import GOLDEN

NETWORKS = [
    "edm-ddpmpp-cond",
    "edm-ncsnpp-uncond",
    "edm-adm-cond",
    "vp-ddpmpp-uncond",
    "ve-ncsnpp-uncond",
    "iddpm-adm-cond",
    "edm2-cond",
    "edm2-uncond",
]


@cache
def loaded(name: str) -> UpstreamSnapshot:
    """The snapshot in a golden file, read once for all tests, which do not change it."""
    return load_snapshot(GOLDEN / f"{name}.pkl")


@cache
def teacher(name: str) -> Denoiser:
    return to_denoiser(loaded(name), kind="teacher")


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_outputs_are_the_reference_s(name):
    denoiser = teacher(name)
    numbers = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    x, sigma = numbers["x"], numbers["sigma"]
    label = numbers["labels"].long() if denoiser.num_classes else None
    cases = {"denoised": denoiser(x, sigma, label)}
    if "denoised_unconditional" in numbers:
        cases["denoised_unconditional"] = denoiser(x, sigma)
    if "logvar" in numbers:
        cases["logvar"] = denoiser.log_variance(sigma).reshape(numbers["logvar"].shape)
    for what, found in cases.items():
        assert (found - numbers[what]).abs().max() <= 1e-5 * numbers[what].abs().max(), what


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_every_bit_and_name_is_kept(name):
    original = loaded(name).state
    back = upstream_state_dict(teacher(name))
    assert list(back) == list(original)
    for key, tensor in original.items():
        if key == "u":  # the table of levels is computed again; its last bits depend on the processor
            torch.testing.assert_close(back[key], tensor, rtol=1e-4, atol=0)
        else:
            assert back[key].dtype == tensor.dtype
            assert torch.equal(back[key], tensor), key


def test_half_precision_stays_what_it_is():
    """EDM2's files hold every tensor in float16."""
    found = loaded("edm2-cond")
    half = dataclasses.replace(found, state={k: v.half() for k, v in found.state.items()})
    denoiser = to_denoiser(half)
    assert all(
        torch.equal(a, b) for a, b in zip(upstream_state_dict(denoiser).values(), half.state.values(), strict=True)
    )
    numbers = np.load(GOLDEN / "edm2-cond.npz")
    x, sigma, label = (torch.from_numpy(numbers[k]) for k in ("x", "sigma", "labels"))
    with torch.no_grad():
        error = denoiser(x, sigma, label.long()) - torch.from_numpy(numbers["denoised"])
    assert error.abs().max() < 0.02


def test_the_preconditioning_is_the_file_s():
    found = {name: teacher(name).precondition for name in NETWORKS}
    assert found["edm-adm-cond"] == found["edm2-cond"] == EDM(0.5, 0.0, math.inf)
    assert found["vp-ddpmpp-uncond"] == VP()
    assert found["ve-ncsnpp-uncond"] == VE()
    assert found["iddpm-adm-cond"] == IDDPM()
    assert abs(IDDPM().sigma_min / 0.006422337 - 1) < 1e-4
    assert abs(IDDPM().sigma_max / 20291.17 - 1) < 1e-4
    changed = loaded("edm-adm-cond")
    changed = dataclasses.replace(changed, attributes={**changed.attributes, "sigma_data": 1, "sigma_max": 80})
    assert to_denoiser(changed, kind="teacher").precondition == EDM(1.0, 0.0, 80.0)


def test_the_boundary_condition():
    """The identity at sigma = eps, and GDD's coefficients at its only level."""
    c = Boundary()(torch.tensor([0.002, 80.0], dtype=torch.float64))
    torch.testing.assert_close(c.skip, torch.tensor([1.0, 3.90629e-5], dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(c.out, torch.tensor([0.0, 0.4999777], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(c.noise[1].item(), 1.0955067, rtol=1e-7, atol=0)


def records(record: Record):
    yield record
    modules = record.state.get("_modules")
    assert isinstance(modules, dict)
    for module in modules.values():
        yield from records(module)


def golden(name: str) -> tuple[dict, Record]:
    content = read(GOLDEN / f"{name}.pkl")
    assert isinstance(content, dict)
    return content, content["ema"]


@pytest.mark.parametrize(
    ("source", "class_name", "network", "levels"),
    [
        ("edm-ddpmpp-cond", "EDMPrecond_EncoderDecoder", "SongUNet_EncoderDecoder", (2.5,)),
        ("edm-ncsnpp-uncond", "GDDPrecond", "SongUNet", (80.0,)),
        ("edm-adm-cond", "GDDPrecond", "DhariwalUNet", (80.0,)),
    ],
)
def test_students_are_generators(source, class_name, network, levels):
    content, ema = golden(source)
    ema.class_name = class_name
    list(records(ema))[1].class_name = network
    ema.state["eps"] = 0.002
    denoiser = to_denoiser(parse_snapshot(content))
    assert denoiser.levels == levels
    assert type(denoiser.precondition) is (Boundary if class_name == "GDDPrecond" else EDM)


@pytest.mark.parametrize("name", ["GenerativeDenoiser", "PrecondCondition", "DiscriminatorCondition"])
def test_halves_of_networks_are_not_whole_ones(name):
    """NCVSD's classes hold encoders and a decoder; around EDM2's network they are no intact file."""
    content, ema = golden("edm2-cond")
    ema.class_name = name
    ema.state |= {"gamma": 0.4, "init_sigma": 80.0}
    with pytest.raises(ValueError, match=r"holds the network ModuleDict|does not fit its|is not a denoiser"):
        to_denoiser(parse_snapshot(content))


def test_unknown_classes_are_named():
    content, ema = golden("edm2-cond")
    ema.class_name = "MyPrecond"
    with pytest.raises(ValueError, match="holds a MyPrecond; the preconditionings EDMPrecond, "):
        parse_snapshot(content)
    content, ema = golden("edm2-cond")
    list(records(ema))[1].class_name = "MyUNet"
    with pytest.raises(ValueError, match="holds the network MyUNet; known are DhariwalUNet, "):
        parse_snapshot(content)


def test_every_tensor_that_does_not_fit_is_named():
    found = loaded("edm-ncsnpp-uncond")
    state = dict(found.state)
    del state["model.map_layer0.weight"]
    state["model.map_layer1.bias"] = torch.zeros(3)
    state["model.more"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit") as error:
        to_denoiser(dataclasses.replace(found, state=state), kind="teacher", where="a.pkl")
    for part in (
        "a.pkl",
        "missing net.map_layer0.weight",
        "unexpected net.more",
        "net.map_layer1.bias has shape (3,), not (64,)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_blocks": 60_000}, "60000 blocks at each of 2"),
        ({"num_blocks": 2**40}, "num_blocks of the network is out of range"),
        ({"model_channels": 60_000, "channel_mult": [1, 60_000]}, "wide, and has"),
        ({"channel_mult": []}, "channel_mult of the network"),
        ({"channel_mult": [1] * 33}, "channel_mult of the network"),
        ({"channel_mult": [1, "2"]}, "channel_mult of the network"),
        ({"embedding_type": "other"}, "embedding_type of the network"),
        ({"dropout": math.nan}, "dropout of the network"),
        ({"dropout": -3.0}, "dropout of the network"),
        ({"model_channels": 2}, "group norm needs at least 4 channels; got 2"),
        ({"model_channels": np.zeros(3)}, "model_channels of the network"),
        ({"groups": 2}, "has no option groups"),
        ({"img_resolution": 15}, "not divisible"),
    ],
)
def test_absurd_options_are_refused(options, says):
    found = loaded("edm-ncsnpp-uncond")
    with pytest.raises(ValueError, match=says):
        to_denoiser(dataclasses.replace(found, options={**found.options, **options}), kind="teacher")


def test_modules_that_are_no_tree_are_refused():
    """A module below itself, or many times, would make a small file a long walk."""
    content, ema = golden("edm-ncsnpp-uncond")
    modules = list(records(ema))[1].state["_modules"]
    assert isinstance(modules, dict)
    modules["loop"] = ema
    with pytest.raises(ValueError, match="not a dict of its own"):
        parse_snapshot(content)
    content, ema = golden("edm-ncsnpp-uncond")
    for _ in range(40):
        ema = Record("m", "EDMPrecond", {"_parameters": {}, "_buffers": {}, "_modules": {"model": ema}})
    ema.state["_modules"]["model"] = dataclasses.replace(  # type: ignore[index]  # a dict by the line above
        ema.state["_modules"]["model"],  # type: ignore[index]
        class_name="SongUNet",
        state={**ema.state["_modules"]["model"].state, "_init_kwargs": {}},  # type: ignore[index]
    )
    with pytest.raises(ValueError, match="nested more than 32 deep"):
        parse_snapshot(ema)


def test_buffers_that_are_not_persistent_are_left_out():
    content, ema = golden("edm-ncsnpp-uncond")
    ema.state["_buffers"] = {"kept": torch.zeros(1), "cache": torch.zeros(1), "none": None}
    ema.state["_non_persistent_buffers_set"] = {"cache"}
    state = parse_snapshot(content).state
    assert "kept" in state
    assert not {"cache", "none"} & set(state)


def test_levels_of_iddpm_that_are_not_the_formula_s_are_refused():
    found = loaded("iddpm-adm-cond")
    for u in (found.state["u"] * 1.01, found.state["u"][:-1]):
        with pytest.raises(ValueError, match="levels u"):
            to_denoiser(dataclasses.replace(found, state={**found.state, "u": u}))


def test_provenance():
    path = GOLDEN / "edm-ddpmpp-cond.pkl"
    _, provenance = convert(
        path, source="https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl"
    )
    assert provenance.bytes == path.stat().st_size
    assert len(provenance.sha256) == 64
    assert provenance.class_names == ("EDMPrecond", "SongUNet")
    assert provenance.license.startswith("CC BY-NC-SA 4.0")


@pytest.mark.parametrize(
    ("source", "student", "says"),
    [
        ("https://nvlabs-fi-cdn.nvidia.com/x.pkl", False, "CC BY-NC-SA 4.0 (NVIDIA)"),
        ("edm2-img512-xs-2147483-0.135 (1).pkl?download=true", False, "CC BY-NC-SA 4.0 (NVIDIA)"),
        ("baseline-imagenet-64x64-cond-adm.pkl", False, "CC BY-NC-SA 4.0 (NVIDIA)"),
        ("cifar_uncond_gdd_i.pkl", True, "that of its teacher"),
        ("edm-cifar10-32x32-cond-vp.pkl", True, "that of its teacher"),
        ("network-snapshot-200000.pkl", False, "not stated by the file"),
    ],
)
def test_licenses_of_weights(source, student, says):
    assert weights_license(source, student=student).startswith(says)


# Fetching


class Server(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        self.protocol_version = "HTTP/1.0"
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://example.org/file.pkl")
            self.end_headers()
            return
        if self.path == "/page.pkl":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html>")
            return
        if self.path == "/noise":
            self.wfile.write(b"\0noise\r\n\r\n")
            return
        if self.path == "/chunks":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n12345")
            return
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"12345")
            return
        if self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(404 if self.path.startswith("/none.pkl") else 200)
        self.send_header("Content-Length", {"/half.pkl": "9", "/long": "3"}.get(self.path, "5"))
        self.end_headers()
        self.wfile.write(b"12345")

    def log_message(self, format, *args):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_happens_once(address, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    before = Server.requests
    path = fetch(f"{address}/edm.pkl?download=1")
    assert path.read_bytes() == b"12345"
    assert path.parent == tmp_path
    assert path.name.endswith("-edm.pkl")
    assert fetch(f"{address}/edm.pkl?download=1", offline=True) == path
    assert Server.requests == before + 1


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("half.pkl", "5 of 9"),
        ("none.pkl", "404"),
        ("page.pkl", "/page.pkl answers with a web page; give the address of the file itself"),
        ("none.pkl?token=5ecret", r"/none\.pkl cannot be fetched: HTTP 404 Not Found; check the address"),
        ("away", "not an http or https address"),
        ("file", "Redirection to url 'file:///etc/passwd' is not allowed"),
        ("endless", "/endless does not declare its length, so an interrupted download could not be detected"),
        ("long", "/long continues after the 3 bytes that it declares"),
        ("noise", "/noise cannot be fetched: .*noise"),
        ("chunks", "/chunks cannot be fetched: IncompleteRead"),
        ("a b", "/a b cannot be fetched: URL can't contain"),
    ],
)
def test_a_failed_download_leaves_nothing(address, tmp_path, path, error):
    with pytest.raises((OSError, ValueError), match=error):
        fetch(f"{address}/{path}", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_downloads_have_limits(address, tmp_path, monkeypatch):
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr("fewstep.io.convert.download.time.monotonic", lambda: next(clock))
    monkeypatch.setenv("FEWSTEP_DOWNLOAD_HOURS", "0.5")
    with pytest.raises(OSError, match=r"takes longer than 0\.5 hours; set FEWSTEP_DOWNLOAD_HOURS"):
        fetch(f"{address}/edm.pkl", cache=tmp_path)
    monkeypatch.setenv("FEWSTEP_DOWNLOAD_HOURS", "2")
    monkeypatch.setenv("FEWSTEP_DOWNLOAD_GIB", "4e-9")
    with pytest.raises(OSError, match=r"larger than 4e-09 GiB; set FEWSTEP_DOWNLOAD_GIB"):
        fetch(f"{address}/edm.pkl", cache=tmp_path)
    for text in ("none", "0", "nan", "-1"):
        monkeypatch.setenv("FEWSTEP_DOWNLOAD_GIB", text)
        with pytest.raises(ValueError, match=f"variable FEWSTEP_DOWNLOAD_GIB must be a number above 0; got '{text}'"):
            fetch(f"{address}/edm.pkl", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("FEWSTEP_DOWNLOAD_GIB", "inf")
    assert fetch(f"{address}/edm.pkl", cache=tmp_path).read_bytes() == b"12345"


def test_what_is_not_fetched(tmp_path):
    with pytest.raises(ValueError, match="not in the cache"):
        fetch("https://example.org/a.pkl", offline=True, cache=tmp_path)
    for source in ("ftp://example.org/a.pkl", "file:///etc/passwd", "s3://bucket/a.pkl"):
        with pytest.raises(ValueError, match="has the scheme"):
            fetch(source, cache=tmp_path)
    with pytest.raises(ValueError, match=r"absent\.pkl is missing"):
        fetch(tmp_path / "absent.pkl")
    file = tmp_path / "here.pkl"
    file.write_bytes(b"N.")
    assert fetch(file) == fetch(str(file)) == file
