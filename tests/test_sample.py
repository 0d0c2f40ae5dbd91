import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import SeededNoise, karras_sigmas
from fewstep.core.plan import Plan
from fewstep.core.precondition import VE
from fewstep.io import model_folder
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.sample import BatchSize, count_evaluations, describe, generate, generated
from fewstep.samplers import churn, multistep
from tests.conftest import tiny_net


def plans(denoiser):
    return [
        denoiser.plan(4),
        Plan(churn, karras_sigmas(4), {"S_churn": 2.0}),
        Plan(multistep, torch.tensor([2.5, 0.6, 0.0])),
    ]


@pytest.mark.parametrize("which", range(3))
def test_an_image_depends_on_its_seed_alone(denoiser, which):
    plan = plans(denoiser)[which]
    together = list(generate(denoiser, range(64), plan=plan, batch_size=64))
    alone = list(generate(denoiser, [7], plan=plan))
    assert np.array_equal(together[7], alone[0])
    small = list(generate(denoiser, range(3, 10), plan=plan, batch_size=3))
    assert all(np.array_equal(a, b) for a, b in zip(small, together[3:10], strict=True))
    assert not np.array_equal(together[7], together[8])


def one_of_two(rank, path, denoiser, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    queue.put((rank, list(generate(denoiser, range(8), plan=denoiser.plan(4)))))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_make_the_same_images(denoiser, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=one_of_two, args=(r, tmp_path / "s", denoiser, queue)) for r in range(2)]
    for job in jobs:
        job.start()
    parts = dict(queue.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join()
    one = list(generate(denoiser, range(8), plan=denoiser.plan(4)))
    assert all(np.array_equal(one[i], parts[i % 2][i // 2]) for i in range(8))


def test_labels(denoiser):
    plan = denoiser.plan(2)
    threes = list(generate(denoiser, range(4), label=3, plan=plan))
    each = list(generate(denoiser, range(4), label=torch.tensor([3, 3, 3, 3]), plan=plan, batch_size=2))
    assert all(np.array_equal(a, b) for a, b in zip(threes, each, strict=True))
    fives = list(generate(denoiser, range(4), label=5, plan=plan))
    both = list(generate(denoiser, [2, 2], label=torch.tensor([3, 5]), plan=plan))  # one seed in two classes
    assert (both[0] == threes[2]).all() and (both[1] == fives[2]).all()
    assert not np.array_equal(np.stack(threes), np.stack(fives))
    with pytest.raises(ValueError, match="the classes of this model are 0 to 9; got 10"):
        next(generate(denoiser, range(4), label=10))
    with pytest.raises(ValueError, match="one for each of 4 images"):
        next(generate(denoiser, range(4), label=torch.tensor([1, 2])))
    unconditional = Denoiser(SongUNet(SongConfig(8, 1, 1, model_channels=8, channel_mult=(1,), num_blocks=1)))
    with pytest.raises(ValueError, match="has no classes"):
        next(generate(unconditional, range(4), label=0))


def test_labels_by_name(denoiser):
    nameless = Denoiser(denoiser.net)
    named = Denoiser(
        denoiser.net, class_names=["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    threes = list(generate(nameless, range(2), label=3, steps=2))
    for model, label in ((named, "three"), (named, "3"), (nameless, "3")):
        images = generate(model, range(2), label=label, steps=2)
        assert all(np.array_equal(a, b) for a, b in zip(threes, images, strict=True))
    assert generated(named, range(2), label="three").protocol["labels"] == 3
    with pytest.raises(ValueError, match="there is no class 'tree'; did you mean three?"):
        generate(named, range(2), label="tree")
    with pytest.raises(ValueError, match=r"no class 'x'; the classes are zero, .*, nine, or 0 to 9"):
        generate(named, range(2), label="x")
    with pytest.raises(ValueError, match="does not know the names of its classes; give a number from 0 to 9"):
        generate(nameless, range(2), label="three")


def test_draws_of_a_seed_are_those_of_edm():
    """Noise in float32, then a class, then the sampler's noise in float64, from one generator per image."""
    noise = SeededNoise([5, 2**32 + 5])
    z, label, eps = noise.draw((3, 2, 2), torch.float32), noise.classes(10), noise(torch.zeros(2, 3, 2, 2).double())
    g = torch.Generator().manual_seed(5)
    assert torch.equal(z[0], torch.randn(3, 2, 2, generator=g))
    assert label[0] == torch.randint(10, (1,), generator=g)
    assert torch.equal(eps[0], torch.randn(3, 2, 2, generator=g, dtype=torch.float64))
    assert torch.equal(z[0], z[1])  # seeds count modulo 2^32


def test_plans_say_what_they_do(denoiser):
    plan = denoiser.plan()
    assert plan.sampler == "heun"
    assert (count_evaluations(plan), describe(plan)["steps"], describe(plan)["sigma_max"]) == (35, 18, 80.0)
    denoiser.levels = (2.5,)
    one = denoiser.plan()
    assert (one.sampler, one.sigmas.tolist(), count_evaluations(one)) == ("multistep", [2.5, 0.0], 1)
    with pytest.raises(ValueError, match=r"distilled to 1 step\(s\); got steps=4"):
        denoiser.plan(4)
    narrow = Denoiser(denoiser.net, precondition=VE(sigma_max=50.0)).plan()
    assert narrow.sigmas[0] == 50
    assert narrow.sigmas[-2].item() == pytest.approx(0.02)


def test_batches_shrink_to_what_memory_holds(denoiser, monkeypatch):
    expected = np.stack(list(generate(denoiser, range(13), plan=denoiser.plan(2), batch_size=1)))
    forward, sizes = Denoiser.forward, []

    def limited(self, x, *args, **options):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("too much")
        return forward(self, x, *args, **options)

    monkeypatch.setattr(Denoiser, "forward", limited)
    found = np.stack(list(generate(denoiser, range(13), plan=denoiser.plan(2), batch_size=8)))
    assert np.array_equal(found, expected)
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2, 1}
    monkeypatch.setattr(Denoiser, "forward", lambda self, *a, **k: limited(self, torch.zeros(4)))
    with pytest.raises(MemoryError, match="one image alone does not fit into the memory of"):
        list(generate(denoiser, range(2)))


def test_batches_grow_into_the_memory_of_a_gpu(monkeypatch):
    """Each image takes 10 bytes, beside 100 of another part of the process; 2,000 are there."""
    held = [100]
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000 - held[0], 2000))

    def sizes(n: int) -> list[int]:
        size, made = BatchSize(torch.device("cuda")), []
        while sum(made) < n:
            made.append(min(size.size, n - sum(made)))
            held[0] = max(held[0], 100 + 10 * made[-1])
            size.fits(made[-1])
        return made

    assert sizes(500) == [64, 128, 128, 128, 52]  # 256 would not fit
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    assert sizes(4032) == [64, 128, 256, 512, 1024, 1024, 1024]


def test_the_size_is_remembered_for_a_denoiser_and_a_given_one_is_kept(denoiser, monkeypatch):
    forward, sizes = Denoiser.forward, []

    def limited(self, x, *args, **kwargs):
        sizes.append(len(x))
        if len(x) > 8:
            raise torch.OutOfMemoryError("no memory")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "forward", limited)
    monkeypatch.setattr(BatchSize, "FIRST", 16)
    denoiser.levels = (2.5,)

    def made(**options) -> list[int]:
        sizes.clear()
        list(generate(denoiser, range(20), **options))
        return list(sizes)

    assert made() == [16, 8, 8, 4]
    assert made() == [8, 8, 4]
    assert made(batch_size=7) == [7, 7, 6]
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        made(batch_size=0)


@pytest.mark.parametrize(
    "options", ["--steps 2", "--steps 2 --guidance 1.5", "--steps 2 --S_churn 5", "--levels 2.5,0.6"]
)
def test_few_calls_lie_between_the_command_and_the_network(tmp_path, monkeypatch, options):
    encode, paths = SongUNet.encode, []

    def recorded(self, *args):
        frame, path = sys._getframe(1), []
        while not (frame.f_code.co_name == "sample" and frame.f_globals["__name__"] == "fewstep.cli.sampling"):
            if (module := frame.f_globals["__name__"]).startswith("fewstep."):
                path.append((module, frame.f_code.co_name))
            frame = frame.f_back
            assert frame is not None
        paths.append(path)
        return encode(self, *args)

    monkeypatch.setattr(SongUNet, "encode", recorded)
    model_folder.save(Denoiser(tiny_net(label_dropout=0.1)).eval(), tmp_path / "model")
    to = ["--out", str(tmp_path / "out"), "--grid", str(tmp_path / "grid.png")]
    assert main(["sample", str(tmp_path / "model"), "--seeds", "0-1", *to, *options.split()]) == 0
    assert paths
    for path in paths:
        assert len(path) <= 8, path
        assert len({module for module, _ in path}) <= 4, path
