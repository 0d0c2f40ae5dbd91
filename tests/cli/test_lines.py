"""Every mistake is one line and exit code 2, in every surrounding: launchers, closed streams, locales, users without a home."""

from __future__ import annotations

import io
import multiprocessing
import os
import pwd
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep.cli import main, parsing
from fewstep.cli.dispatch import COMMANDS
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.metrics.networks.lpips import WIDTHS
from fewstep.nets import execution
from fewstep.runtime import progress
from fewstep.runtime.environment import cache_folder
from fewstep.runtime.launch import launched
from fewstep.runtime.memory import explained, lacks_memory
from fewstep.sample import generated
from fewstep.samplers.contract import last
from tests import ROOT


@pytest.fixture
def model(denoiser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(model_folder.save(denoiser, Path("model"), Card(name="tiny")))


@pytest.fixture
def line(capsys):
    """Run a command that must fail with exit code 2; returns what it says, which must be one line."""

    def call(*argv: str) -> str:
        capsys.readouterr()
        assert main(list(argv)) == 2
        error = capsys.readouterr().err
        assert error.startswith("fewstep") and error.count("\n") == 1, error
        return error

    return call


def start(command: list[str], folder: Path, *, before: str = "", flags: tuple[str, ...] = (), **env: str):
    """`fewstep` as a process, in a shell that runs `before` first."""
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    given |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HOME": str(folder)}
    return subprocess.Popen(
        ["bash", "-c", f'{before} exec "$@"', "fewstep", sys.executable, *flags, "-m", "fewstep", *command],
        cwd=folder,
        env=given | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


# --- launchers


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK; start with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: expected a number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: expected a number"),
        ({"RANK": "1"}, "RANK=1 is set without WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: with WORLD_SIZE=2 ranks are 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0: with WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "²"}, "LOCAL_RANK=²: expected a number"),
    ],
)
def test_a_launcher_that_says_half_is_an_error_of_every_command(given, said, monkeypatch, line):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for command in (["--help"], ["--version"], ["sample", "--help"], *([*name.split()] for name in COMMANDS)):
        assert said in line(*command)


def test_one_process_may_say_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("RANK", raising=False)
    assert main(["--help"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launched() == (1, 2)
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("fewstep: rank 1: error: ")


# --- options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample m --sed 5", "fewstep sample has no option --sed; did you mean --seeds"),
        ("sample m --xyzzy", "fewstep sample has no option --xyzzy; fewstep sample --help shows them"),
        ("sample m n", "unexpected argument 'n'"),
        ("sample", "fewstep sample needs MODEL: model or run folder, or hf://owner/name; see fewstep sample --help"),
        ("sample --model m", "fewstep sample has no option --model"),
        ("sample m --batch x", "--batch: expected an integer; got 'x'"),
        ("sample m --batch=1.5", "--batch: expected an integer; got '1.5'"),
        ("sample m --batch", "--batch needs a value: an integer"),
        ("sample m --S_churn x", "--S_churn: expected a number; got 'x'"),
        ("sample m --dtype float8", "--dtype: expected one of float32, auto, bfloat16, float16; got 'float8'"),
        ("restore m d --out o", "fewstep restore needs --task: "),
        ("restore m d --task t --out o --solver x", "--solver: expected one of pnp_gd, dps, daps, diffpir; got 'x'"),
        ("data pack a b --max-image 3", "fewstep data pack has no option --max-image; did you mean --max-images?"),
        ("train digits:teacher --out x --recompute heavy", "--recompute: expected an integer or one of light; got"),
        ("sampel m", "there is no command 'sampel'; did you mean sample?"),
        ("Sample m", "did you mean sample?"),
        ("data pak", "expected one of fewstep data pack, fewstep data latents"),
        ("--verson", "there is no command '--verson'; the commands are demo, "),
        ("sample a\x1b[31m\nb --grid g.png", "'a\\x1b[31m\\nb' is missing"),
    ],
)
def test_wrong_options_name_what_is_accepted(words, said, line):
    assert said in line(*words.split(" "))


def test_without_the_hooks_of_tyro_its_box_is_printed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "m", "--sed", "5"])
    assert "--sed" in capsys.readouterr().err
    assert parsing.flags(lambda *, a_b=1: None) == ["--a-b"]


def test_files_of_options(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    for text, said in {
        "": "must map options to values",
        "- 1": "must map options to values",
        "a:\n  b: 1": "option 'a' must be a number, a word or true/false",
        "? [a]\n: 1": "option in line 1 must be a number, a word or true/false",
        "a: !!python/object:os.system {}": "option 'a' must be a number, a word or true/false",
        "a: !!python/name:os.system x": "could not determine a constructor",
        "untill: 5": "has no option --untill; did you mean --until",
        "until: 2024-01-01": "must be a number, a word or true/false",
    }.items():
        Path("x.yaml").write_text(text)
        assert said in line("train", "digits:teacher", "--out", "r", "--config", "x.yaml")
    Path("x.yaml").write_bytes(b"a: \xff")
    assert "cannot be read as options" in line("train", "digits:teacher", "--out", "r", "--config", "x.yaml")
    Path("loop").symlink_to("loop")
    assert "loop" in line("report", "loop")
    assert "loop" in line("train", "digits:teacher", "--out", "r", "--config", "loop")
    Path("file").touch()
    assert "file: expected a folder" in line("train", "digits:teacher", "--out", "file")
    assert not Path("r").exists()


# --- code of the user's own

OWN = '''
from __future__ import annotations
from dataclasses import dataclass, replace
from fewstep.core.method import Method, Phase
from fewstep.recipes import get

@dataclass
class Settings:
    width: int = 3

def crash(*, width: int = Settings().width):
    """Mine."""
    return 1 / 0

def refused(*, until: int = 0):
    """Mine."""
    return get("digits:teacher", until=until).run()

def broken(denoise, x, sigmas):
    yield x
    raise KeyError("oh")

def returned(denoise, x, sigmas):
    return denoise(x, sigmas[0])

def small(denoise, x, sigmas):
    yield x[:, :, 0]

def features(images):
    return images.missing

def array(images):
    return images.numpy()

class Mine(Method):
    def __init__(self, net, how):
        super().__init__()
        self.denoiser, self.how, self.product, self.phases = net, how, "denoiser", (Phase("denoiser", self.energy),)

    def energy(self, batch):
        loss = (self.denoiser(batch.image, 1.0, batch.label) ** 2).sum((1, 2, 3))
        if self.how == "error":
            raise RuntimeError("first\\nsecond")
        return {"lone": loss, "mean": (loss.mean(), {}), "still": (loss.detach(), {}), "logs": (loss, 1)}[self.how]

def own(*, how: str = "lone"):
    """Mine."""
    run = get("digits:teacher", until=128).run()
    return replace(run, method=Mine(run.method.denoiser, how))
'''


@pytest.fixture
def own(model):
    Path("mine.py").write_text(OWN)
    return model


def number(text: str) -> int:
    return next(i for i, row in enumerate(OWN.splitlines(), 1) if text in row)


def test_errors_in_recipes_show_their_line(own, line, capsys):
    train = ("train", "--out", "run")
    assert f"mine.py, line {number('1 / 0')}, in crash: ZeroDivisionError: division by zero" in line(
        train[0], "mine.py:crash", *train[1:]
    )
    said = line("train", "mine.py:refused", "--out", "run")
    assert f"mine.py, line {number('until=until')}, in refused: ValueError: until must be" in said
    Path("typo.py").write_text("def x(:\n")
    assert "typo.py, line 1: SyntaxError" in line("train", "typo.py:x", "--out", "run")
    Path("imports.py").write_text("\nimport nothing_of_this_name\n")
    assert "imports.py, line 2: ModuleNotFoundError" in line("train", "imports.py:x", "--out", "run")
    assert main(["--debug", "train", "mine.py:crash", "--out", "run"]) == 2
    trace = capsys.readouterr().err
    assert "Traceback" in trace and "return 1 / 0" in trace and trace.endswith("shows the whole trace)\n")
    assert main(["sample", "nowhere", "--grid", "g.png", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("lone", "the loss energy must return a pair: the loss per sample (128,), and a dict of what to log"),
        ("mean", "its first is a tensor (). Sum over pixels, not over the batch"),
        ("still", "the loss energy does not depend on the parameters of the denoiser"),
        ("logs", "its second is a int"),
        ("error", f"mine.py, line {number('raise RuntimeError')}, in energy: RuntimeError: first second"),
    ],
)
def test_losses_that_break_the_contract(how, said, own, line):
    assert said in line("train", "mine.py:own", "--how", how, "--out", "run").replace("\n", "")


def test_samplers_and_extractors_that_break_theirs(own, line):
    sample = ("sample", own, "--seeds", "0", "--grid", "g.png", "--sampler")
    assert f"mine.py, line {number('KeyError')}, in broken: KeyError: 'oh'" in line(*sample, "mine.py:broken")
    assert "yields the state x at every noise level (yield x); this one returned a Tensor" in line(
        *sample, "mine.py:returned"
    )
    assert "a sampler yields the state x of shape (1, 1, 8, 8); this one yielded shape (1, 1, 8)" in line(
        *sample, "mine.py:small"
    )
    assert not Path("g.png").exists()
    evaluate = ("eval", own, "--num", "20", "--reference", "digits")
    assert "in features: AttributeError" in line(
        *evaluate, "--extractor", "mine.py:features", "--metrics", "fd_features"
    )
    assert "the extractor array must return a tensor (B, D), here (20, D)" in line(
        *evaluate, "--extractor", "mine.py:array", "--metrics", "fd_array"
    )
    with pytest.raises(ValueError, match="a sampler yields the state x, a tensor; this one yielded a int"):
        last(iter([1]))  # pyright: ignore[reportArgumentType]


def test_methods_that_break_the_contract(denoiser):
    from fewstep.core.method import Method, Phase
    from fewstep.train.settings import check_method

    class Mine(Method):
        def __init__(self):
            super().__init__()
            self.teacher, self.generator = denoiser, type(denoiser)(denoiser.net)

        def loss(self, batch):
            raise NotImplementedError

    mine = Mine()
    with pytest.raises(ValueError, match=r"Mine.phases must be a tuple of Phase\(player, loss\)"):
        check_method(mine)
    mine.phases = (Phase("student", mine.loss),)
    with pytest.raises(ValueError, match="the phase loss trains 'student', which is not a network"):
        check_method(mine)
    mine.phases = (Phase("generator", mine.loss),)
    for product in (None, "student", ""):
        if product is not None:
            mine.product = product
        with pytest.raises(ValueError, match=r"Mine.product must be the name of one of its denoisers \(teacher, gener"):
            check_method(mine)
    mine.product = "generator"
    with pytest.raises(ValueError, match=r"Set generator.levels, such as \(2.5,\)"):
        check_method(mine)
    mine.every_level = True
    check_method(mine)
    mine.every_level, mine.generator.levels = False, (2.5,)
    check_method(mine)


# --- memory


@pytest.mark.parametrize("command", ["sample", "eval", "restore"])
def test_a_lack_of_memory_anywhere_is_one_line(command, model, line, monkeypatch):
    def forward(*_, **__):
        return torch.empty(2**50)

    monkeypatch.setattr("fewstep.core.denoiser.Denoiser.forward", forward)
    words = {
        "sample": ["--seeds", "0-1", "--grid", "g.png"],
        "eval": ["--num", "20", "--reference", "digits", "--metrics", "fd_pixels"],
        "restore": [
            *["digits", "--first", "1", "--samples", "1", "--task", "box_inpainting", "--class", "data", "--out", "o"]
        ],
    }
    assert "memory" in line(command, model, *words[command])
    assert not Path("g.png").exists() and not Path("o").exists()


@pytest.mark.parametrize("command", ["sample model --seeds 0 --grid x.png", "train digits:teacher --out run"])
def test_what_an_older_pytorch_lacks_is_said_before_the_work(command, model, line, monkeypatch):
    monkeypatch.setattr(execution, "COMPILES", False)
    assert "--compile needs PyTorch 2.13 or newer; this is 2." in line(*command.split(), "--compile")
    assert not Path("x.png").exists() and not Path("run").exists()


def test_a_lack_of_memory_is_known():
    with pytest.raises(RuntimeError) as plain:
        torch.empty(2**50)
    assert lacks_memory(plain.value)
    assert explained(plain.value) == "there is not enough memory: 4,194,304.0 GiB could not be allocated"
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**47)
    assert lacks_memory(of_numpy.value) and "Unable to allocate" in explained(of_numpy.value)
    assert lacks_memory(torch.OutOfMemoryError("CUDA out of memory. Tried")) and not lacks_memory(
        RuntimeError("memory")
    )


# --- places


def test_without_a_home_the_cache_is_asked_for(model, line, monkeypatch):
    for name in ("HOME", "FEWSTEP_CACHE", "XDG_CACHE_HOME", "FEWSTEP_ASSETS"):
        monkeypatch.delenv(name, raising=False)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(WIDTHS["alex"])}, "copy.pth")

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    command = ("assets", "fetch", "lpips-alex", "--source", "copy.pth")
    assert "this user has no home folder for the cache; set FEWSTEP_CACHE to a folder" in line(*command)
    assert main(["sample", model, "--seeds", "0", "--grid", "g.png", "--steps", "1"]) == 0  # which needs none
    monkeypatch.setenv("HOME", "/dev/null")
    assert "not a directory; set FEWSTEP_CACHE to a folder that can be written" in line(*command)
    monkeypatch.setenv("FEWSTEP_CACHE", "cache")
    assert main(command) == 0
    assert cache_folder() == Path("cache")


def test_seeds_given_twice_are_in_the_protocol(denoiser):
    twice = generated(denoiser, [*range(10), *range(5, 15)]).protocol
    assert (twice["seeds"], twice["repeated_seeds"]) == ("0-9,5-14", 5)
    assert "repeated_seeds" not in generated(denoiser, range(4)).protocol


def test_wandb_needs_a_login_before_anything_is_written_and_its_failure_stops_no_run(
    tmp_path, line, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    train = ("train", "digits:teacher", "--batch-size", "8", "--until", "8", "--out", "my run; ls", "--track", "wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "--track wandb needs the package wandb" in line(*train)

    class ReachedError(ValueError):
        pass

    def init(**options):
        raise ReachedError("reached")

    module = type(sys)("wandb")
    module.init = init  # pyright: ignore[reportAttributeAccessIssue]
    module.Settings = lambda **_: SimpleNamespace(base_url="http://127.0.0.1:9")  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", module)
    Path(".netrc").write_text("machine elsewhere.org login a password b\n")
    assert "--track wandb is not logged in: run wandb login, set WANDB_API_KEY" in line(*train)
    Path(".netrc").write_text("machine api.wandb.ai garbled\n")
    assert "is not logged in" in line(*train)
    assert not Path("my run; ls").exists()
    Path(".netrc").write_text("machine api.wandb.ai login user password key\n")
    assert main([*train]) == 0
    said = capsys.readouterr()
    assert "wandb failed (ReachedError: reached); the run continues without it" in said.err
    assert "next: fewstep sample 'my run; ls' --grid grid.png" in said.out  # as it can be pasted


# --- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_end_or_disappear(monkeypatch):
    erased = "\x1b[2K"
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress.Progress("reference", total=5):
        pass
    assert sys.stderr.getvalue().rstrip("\n").endswith(erased)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(progress, "REFRESH_SECONDS", -1.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.track(range(3), total=3, description="sample")) == [0, 1, 2]
    shown = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "3/3 images" in shown.rsplit(erased, 1)[-1]
    left = progress.track(range(3), total=3, description="broken")
    next(left)
    assert len(progress.LIVE) == 1
    progress.stop()  # as before an error is printed
    assert not progress.LIVE
    del left


# --- surroundings


def test_threads_notebooks_and_spawned_processes(monkeypatch, capfd):
    class Notebook(io.StringIO):
        """As standard output of a notebook: no file, no terminal."""

        def fileno(self) -> int:
            raise io.UnsupportedOperation("fileno")

    shown = Notebook()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        scope: dict = {}
        exec("from fewstep.cli import main\ncode = main(['recipes', '--method', 'sid'])", scope)
        assert scope["code"] == 0 and "digits:sid" in shown.getvalue()

        def broken(*_):
            raise BrokenPipeError

        patch.setattr(shown, "write", broken)
        assert main(["recipes"]) == 128 + signal.SIGPIPE
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["sampel"])))
    thread.start()
    thread.join()
    assert codes == [2]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(main, (["sampel"],)) == 2
    assert capfd.readouterr().err.count("there is no command 'sampel'; did you mean sample?\n") == 2


def test_streams_that_are_closed_or_full(tmp_path):
    jobs = {
        ">&-": start(["--help"], tmp_path, before="exec >&-;"),
        ">/dev/full": start(["sample", "--help"], tmp_path, before="exec >/dev/full;"),
        "2>&-": start(["nothing"], tmp_path, before="exec 2>&-;"),
        "-O": start(["sampel"], tmp_path, flags=("-O",)),
        "pipe": start(["sample", "--help"], tmp_path, before="sleep 0.3;"),
    }
    pipe = jobs["pipe"].stdout
    assert pipe is not None
    pipe.close()
    jobs["pipe"].stdout = None
    said = {name: (job.communicate()[1], job.returncode) for name, job in jobs.items()}
    assert said[">&-"] == (
        "fewstep: error: standard output is closed; to discard what is printed, redirect it: >/dev/null\n",
        2,
    )
    full, code = said[">/dev/full"]
    assert code == 2 and full.count("\n") == 1 and "no space left on device" in full
    assert said["2>&-"] == ("", 2)
    assert said["-O"] == ("fewstep: error: there is no command 'sampel'; did you mean sample?\n", 2)
    assert said["pipe"] == ("", 128 + signal.SIGPIPE)


def test_a_run_in_a_poor_place_that_is_stopped_for_a_while(tmp_path):
    """64 open files, files for the owner alone, an ASCII locale, no home, `python -O`; stopped by a signal, and continued."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64
    (tmp_path / "größe.yaml").write_text("# größe\nuntil: 160\nbatch-size: 16\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/nonexistent"}
    command = ["train", "digits:teacher", "--config", "größe.yaml", "--out", "à b"]
    job = start(command, tmp_path, before="ulimit -n 64; umask 077;", flags=("-O",), **ascii_only)
    record, began = tmp_path / "à b" / "run.json", time.monotonic()
    while not record.exists() and job.poll() is None:
        assert time.monotonic() - began < 120
        time.sleep(0.01)
    job.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, job.pid, os.WSTOPPED | os.WNOWAIT)
    job.send_signal(signal.SIGCONT)
    out, error = job.communicate(timeout=120)
    assert job.returncode == 0, error
    assert "trained to 160 images; next: fewstep sample '" in out and (tmp_path / "à b" / "samples").is_dir()
    assert record.stat().st_mode & 0o777 == 0o600
