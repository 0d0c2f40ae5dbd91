"""A run survives whatever happens to it: the same command again ends in the same weights, bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli.messages import describe
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch
from fewstep.core.network import SamplingDefaults
from fewstep.core.objectives import DenoisingLoss, Pretraining
from fewstep.data import ImageData, ImageStream, digits, images
from fewstep.distill import GDD, SiD, SiDA
from fewstep.io import model_folder
from fewstep.runtime.files import sha256
from fewstep.train import checkpoint_files
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.folder import claimed
from fewstep.train.loop import fit
from fewstep.train.optim import Adam
from fewstep.train.preemption import EXIT_CODE, stop_signals
from fewstep.train.settings import Run
from fewstep.train.trainer import Trainer
from tests import endurance
from tests.conftest import tiny_net
from tests.distill.test_gdd import projected
from tests.faults import with_fault

ADAM = Adam(2e-3)


def teacher_run(until: int = 64, seed: int = 0, **options) -> Run:
    """Of a network of three blocks that is sampled in two steps, as its grids are not looked at."""
    torch.manual_seed(seed)
    net = tiny_net(channel_mult=(1,), num_blocks=0, attn_resolutions=())
    net.sampling = SamplingDefaults(steps=2)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - as EDM2's have it
    method = Pretraining(Denoiser(net), DenoisingLoss())
    defaults = {
        "batch_size": 8,
        "until": until,
        "seed": seed,
        "snapshots": 2,
        "checkpoint_seconds": 0.0,
        "name": "teacher",
    }
    return Run(method, ImageStream(digits()), {"denoiser": ADAM}, **{**defaults, **options})


def sid_run(teacher: Path, until: int = 64) -> Run:
    optimizers = {"fake_score": ADAM, "generator": ADAM}
    method = SiD(model_folder.load(teacher))
    return Run(
        method, ImageStream(digits()), optimizers, batch_size=8, until=until, checkpoint_seconds=0.0, snapshots=1
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 64 images that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit(teacher_run(), folder)
    return folder


def saved(folder: Path) -> list[Path]:
    """The checkpoints, from old to new."""
    return sorted((folder / "checkpoints").glob("[0-9]" * 12))


def final(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint_files.load(saved(folder)[-1])["tensors"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip(file: Path) -> bytes:
    """Change one bit in the middle of a file; returns what was there."""
    before = file.read_bytes()
    data = bytearray(before)
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return before


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_interrupted_run_ends_in_the_same_weights(whole, tmp_path):
    fit(teacher_run(until=40), tmp_path / "parts")
    fit(teacher_run(), tmp_path / "parts")
    assert_same(final(whole), final(tmp_path / "parts"))
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in log] == [8 * i for i in range(1, 9)]


def test_a_student_resumes_likewise_and_inherits(tmp_path):
    fit(teacher_run(until=16), tmp_path / "teacher")
    fit(sid_run(tmp_path / "teacher"), tmp_path / "whole")
    fit(sid_run(tmp_path / "teacher", until=32), tmp_path / "parts")
    student = fit(sid_run(tmp_path / "teacher"), tmp_path / "parts")
    assert_same(final(tmp_path / "whole"), final(tmp_path / "parts"))
    assert student.levels == (2.5,)
    assert model_folder.load(tmp_path / "parts").levels == (2.5,)


def test_the_same_call_again_in_one_process(whole, tmp_path):
    """As a cell of a notebook that is run twice."""
    run = teacher_run()
    fit(dataclasses.replace(run, until=40), tmp_path / "parts")
    again = [fit(run, tmp_path / "parts").state_dict() for _ in range(2)]
    assert_same(final(whole), final(tmp_path / "parts"))
    assert_same(*again)
    distilled = sid_run(whole)
    assert_same(*(fit(distilled, tmp_path / "student").state_dict() for _ in range(2)))


@pytest.mark.parametrize("kind", endurance.METHODS)
def test_kill_at_any_moment(kind, tmp_path):
    """A process is killed between steps or in the middle of saving; a checkpoint follows every step."""
    moments, steps = random.Random(kind), 8
    assert endurance.kill(kind, steps, tmp_path / "killed", moments, longest=0.1) is not None
    endurance.finish(kind, steps, tmp_path / "killed")
    fit(replace(endurance.run_of(kind, steps), checkpoint_seconds=1e9), tmp_path / "whole")
    assert endurance.different(tmp_path / "whole", tmp_path / "killed") == []


def test_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys):
    folder = tmp_path / "run"
    fit(teacher_run(), folder)
    expected = final(folder)
    newest = saved(folder)[-1]
    shard = next(newest.glob("*.safetensors"))
    flip(shard)
    damaged = [shard.read_bytes()]
    fit(teacher_run(), folder)
    assert f"checkpoint {newest} is damaged ({shard.name}: not the recorded tensors)" in capsys.readouterr().err
    assert_same(expected, final(folder))
    damaged.append(damaged[0][: len(damaged[0]) // 2])
    shard.write_bytes(damaged[1])
    (newest / "state.json").write_text("{")
    fit(teacher_run(), folder)
    assert_same(expected, final(folder))
    for number, content in zip(("", "-1"), damaged, strict=True):  # they were set aside, as some of it may be of use
        assert (newest.with_name(f"{newest.name}.damaged{number}") / shard.name).read_bytes() == content


def test_a_run_without_a_whole_checkpoint_is_left_alone(whole, tmp_path):
    """It neither begins anew, nor removes or writes anything: one byte in each of three files may be all that is wrong."""
    folder = tmp_path / "run"
    fit(teacher_run(until=40), folder)
    originals = {file: flip(file) for path in saved(folder) for file in path.glob("*.safetensors")}
    before = contents(folder)
    with pytest.raises(
        ValueError, match=rf"no checkpoint in {folder}.* is intact, and nothing was changed; .*{40:012d}"
    ):
        fit(teacher_run(until=64), folder)
    assert contents(folder) == before
    for file, content in [*originals.items()][:1]:
        file.write_bytes(content)
    fit(teacher_run(until=64), folder)
    assert_same(final(folder), final(whole))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("what", ["state.json", "shard", "folder"])
def test_what_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch, code, what):
    folder = tmp_path / "run"
    fit(teacher_run(until=24), folder)
    newest, before = saved(folder)[-1], contents(folder)

    def failing(function):
        def call(path, *given):
            if newest in (path, path.parent) or (what == "folder" and path == newest.parent):
                raise OSError(code, os.strerror(code), str(path))
            return function(path, *given)

        return call

    name = {"state.json": "read_json", "shard": "sha256"}.get(what)
    target = (checkpoint_files, name) if name else (checkpoint_files.os, "listdir")
    monkeypatch.setattr(*target, failing(getattr(*target)))
    with pytest.raises(OSError, match="nothing was changed" if name else os.strerror(code)) as error:
        fit(teacher_run(until=32), folder)
    if name:
        assert errno.errorcode[code] in str(error.value) and str(newest) in str(error.value)
    monkeypatch.undo()
    assert contents(folder) == before


def test_an_error_while_old_checkpoints_are_dropped_loses_none(tmp_path, monkeypatch, capsys):
    """Those that cannot be read now do not count as whole, and stay."""
    folder = tmp_path / "run"
    fit(teacher_run(until=24, keep=2), folder)
    old, damage = saved(folder)[0], checkpoint_files.damage

    def fails(path):
        if path == old:
            raise OSError(errno.EIO, "Input/output error", str(path / "state.json"))
        return damage(path)

    monkeypatch.setattr(checkpoint_files, "damage", fails)
    fit(teacher_run(until=32, keep=3), folder)
    assert [int(p.name) for p in saved(folder)] == [16, 24, 32]
    assert f"warning: {old} cannot be read now ([Errno 5] Input/output error" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes through /proc")
def test_a_save_writes_and_reads_every_byte_once(tmp_path):
    """Also of the third save, which checks that the two before are whole."""

    def transferred() -> tuple[int, int]:
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(lines["rchar"]), int(lines["wchar"])

    saves = Checkpoints(tmp_path, keep=2)
    tensors = {str(i): torch.randn(2**18) for i in range(8)}
    size = sum(t.nbytes for t in tensors.values())
    for nimg in range(4):
        before = transferred()
        state = {"nimg": nimg, "steps": 0, "position": 0, "scalers": {}, "tensors": tensors}
        saves.save(state, seconds=0.0)
        saves.finish()
        read, written = (b - a for a, b in zip(before, transferred(), strict=True))
        assert size <= read <= 1.05 * size and size <= written <= 1.05 * size
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"{2:012d}", f"{3:012d}"]
    flip(next((tmp_path / f"{3:012d}").glob("*.safetensors")))
    assert saves.damage(tmp_path / f"{3:012d}")  # it has changed since it was verified
    saves.close()


def test_missing_shards_are_named(tmp_path):
    """Of the hash that is recorded, so that nothing was damaged by accident."""
    fit(teacher_run(until=8), tmp_path / "run")
    newest = saved(tmp_path / "run")[-1]
    shard = next(newest.glob("*.safetensors"))
    content, state = shard.read_bytes(), json.loads((newest / "state.json").read_text())
    for hostile in (b"", b"\xff" * 8 + content[8:], content[:4000], (2).to_bytes(8, "little") + b"{}"):
        shard.write_bytes(hostile)
        (newest / "state.json").write_text(json.dumps(state | {"shards": {shard.name: sha256(shard)}}))
        with pytest.raises(ValueError, match=r"its shards cannot be read"):
            fit(teacher_run(), tmp_path / "run")


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path):
    """What is written is what was there when it was asked for, however late the thread begins, at every save."""
    saves = Checkpoints(tmp_path)
    x = torch.zeros(3)
    for nimg in (1, 2):
        go = threading.Event()
        saves.thread.submit(go.wait)
        x.fill_(nimg)
        saves.save({"nimg": nimg, "steps": 0, "position": 0, "scalers": {}, "tensors": {"x": x}}, seconds=0.0)
        x.fill_(-1)
        go.set()
        saves.finish()
        assert checkpoint_files.load(tmp_path / f"{nimg:012d}")["tensors"]["x"].tolist() == [nimg] * 3
    saves.close()


def test_the_newest_whole_checkpoints_stay(tmp_path):
    """A damaged one does not count."""
    folder = tmp_path / "run" / "checkpoints"

    def kept() -> list[int]:
        return [int(p.name) for p in saved(tmp_path / "run")]

    fit(teacher_run(until=40, keep=2), tmp_path / "run")
    assert kept() == [32, 40]
    (folder / f"{40:012d}" / "state.json").write_text("{}")
    fit(teacher_run(until=48, keep=3), tmp_path / "run")  # from 32: 40 is written again
    assert kept() == [32, 40, 48]
    (folder / f"{40:012d}" / "state.json").write_text("{}")
    fit(teacher_run(until=56, keep=3), tmp_path / "run")
    assert kept() == [32, 40, 48, 56]
    with pytest.raises(ValueError, match="keep must be at least 1; got 0"):
        fit(teacher_run(keep=0), tmp_path / "other")


def test_copies_of_checkpoints_are_left_alone(tmp_path):
    """They are neither read, nor counted, nor removed."""
    fit(teacher_run(until=8), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    names = [f"{8:012d}.bak", "9", f"{8:013d}"]
    for name in names:
        shutil.copytree(folder / f"{8:012d}", folder / name)
    fit(teacher_run(until=40, keep=2), tmp_path / "run")
    assert {p.name for p in folder.iterdir()} == {f"{32:012d}", f"{40:012d}", *names}


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave(kind, whole, tmp_path, capfd, monkeypatch):
    """Between two checkpoints by the clock; the run ends with its own exit code and goes on from where it was."""
    step = Trainer.step

    def interrupted(trainer):
        if trainer.nimg == 16:
            os.kill(os.getpid(), kind)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(SystemExit) as left:
        fit(teacher_run(checkpoint_seconds=1e9), tmp_path / "run")
    monkeypatch.undo()
    assert left.value.code == EXIT_CODE == 75
    assert f"{kind.name}: saving" in (said := capfd.readouterr().err)
    assert "teacher: stopped at 24 of 64 images" in said
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"{24:012d}"]
    fit(teacher_run(), tmp_path / "run")
    assert_same(final(whole), final(tmp_path / "run"))


def test_the_second_signal_leaves_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_one_run_in_a_folder(tmp_path):
    with (
        claimed(tmp_path / "run"),
        pytest.raises(ValueError, match=r"another process is training in .*run; wait"),
    ):
        fit(teacher_run(), tmp_path / "run")
    fit(teacher_run(until=8), tmp_path / "run")


def test_another_configuration_is_refused(tmp_path):
    fit(teacher_run(until=8), tmp_path / "run")
    with pytest.raises(ValueError, match=r"belongs to another configuration: batch_size was 8, is 4\. .*--fresh"):
        fit(teacher_run(until=8, batch_size=4), tmp_path / "run")
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        fit(teacher_run(until=8, seed=1), tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("of the run that was")
    fit(teacher_run(until=8, batch_size=4), tmp_path / "run", fresh=True)
    fit(teacher_run(until=16, batch_size=4), tmp_path / "run")


def test_other_files_do_not_block_a_run(tmp_path):
    for name in ("slurm-1.out", ".DS_Store", ".run.json.partial-123"):
        (tmp_path / name).write_text("")
    (tmp_path / ".run.json.partial-0123abcd").mkdir()
    fit(teacher_run(until=8), tmp_path)
    assert {"slurm-1.out", ".DS_Store"} <= {p.name for p in tmp_path.iterdir()}
    assert not [*tmp_path.glob(".run.json*")]
    model_folder.save(Denoiser(tiny_net()), tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a model \(config.json\); choose another folder"):
        fit(teacher_run(until=8), tmp_path / "model")


def test_a_damaged_record_is_removed_as_advised(whole, tmp_path, capsys):
    fit(teacher_run(until=24), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is not readable as JSON .*; restore it or remove it"):
        fit(teacher_run(), tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has snapshots and no run.json, so it may not be a run; --fresh does not"):
        fit(teacher_run(), tmp_path / "run", fresh=True)
    fit(teacher_run(), tmp_path / "run")
    assert "has no run.json; continuing with its snapshots, checkpoints, samples, log.jsonl" in capsys.readouterr().err
    assert_same(final(tmp_path / "run"), final(whole))


@pytest.mark.parametrize("fault", [0, errno.EIO, errno.ENOSPC])
def test_a_fault_at_any_moment_of_a_short_run(tmp_path, fault):
    """Every change of files in turn, the very first ones too, is where the process dies or the call fails."""
    fit(teacher_run(until=8), tmp_path / "whole")
    moments = random.Random(fault)
    for i, number in enumerate([0, 1, 2, 3, *sorted(moments.sample(range(4, 60), 5))]):
        folder = tmp_path / str(i)
        with_fault(lambda folder=folder: fit(teacher_run(until=8), folder), number, fault)
        fit(teacher_run(until=8), folder)
        assert_same(final(folder), final(tmp_path / "whole"))
        assert not [p for p in folder.rglob("*") if "partial" in p.name or ".old-" in p.name]


def test_a_run_whose_folder_is_removed_ends(tmp_path, monkeypatch):
    """In one line, and without making the folder again."""
    for moment in (16, 24):
        step, folder = Trainer.step, tmp_path / f"run{moment}"

        def removed(trainer, step=step, moment=moment, folder=folder):
            while trainer.nimg == moment and folder.exists():  # it is written to at the same time
                shutil.rmtree(folder, ignore_errors=True)
            return step(trainer)

        monkeypatch.setattr(Trainer, "step", removed)
        with pytest.raises(ValueError, match="was removed or replaced while this run trained in it; start it again"):
            fit(teacher_run(checkpoint_seconds=0.0 if moment == 16 else 1e9), folder)
        monkeypatch.undo()
        assert not folder.exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_where_the_file_system_has_no_locks(tmp_path, monkeypatch, capsys, code):
    def missing(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", missing)
    with (
        claimed(tmp_path / "run"),
        pytest.raises(ValueError, match=r"another process is training in .* remove .*\.lock"),
    ):
        fit(teacher_run(), tmp_path / "run")
    assert "has no locks" in capsys.readouterr().err
    fit(teacher_run(until=8), tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_data_of_another_name_are_the_same_data(tmp_path):
    def run(until: int, name: str, shift: int = 0) -> Run:
        images = np.random.default_rng(shift).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
        torch.manual_seed(0)
        method = Pretraining(Denoiser(tiny_net(label_dim=0)), DenoisingLoss())
        return Run(method, ImageStream(ImageData(images, name=name)), {"denoiser": ADAM}, batch_size=8, until=until)

    fit(run(8, "photos"), tmp_path / "run")
    fit(run(16, "photos-renamed"), tmp_path / "run")
    assert [int(p.name) for p in saved(tmp_path / "run")][-1] == 16
    with pytest.raises(ValueError, match=r"belongs to another configuration: data\.sha256 was"):
        fit(run(24, "photos", shift=1), tmp_path / "run")


def test_full_disk_while_saving_loses_nothing(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fit(teacher_run(until=32), folder)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files.Writer, "write_data", full)
    last = f"{32:012d}"
    with pytest.raises(OSError, match=rf"could not be written .*No space left on device.*{last}, is untouched; free"):
        fit(teacher_run(), folder)
    monkeypatch.undo()
    after = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {k: after[k] for k in before if k.name != "log.jsonl"} == {
        k: v for k, v in before.items() if k.name != "log.jsonl"
    }
    assert not [p for p in after if "partial" in str(p)]
    fit(teacher_run(), folder)
    assert_same(final(whole), final(folder))


def test_lost_loss_stops_the_run(tmp_path):
    run = dataclasses.replace(teacher_run(), optimizers={"denoiser": Adam(1e30)})
    with pytest.raises(ValueError, match=r"denoising_loss became infinite or NaN .* Lower the learning rate"):
        fit(run, tmp_path / "run")


def test_a_lost_loss_is_in_no_checkpoint(tmp_path, monkeypatch):
    """Figures are written once in eight steps here, checkpoints after each."""
    step = Trainer.step

    def lost(trainer):
        logs = step(trainer)
        return logs | {"denoising_loss": logs["denoising_loss"] * (np.nan if trainer.nimg >= 40 else 1)}

    monkeypatch.setattr(Trainer, "step", lost)
    with pytest.raises(ValueError, match="denoising_loss became infinite or NaN before 40 images"):
        fit(teacher_run(until=8 * 800), tmp_path / "run")
    assert max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == 32


@pytest.mark.parametrize("kind", ["gdd", "sida", "sid"])
def test_a_run_is_that_of_the_networks_it_was_given(kind, tmp_path):
    def teacher(seed: int) -> Denoiser:
        torch.manual_seed(seed)
        return Denoiser(tiny_net())

    def run(seed: int) -> Run:
        one, other = teacher(1), teacher(seed)
        methods = {"gdd": lambda: GDD(other, projected(one)), "sid": lambda: SiD(other)}
        made = methods.get(kind, lambda: SiDA(one, generator=other))()
        players = dict.fromkeys((p.player for p in made.phases), ADAM)
        return Run(made, ImageStream(digits()), players, batch_size=2, until=2)

    student = fit(run(1), tmp_path / "run")
    assert all(map(torch.equal, fit(run(1), tmp_path / "run").parameters(), student.parameters()))
    with pytest.raises(ValueError, match=r"belongs to another configuration: given\.(generator|teacher) was"):
        fit(run(2), tmp_path / "run")


def test_a_method_whose_training_failed_is_not_trained_again(tmp_path, monkeypatch):
    """Its weights may be those of no checkpoint."""
    run = teacher_run(until=16)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(run, tmp_path / "run")
    with pytest.raises(ValueError, match="no parameter of the denoiser requires gradients.* create the method again"):
        fit(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "shards"}, "strategy must be one of replicate, shard; got 'shards'"),
        ({"snapshots": -3}, "snapshots must not be negative; got -3"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must not be negative"),
    ],
)
def test_settings_that_make_no_run(options, message):
    with pytest.raises(ValueError, match=message):
        teacher_run(**options)


def test_a_batch_too_small_for_the_ranks(monkeypatch, stream):
    monkeypatch.setattr("fewstep.train.settings.world_size", lambda: 2)
    with pytest.raises(ValueError, match="a batch of 1 is too small for 2 ranks"):
        teacher_run(batch_size=1)


def entries(folder: Path) -> dict[str, bytes]:
    """What a run records, and the names of its checkpoints."""
    names = ("run.json", "log.jsonl", "metrics.jsonl")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()} | {
        path.name: b"" for path in saved(folder)
    }


@pytest.mark.parametrize("how", ["record removed", "another command"])
def test_a_shorter_run_leaves_the_record_of_a_longer_one(how, tmp_path):
    """Of 40 images; 34 is as long, as steps are of 8."""
    folder = tmp_path / "run"
    fit(teacher_run(until=40), folder)
    if how == "record removed":
        (folder / "run.json").unlink()
    before = entries(folder)
    for until in (16, 32):
        with pytest.raises(
            ValueError, match=rf"holds a longer run, of 40 images; this one ends at {until}\. .*--fresh"
        ):
            fit(teacher_run(until=until, command="fewstep train shorter"), folder)
        assert entries(folder) == before
    fit(teacher_run(until=34), folder)
    fit(teacher_run(until=16), folder, fresh=True)
    assert [int(path.name) for path in saved(folder)] == [8, 16]


class Changing(ImageStream):
    """Images in a file or a folder, not kept in memory, that change when the batch at 32 images is read."""

    def __init__(self, path: Path, change: Callable[[Path], object]) -> None:
        super().__init__(images(path, memory=0))
        self.path, self.change = path, change

    def batch(self, position: int, n: int) -> Batch:
        if position == 32:
            self.change(self.path)
        return super().batch(position, n)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def each(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: [change(file) for file in path.iterdir()]


CHANGES = {
    "zip": {"truncated": truncate, "emptied": lambda path: os.truncate(path, 0), "overwritten": overwrite},
    "npy": {"truncated": truncate, "overwritten": overwrite, "removed": Path.unlink},
    "folder": {"truncated": each(truncate), "removed": shutil.rmtree, "overwritten": each(overwrite)},
}


@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind, changes in CHANGES.items() for how in changes])
def test_data_that_change_during_training_end_it(kind, how, tmp_path):
    """With an error that names the file, and the last checkpoint as it was."""
    array = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    path = tmp_path / ("data" if kind == "folder" else f"data.{kind}")
    if kind == "npy":
        np.save(path, array)
    else:
        path.mkdir() if kind == "folder" else None
        with zipfile.ZipFile(path if kind == "zip" else tmp_path / "other.zip", "w") as archive:
            for i, image in enumerate(array):
                Image.fromarray(image).save(file := tmp_path / f"{i:02d}.png")
                archive.write(file, file.name)
                if kind == "folder":
                    file.rename(path / file.name)
    net = tiny_net(label_dim=0, attn_resolutions=(), model_channels=4, num_blocks=0)
    method, stream = Pretraining(Denoiser(net), DenoisingLoss()), Changing(path, CHANGES[kind][how])
    run = dataclasses.replace(teacher_run(snapshots=0), method=method, data=stream)
    with pytest.raises((ValueError, OSError)) as error:
        fit(run, tmp_path / "run")
    message = describe(error.value)
    assert message is not None and message.startswith(str(path)) and len(message.splitlines()) == 1
    newest = saved(tmp_path / "run")[-1]
    assert int(newest.name) in (24, 32) and checkpoint_files.damage(newest) is None
