"""A reader of pickles that executes nothing: tensors, arrays and plain data, with everything else kept as inert records.

The threat. A pickle is a program for a small stack machine. Two of its instructions look up any importable name and call it,
so whoever writes the file decides what runs on the computer that loads it. Networks of the EDM family are published as
pickled Python objects that even embed the source code of their classes. `torch.load(weights_only=True)` refuses them, and
the original programs run them.

What this package does instead. It has a stack machine of its own that never imports, looks up or calls anything on behalf
of a file:

1. `stream` reads the bytes. A size that the file declares is compared with the bytes that are left before anything is
   allocated, and a `Budget` bounds instructions and memory: a file of n bytes costs O(n) time and memory.
2. `machine` runs the instructions that build numbers, texts, byte strings, lists, tuples, dicts and sets. It asks a
   vocabulary about every name, call, object state and reference to outside data.
3. `vocabulary` knows about twenty names, those with which PyTorch and NumPy write their data, and answers them with our own
   constructors in `tensors`. Any other class or function becomes a `Record`: its name, the arguments it would have been
   called with, and its attributes. A record is data; it cannot be called.
4. `files` opens the containers: a bare pickle, both formats of `torch.save`, and (in `torchscript`) a TorchScript archive.

A file that asks for something else is refused with `UnsafePickle`. `tests/io/test_unpickle.py` reads about 150 hostile files
under an audit hook, which sees every import, file, process and piece of code that Python executes: there is none.

Example:
    >>> content = read("network-snapshot-200000.pkl")
    >>> content["ema"].class_name
    'EDMPrecond'
"""

from fewstep.io.unpickle.files import read
from fewstep.io.unpickle.machine import Global, Record
from fewstep.io.unpickle.stream import Blob, UnsafePickle
from fewstep.io.unpickle.torchscript import is_torchscript, read_torchscript
from fewstep.io.unpickle.vocabulary import PERSISTENCE

__all__ = [
    "PERSISTENCE",
    "Blob",
    "Global",
    "Record",
    "UnsafePickle",
    "is_torchscript",
    "read",
    "read_torchscript",
]
