"""The reader of upstream files reads what PyTorch and NumPy write; a hostile file can neither run nor bloat it."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.io.unpickle import Blob, Record, UnsafePickle, read
from tests import GOLDEN, ROOT

CANARY = Path(os.environ.get("FEWSTEP_TEST_CANARY", "canary-of-the-unpickle-tests"))


# A pickle, by hand


def op(code: bytes, *numbers: tuple[str, int]) -> bytes:
    return code + b"".join(struct.pack("<" + form, n) for form, n in numbers)


def text(value: str) -> bytes:
    data = value.encode()
    return op(pickle.BINUNICODE, ("I", len(data))) + data


def blob(data: bytes) -> bytes:
    return op(pickle.BINBYTES, ("I", len(data))) + data


def integer(n: int) -> bytes:
    return pickle.dumps(n, protocol=2)[2:-1]


def name(module: str, what: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{what}\n".encode()


def sequence(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(*arguments) + pickle.REDUCE


def mapping(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.DICT


SAVED_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
LITTLE = mapping(text("little_endian"), pickle.NEWTRUE) + pickle.STOP
LONG = mapping(text("little_endian"), pickle.NEWTRUE, text("x"), text("y" * 5000)) + pickle.STOP
ORDERED = name("collections", "OrderedDict")
ENCODE = name("_codecs", "encode")
LOAD = name("torch.storage", "_load_from_bytes")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def saved(
    n: int, data: bytes, *, declared: int | None = None, keys: tuple[str, ...] = ("0",), view: bytes = b"N"
) -> bytes:
    """A storage of n float32 numbers, as torch.save wrote it before its zip format."""
    reference = sequence(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(n), view)
    listed = pickle.EMPTY_LIST + pickle.MARK + b"".join(text(key) for key in keys) + pickle.APPENDS
    return (
        SAVED_HEAD
        + LITTLE
        + reference
        + pickle.BINPERSID
        + pickle.STOP
        + listed
        + pickle.STOP
        + struct.pack("<q", n if declared is None else declared)
        + data
    )


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, storage: bytes | None = None, n: int = 4
) -> bytes:
    storage = storage or call(LOAD, blob(saved(n, bytes(4 * n))))
    shapes = [sequence(*(integer(i) for i in ints)) for ints in (size, stride)]
    return call(REBUILD, storage, integer(offset), *shapes, pickle.NEWFALSE, call(ORDERED))


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for member, data in members.items():
            target.writestr(member, data)
    return file.getvalue()


def stored(n: int, key: str = "0") -> bytes:
    """The pickle in an archive of torch.save that holds one storage."""
    reference = sequence(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), integer(n))
    return tensor((n,), (1,), storage=reference + pickle.BINPERSID) + pickle.STOP


def laughs(depth: int) -> bytes:
    """((((), ()), ((), ())), ...): 2^depth leaves in `depth` instructions."""
    return pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * depth


def many(times: int, instruction: bytes) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + instruction * times + pickle.APPENDS


INERT = "is read as the name of what it would have called, or got"


def hostile() -> dict[str, tuple[bytes, str | None]]:
    """Name -> (file, what the refusal says, INERT, or None for a file that is odd and harmless)."""
    touch = f"touch {CANARY}"
    run = f"__import__('os').system({touch!r})"
    files: dict[str, tuple[bytes, str | None]] = {}
    for protocol in range(6):
        files[f"os.system, protocol {protocol}"] = (
            pickle.dumps(Call(os.system, touch), protocol),
            INERT,
        )
    for function in (eval, exec, compile, __import__, getattr, open, input, map):
        files[f"builtins.{function.__name__}"] = (pickle.dumps(Call(function, run)), INERT)
    chain = call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system"))
    bare = {
        "getattr chain": (call(chain, text(touch)), INERT),
        "functools.partial": (
            pickle.dumps(functools.partial(os.system, touch))[:-1],
            INERT,
        ),
        "operator.attrgetter": (call(name("operator", "attrgetter"), text("system")), INERT),
        "types.FunctionType": (call(name("types", "FunctionType")), INERT),
        "runpy": (call(name("runpy", "_run_code"), text(run)), INERT),
        "torch.load": (call(name("torch.serialization", "load"), text("x")), INERT),
        "torch.hub": (call(name("torch.hub", "load"), text("x")), INERT),
        "numpy.load": (call(name("numpy", "load"), text("x")), INERT),
        "a name with dots": (text("collections") + text("OrderedDict.fromkeys") + b"\x93", INERT),
        "globals of a known name": (name("torch._utils", "_rebuild_tensor_v2.__globals__"), INERT),
        "a subclass hook": (name("torch.nn.modules.container", "ModuleDict.__init_subclass__"), INERT),
        "numpy.ndarray called": (call(name("numpy", "ndarray"), integer(2**40)), INERT),
        # Calls of what a call returned, of texts, of memo entries
        "a called dict": (call(call(ORDERED), text(touch)), "expected a Global"),
        "a called text": (call(text("os.system"), text(touch)), "expected a Global"),
        "a called record": (
            name("torch.nn.modules.container", "ModuleDict") + b")\x81" + sequence(text(touch)) + pickle.REDUCE,
            INERT,
        ),
        "a call without a tuple": (ORDERED + pickle.NONE + pickle.REDUCE, "expected a tuple"),
        "arguments of a container": (
            call(name("torch.nn.modules.container", "ModuleDict"), text("x")),
            INERT,
        ),
        "NEWOBJ of a function": (LOAD + sequence(text("x")) + pickle.NEWOBJ, "expected a Blob"),
        "NEWOBJ_EX": (name("os", "system") + b")}" + pickle.NEWOBJ_EX, INERT),
        # Protocol 0 and the registry of extensions
        "INST": (b"(" + text(touch) + b"ios\nsystem\n", "INST"),
        "OBJ": (b"(" + name("os", "system") + text(touch) + b"o", "OBJ"),
        "OBJ of a known name": (b"(" + ORDERED + b"o", "OBJ"),
        "EXT1": (b"\x82\x01", "EXT1"),
        "EXT2": (b"\x83\x01\x00", "EXT2"),
        "EXT4": (b"\x84\x01\x00\x00\x00", "EXT4"),
        "STRING of Python 2": (b"S'abc'\n", "STRING"),
        "out-of-band buffer": (b"\x97", "NEXT_BUFFER"),
        "PERSID": (b"Pos.system\n", "PERSID"),
        "BINPERSID": (text(touch) + pickle.BINPERSID, "outside of itself"),
        "BINPERSID of a storage": (stored(4)[:-1], "outside of itself"),
        # State
        "BUILD of a list": (b"]" + mapping(text("__class__"), text("x")) + b"b", "state of a list"),
        "BUILD of a set": (b"\x8f" + mapping(text("__class__"), text("x")) + b"b", "state of a set"),
        "BUILD of a name": (ORDERED + mapping(text("make"), text("x")) + b"b", "state of a Global"),
        "BUILD of a tensor": (tensor((4,), (1,)) + mapping(text("data"), text("x")) + b"b", "state of a Tensor"),
        "BUILD with slots": (
            name("torch.nn.modules.container", "ModuleDict") + b")\x81" + sequence(b"}", b"}") + b"b",
            INERT,
        ),
        "__setstate__, __reduce__ and __dict__ as attributes": (
            name("torch.nn.modules.container", "ModuleDict")
            + b")\x81"
            + mapping(text("__setstate__"), text("x"), text("__dict__"), b"}", text("__reduce__"), b"N")
            + b"b",
            None,
        ),
        "BUILD twice": (
            name("torch.nn.modules.container", "ModuleDict") + b")\x81" + mapping(text("a"), b"N") + b"b" + b"}b",
            INERT,
        ),
        "__class__ of a dict": (call(ORDERED) + mapping(text("__class__"), text("x")) + b"b", None),
        # Sizes
        "an absurd storage": (call(LOAD, blob(saved(2**60, b""))), "more data than the file holds"),
        "a storage of -1": (call(LOAD, blob(saved(-1, b""))), "not a whole storage"),
        "a storage that is short": (call(LOAD, blob(saved(4, bytes(15)))), "truncated"),
        "a storage that lies": (call(LOAD, blob(saved(4, bytes(16), declared=5))), "declares 4 numbers and has 5"),
        "a storage without its key": (call(LOAD, blob(saved(4, bytes(16), keys=()))), "not those that are used"),
        "a storage with more keys": (call(LOAD, blob(saved(4, bytes(16), keys=("0", "1")))), "not those that are used"),
        "a storage that is a view": (
            call(LOAD, blob(saved(4, bytes(16), view=sequence(text("0"))))),
            "view of another",
        ),
        "a storage with a call": (
            call(LOAD, blob(SAVED_HEAD + LITTLE + call(name("os", "system"), text(touch)) + b".")),
            r"os\.system",
        ),
        "a storage with a known call": (call(LOAD, blob(SAVED_HEAD + LITTLE + call(ORDERED) + b".")), "only storages"),
        "a storage that is something else": (call(LOAD, blob(pickle.dumps(os.system, 0))), r"posix\.system|nt\.system"),
        "a storage used a million times": (
            call(LOAD, blob(saved(4096, bytes(4 * 4096))))
            + blob(saved(4096, bytes(4 * 4096)))
            + b"q\x00"
            + many(1000, LOAD + b"h\x00\x85R"),
            "more data than the file holds",
        ),
        "a small storage with long texts, used a thousand times": (
            blob(saved(1, bytes(4)).replace(LITTLE, LONG)) + b"q\x00" + many(1000, LOAD + b"h\x00\x85R"),
            "more data than the file holds",
        ),
        "a tensor beyond its storage": (tensor((5,), (1,)), "does not fit"),
        "a gigantic tensor": (tensor((2**40, 2**40), (1, 1)), "does not fit"),
        "a tensor expanded without bound": (tensor((2**62,), (0,)), "does not fit"),
        "an offset beyond": (tensor((2,), (1,), 3), "does not fit"),
        "a negative offset": (tensor((2,), (1,), -1), "integers from 0 on"),
        "a negative stride": (tensor((4,), (-1,), 3), "integers from 0 on"),
        "a negative size": (tensor((-4,), (1,)), "integers from 0 on"),
        "a stride that overflows": (tensor((2,), (2**62,)), "does not fit"),
        "strides that overflow together": (tensor((2, 2), (2**62, 2**62)), "does not fit"),
        "too few strides": (tensor((2, 2), (1,)), "2 dimensions and 1 strides"),
        "too many dimensions": (tensor((1,) * 65, (1,) * 65), "at most 16"),
        "an empty tensor of absurd shape": (tensor((0, 2**62, 2**62), (2**62, 2**62, 1)), "does not fit"),
        "a tensor without storage": (tensor((4,), (1,), storage=call(ORDERED)), "expected a Storage"),
        "a text beyond the file": (op(pickle.BINUNICODE8, ("Q", 2**62)) + b"x", "truncated"),
        "bytes beyond the file": (op(pickle.BINBYTES8, ("Q", 2**63)) + b"x", "truncated"),
        "a bytearray beyond the file": (op(pickle.BYTEARRAY8, ("Q", 2**40)) + b"x", "truncated"),
        "a long beyond the file": (op(pickle.LONG4, ("i", 2**31 - 1)), "at most 255"),
        "a long of negative size": (op(pickle.LONG4, ("i", -1)), "at most 255"),
        "an integer in a million digits": (b"I" + b"9" * 10**6 + b"\n", "does not end within 100"),
        "a name without end": (b"c" + b"a" * 10**6, "does not end within 200"),
        "a frame beyond the file": (op(pickle.FRAME, ("Q", 2**40)) + b"N", "frame of"),
        "a frame that is too short": (op(pickle.FRAME, ("Q", 1)) + text("abcdef"), None),
        "a memo entry far away": (b"N" + op(pickle.LONG_BINPUT, ("I", 2**32 - 1)), None),
        "a memo entry of 20 digits": (b"Np" + b"9" * 19 + b"\n", None),
        "a million instructions": (many(1_000_001, b"N"), "more than a million"),
        "records in records": (
            name("builtins", "getattr") + b"q\x00" + b"N" + b"q\x01" + (b"h\x00h\x01\x85Rq\x01" * 30_000),
            INERT,
        ),
        "a record set up again and again": (
            many(5000, sequence(text("a"), b"N"))
            + b"q\x00"
            + call(ORDERED, b"h\x00")
            + b"q\x01"
            + mapping(*(text(f"k{i}") + b"N" for i in range(5000)))
            + b"q\x02"
            + name("m", "C")
            + b")\x81"
            + b"h\x02b" * 1000,
            "more than a million",
        ),
        "keys that collide": (
            mapping(*(sequence(*(integer(-1 - (i >> k & 1)) for k in range(14))) + b"N" for i in range(2**14))),
            None,
        ),
        "a set of texts copied again and again": (
            many(5000, b"N") + b"q\x00" + many(5000, name("builtins", "set") + b"h\x00\x85R"),
            "more than a million",
        ),
        "a dict copied again and again": (
            many(5000, sequence(text("a"), b"N")) + b"q\x00" + many(5000, ORDERED + b"h\x00\x85R"),
            "more than a million",
        ),
        "a text encoded again and again": (
            text("x" * 100_000) + b"q\x00" + text("latin1") + b"q\x01" + many(1000, ENCODE + b"h\x00h\x01\x86R"),
            "more data than the file holds",
        ),
        # Shape of the data
        "2^200 laughs": (laughs(200), None),
        "2^200 laughs as a key": (mapping(laughs(200), b"N"), None),
        "2^200 laughs in a set": (b"\x8f(" + laughs(200) + b"\x90", None),
        "a list in itself": (b"]q\x00h\x00a", None),
        "a dict in itself": (b"}q\x00" + text("a") + b"h\x00s", None),
        "100,000 lists in lists": (b"]" * 100_000 + b"a" * 99_999, None),
        "100,000 tuples in tuples": (b")" + b"\x85" * 100_000, None),
        "a key of 2^200": (mapping(integer(2**200), b"N"), None),
        "an odd dict": (b"(Nd", "dict with 1"),
        "append to a dict": (b"}Na", "expected a list"),
        "set an item of a list": (b"]" + text("a") + b"Ns", "expected a dict"),
        "protocol 255": (b"\x80\xff", "protocol 255"),
        "nothing on the stack": (b"", "malformed"),
        "a call of nothing": (b"R", "malformed"),
        "an end without a beginning": (b"t", "malformed"),
        "an unknown memo entry": (b"h\x07", "malformed"),
        "a text that is no UTF-8": (b"X\x01\x00\x00\x00\xff", "malformed"),
        "a number that is none": (b"Fabc\n", "malformed number"),
        # NumPy
        "an array of objects": (call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), INERT),
        "a void dtype": (call(name("numpy", "dtype"), text("V1000000"), b"\x89", b"\x88"), INERT),
        "a dtype with fields": (
            call(name("numpy", "dtype"), text("f8")) + sequence(integer(3), laughs(3), b"N") + b"b",
            "little-endian",
        ),
        "a scalar that is short": (
            call(name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), text("f8")), blob(b"1234")),
            "do not match",
        ),
        "an array that lies": (
            call(
                name("numpy._core.numeric", "_frombuffer"),
                blob(bytes(8)),
                call(name("numpy", "dtype"), text("f8")),
                sequence(integer(2**40)),
                text("C"),
            ),
            "do not match its shape",
        ),
        # The persistence of upstream classes
        "source that would run": (
            call(
                name("torch_utils.persistence", "_reconstruct_persistent_obj"),
                mapping(
                    *(text("type"), text("class"), text("version"), integer(6), text("module_src"), text(run)),
                    *(text("class_name"), text("os.system"), text("state"), b"}"),
                ),
            ),
            None,
        ),
        "a persistent function": (
            call(
                name("torch_utils.persistence", "_reconstruct_persistent_obj"),
                mapping(text("type"), text("func"), text("version"), integer(6)),
            ),
            "not a class of version 6",
        ),
    }
    files |= {key: (code + pickle.STOP, says) for key, (code, says) in bare.items()}
    four = stored(4)
    files |= {
        "an empty file": (b"", "truncated"),
        "no STOP": (b"N", "truncated"),
        "a zip of other things": (archive({"a.png": b"x"}), "one data.pkl"),
        "a zip with two pickles": (archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "one data.pkl"),
        "a zip bomb": (
            archive({"a/data.pkl": b"N.", "a/data/0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "a zip with a call": (
            archive({"a/data.pkl": pickle.dumps(Call(os.system, touch))}),
            INERT,
        ),
        "a zip without the storage": (archive({"a/data.pkl": four}), "missing from the archive"),
        "a zip with a short storage": (archive({"a/data.pkl": four, "a/data/0": bytes(15)}), "has 15 bytes"),
        "a zip whose storage is a path": (
            archive({"a/data.pkl": stored(4, "../../etc/passwd"), "a/data/0": bytes(16)}),
            "missing from the archive",
        ),
        "a zip with an absurd storage": (archive({"a/data.pkl": stored(2**60), "a/data/0": bytes(16)}), "has 16 bytes"),
        "a big-endian zip": (archive({"a/data.pkl": b"N.", "a/byteorder": b"big"}), "big-endian"),
        "half a zip": (archive({"a/data.pkl": four, "a/data/0": bytes(16)})[:100], "damaged"),
    }
    return files


CORPUS = hostile()


READ_ALL = """
import json, resource, sys
import tests.io.test_unpickle as t
for benign in (b"N.", b"Va\\n.", t.archive({"a/data.pkl": b"N."})):
    t.read(benign)  # everything that is imported lazily is imported now
events, outcomes = [], {}
sys.addaudithook(lambda event, arguments: events.append(event))
if sys.platform.startswith("linux"):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
events.clear()
for name, (data, _) in t.CORPUS.items():
    try:
        outcomes[name] = [type(t.read(data)).__name__, ""]
    except Exception as error:
        outcomes[name] = [type(error).__name__, str(error)]
events = sorted(set(events))
print(json.dumps({"outcomes": outcomes, "events": events}))
"""
"""Reads the corpus and reports, for each file, the type of the result or the error. Python tells an audit hook about every
import, file, process, socket and piece of code."""


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """What happened when a process with bounded memory and time read the corpus, and the files that it left."""
    folder = tmp_path_factory.mktemp("reading")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "FEWSTEP_TEST_CANARY": str(folder / "canary"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run([sys.executable, "-c", READ_ALL], env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout) | {"files": list(folder.iterdir())}


@pytest.mark.parametrize("case", CORPUS)
def test_a_hostile_file_is_refused_by_what_it_does(reading, case):
    says = CORPUS[case][1]
    kind, message = reading["outcomes"][case]
    if says is INERT:
        assert kind in ("Record", "Global"), message
    elif says is None:
        assert message == ""
    else:
        assert kind == "UnsafePickle"
        assert re.search(says, message), message


def test_the_hostile_corpus_runs_nothing_in_bounded_memory_and_time(reading):
    harmless = {"object.__getattr__", "object.__setattr__", "sys._getframe", "array.__new__", "setrlimit"}
    assert set(reading["events"]) - harmless == set()
    assert reading["files"] == []


def test_the_canary_sings_for_the_standard_reader(tmp_path, monkeypatch):
    """The corpus is dangerous: without this, the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(CORPUS["os.system, protocol 4"][0])
    assert CANARY.exists()


# What honest files hold


def plain_data() -> dict[str, object]:
    return {
        "numbers": [0, 1, -1, 255, 256, -(2**31), 2**31, 2**70, -(2**70), 0.1, -1e300, float("inf")],
        "texts": ["", "a", "line\nline\\", "\u00e9\u4e2d\U0001f600", "x" * 300],
        "containers": ([], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[1], {"a": (None, True, False)}]),
        "sets": {"a", "b"},
        "ints": {1: 2, -3: 4},
    }


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    assert read(pickle.dumps(plain_data(), protocol)) == plain_data()


def tensors() -> collections.OrderedDict:
    base = torch.arange(24.0).reshape(2, 3, 4)
    values = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    found = collections.OrderedDict((str(dtype), (10 * base).to(dtype)) for dtype in [*values, torch.int8, torch.uint8])
    return found | {
        "parameter": torch.nn.Parameter(base),
        "transposed": base.transpose(0, 2),
        "slice": base[1, :, 1:3],
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "nothing": [None, (torch.ones(2),)],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_in_pickles(protocol):
    assert same(read(pickle.dumps(tensors(), protocol)), dict(tensors()))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(zipped, tmp_path):
    torch.save(tensors(), tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    assert same(read(tmp_path / "state.pt"), dict(tensors()))


def test_state_dicts_with_their_version_notes(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 2)).square().mean().backward()
    optimizer.step()
    torch.save(
        {"G_state": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "training-state-000001.pt"
    )
    found = read(tmp_path / "training-state-000001.pt")
    assert isinstance(found, dict)
    assert same(found["G_state"], dict(net.state_dict()))
    assert same(found["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_one_storage_stays_one():
    base = torch.arange(6.0)
    a, b = expect_list(read(pickle.dumps([base[:4], base[2:]])))
    assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()  # pickle itself writes it twice
    file = io.BytesIO()
    torch.save([base[:4], base[2:]], file)
    a, b = expect_list(read(file.getvalue()))
    a[3] = 7
    assert b[1] == 7


def expect_list(value: object) -> list[torch.Tensor]:
    assert isinstance(value, list)
    return value


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numbers_and_arrays_of_numpy(protocol):
    values = [np.float64(0.1), np.int64(-5), np.float32(0.5)]
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))]
    found = read(pickle.dumps([values, arrays], protocol))
    assert isinstance(found, list)
    assert found[0] == [0.1, -5, 0.5]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found[1], arrays, strict=True))


def test_bytes_stay_where_they_are():
    (found,) = expect_list(read(pickle.dumps([b"abc"])))
    assert isinstance(found, Blob)
    assert found.read() == b"abc"


def test_an_upstream_snapshot_is_a_tree_of_records():
    content = read(GOLDEN / "edm-ncsnpp-uncond.pkl")
    assert isinstance(content, dict)
    ema = content["ema"]
    assert isinstance(ema, Record)
    assert (ema.class_name, ema.state["sigma_max"], ema.state["_init_args"]) == ("EDMPrecond", float("inf"), (16, 3, 0))
    modules = ema.state["_modules"]
    assert isinstance(modules, dict)
    assert modules["model"].state["_init_kwargs"]["resample_filter"] == [1, 3, 3, 1]
    assert "source text" not in repr(modules)


# Damage


def test_a_snapshot_that_breaks_off_is_refused():
    data = (GOLDEN / "edm-ddpmpp-cond.pkl").read_bytes()
    for end in range(0, len(data), 49_997):
        with pytest.raises(UnsafePickle):
            read(data[:end])


def test_damaged_files_are_read_or_refused_and_nothing_else():
    originals = [pickle.dumps({"a": torch.arange(3.0), "b": [1, "x", np.float64(2)]}, p) for p in (2, 4)]
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"a": torch.arange(3.0), "b": (1, "x")}, file, _use_new_zipfile_serialization=zipped)
        originals.append(file.getvalue())
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice([1, 2, 10])):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 4])] = bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 1, 4])))
        try:
            read(bytes(data))
        except UnsafePickle:
            refused += 1
    assert refused > 500


def test_the_file_is_named(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"N")
    with pytest.raises(UnsafePickle, match=r"bad\.pkl: truncated at byte 1"):
        read(tmp_path / "bad.pkl")


def test_data_go_straight_into_the_tensors(tmp_path):
    """Of a file of 8 MB, next to nothing passes through Python's memory (the tensors' own is not Python's)."""
    state = {f"w{i}": torch.randn(1000, 500) for i in range(4)}
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps(state, 4))
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        read(path)
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.05 * path.stat().st_size, path
