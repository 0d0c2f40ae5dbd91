"""Small files cost little, whatever they ask for: 1 GiB of memory and 20 seconds of computing at most."""

import json
import subprocess
import sys

import pytest

from tests import ROOT
from tests.bombs import BOMBS

SAYS = {
    "deflated member": "Bad CRC-32",
    "bzip2 member": "expected a stored or deflated entry of a zip; got bzip2",
    "LZMA member": "expected a stored or deflated entry of a zip; got lzma",
    "many members": "bytes unfold to 301989888 or more",
    "labels of lists": "bytes of JSON out of an archive of",
    "labels by name": "",
    "labels of lists in a tar": "bytes of JSON out of an archive of",
    "folders": "more than 20001 entries in",
    "long headers": "its headers are longer than those of any tar",
    "long content, gzip": "bytes unfold to",
    "long content, bzip2": "bytes unfold to",
    "long content, xz": "bytes unfold to",
    "large dictionary": "Memory usage limit exceeded",
    "lists in CIFAR-10": "it has more than 1000000 instructions",
    "texts in CIFAR-10": "expected a dictionary of uint8 arrays and lists",
    "long file in CIFAR-10": "expected at most 50331648 bytes",
    "log": "",
    "keys of a log": "a log has at most 5000 numbers by name; this one has 50000",
    "metrics of results": "50000 results with 50000 metrics are more than a table shows",
    "protocols of results": "",
    "modules in modules": "holds no weights",
    "views of one storage": "the tensors overlap",
    "array": "bytes unfold to",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    command = [sys.executable, "-m", "tests.bombs", str(tmp_path_factory.mktemp("bombs"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_costs_little(outcomes, name):
    failure, said, _ = outcomes[name]
    assert failure is None and SAYS[name] in said
