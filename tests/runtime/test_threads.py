"""Law: a loop uses the number of threads at which its steps are fastest, also after the machine becomes busy or free."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fewstep.runtime.threads import RETRY, tune_threads, tuned_threads


class Machine:
    """A machine whose steps take a time that depends on the number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.threads = seconds, 0.0, 0
        self.used: list[int] = []
        self.tuner = tune_threads(max(seconds), self.use, clock=lambda: self.now)

    def use(self, threads: int) -> None:
        self.threads = threads

    def run(self, seconds: float) -> dict[int, float]:
        """Works for this many seconds; returns the seconds spent at each number of threads."""
        spent, end = dict.fromkeys(self.seconds, 0.0), self.now + seconds
        while self.now < end:
            next(self.tuner)
            self.now += self.seconds[self.threads]
            spent[self.threads] += self.seconds[self.threads]
        return spent


@pytest.mark.parametrize("best", [1, 2, 4])
def test_the_fastest_number_of_threads_is_kept(best):
    machine = Machine({n: 0.1 if n == best else 0.15 + 0.01 * abs(n - best) for n in (1, 2, 4)})
    machine.run(5)
    assert machine.threads == best
    assert machine.run(10)[best] >= 10


def test_a_neighbour_is_evaded_and_its_end_is_noticed():
    machine = Machine({2: 0.2, 1: 0.3})
    machine.run(10)
    assert machine.threads == 2
    machine.seconds = {2: 2.0, 1: 0.3}  # another program uses one of two cores
    spent = machine.run(RETRY - 10)
    assert machine.threads == 1 and spent[1] > 0.85 * sum(spent.values())
    machine.seconds = {2: 0.2, 1: 0.3}
    machine.run(RETRY)
    assert machine.threads == 2
    assert machine.run(5 * RETRY)[1] == 0


def test_a_loop_that_is_slower_for_another_reason_settles():
    machine = Machine({2: 0.2, 1: 0.3})
    machine.run(10)
    machine.seconds = {2: 2.0, 1: 3.0}
    machine.run(30)
    assert machine.threads == 2
    assert machine.run(300)[1] == 0


def test_slow_steps_are_tried_once_each():
    machine = Machine({8: 30.0, 4: 50.0, 2: 100.0, 1: 200.0})
    assert machine.run(500) == {8: 450.0, 4: 50.0, 2: 0.0, 1: 0.0}


def test_one_thread_stays_one():
    machine = Machine({1: 0.1})
    machine.use(1)
    assert machine.run(5) == {1: pytest.approx(5.0, abs=0.2)}


def test_a_loop_tunes_and_restores_the_process(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    now, counts = [2], []
    monkeypatch.setattr("torch.get_num_threads", lambda: now[0])
    monkeypatch.setattr("torch.set_num_threads", lambda n: now.__setitem__(0, n))
    for tune, environment, expected in ((True, None, {1, 2}), (False, None, {2}), (True, "2", {2})):
        if environment:
            monkeypatch.setenv("OMP_NUM_THREADS", environment)
        with tuned_threads(tune) as before_step:
            for _ in range(30):
                before_step()
                counts.append(now[0])
        assert {*counts} == expected and now == [2]
        counts.clear()


def ran(code: str, **environment: str) -> list[str]:
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    }
    code = f"import os, sys\n{code}\nprint(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_NUM_THREADS'))"
    done = subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True)
    return [done.stdout.strip(), *done.stderr.splitlines()]


def test_the_spin_is_bounded_before_torch_is_imported():
    assert ran("import fewstep as fs\nfs.use_threads(3)") == ["10000 3"]
    assert ran("from fewstep.cli import main\nmain(['--version'])")[0].endswith("10000 None")


def test_the_environment_has_the_last_word():
    assert ran("import fewstep as fs\nfs.use_threads()", GOMP_SPINCOUNT="77") == ["77 None"]
    assert ran("import fewstep as fs\nfs.use_threads()", OMP_WAIT_POLICY="PASSIVE") == ["None None"]


def test_a_call_that_comes_too_late_says_so():
    out, *errors = ran("import torch, fewstep as fs\nfs.use_threads(1)\nassert torch.get_num_threads() == 1")
    assert out == "10000 1" and "torch is already imported" in errors[0]


def test_a_number_that_is_no_number_of_threads():
    import fewstep as fs

    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        fs.use_threads(0)
