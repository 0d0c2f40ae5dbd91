"""The Trainer: one move of every player that is due. It runs any Method and knows no algorithm's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.denoiser import lay_out
from fewstep.core.method import Method, Phase
from fewstep.runtime import precision
from fewstep.runtime.distributed import copy_from_first, rank, sum_over_ranks, world_size
from fewstep.train.ema import HalfLife, Profile, averages
from fewstep.train.input import ReadAhead, Stream
from fewstep.train.strategies import Strategy, alike, hand_over, shard_like, summed_over_ranks, whole


class Optimizer(Protocol):
    """Settings that make an optimizer and tell its learning rate at a number of images.

    loss_scale: at which the dynamic scale of losses begins, for networks that compute in float16; None for no scale.
    """

    @property
    def loss_scale(self) -> float | None: ...
    def __call__(self, params: Iterable[nn.Parameter], /) -> torch.optim.Optimizer: ...
    def rate(self, nimg: int) -> float: ...


def reseed(*key: int) -> None:
    """Seed the random streams of torch from a tuple of non-negative numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


@runtime_checkable
class Constrained(Protocol):
    """A layer whose `project_` brings its weights back to their set, before each move of its player if `forced`: EDM2's to
    unit length, those of a control branch to [0, 1].

    Not after the move: EDM2 averages the weights as the optimizer left them, and projects them at the next training step.
    """

    forced: bool

    def project_(self) -> None: ...


def constrained(module: nn.Module) -> list[Constrained]:
    """The layers of `module` that must be projected because they train."""
    training = (m for m in module.modules() if any(p.requires_grad for p in m.parameters()))
    return [m for m in training if isinstance(m, Constrained) and m.forced]


def loss_scaler(device: torch.device, scale: float | None) -> torch.amp.GradScaler:
    """Multiplies a loss so that its gradients neither vanish nor overflow in float16; without a scale it does nothing.

    A step whose gradients overflow is left out and halves the scale; 2,000 steps without overflow double it.
    """
    return torch.amp.GradScaler(device.type, init_scale=scale or 1.0, enabled=scale is not None)


class Trainer:
    """Moves the players of a method; the caller owns the loop.

    A step moves each due phase once, over `batch_size` fresh images, split into micro-batches of `micro_batch` images
    which the ranks share. What a micro-batch draws depends on (seed, step, phase, micro-batch) alone, so that a resumed
    run is the same run, and the same micro-batches on more ranks give the same gradients. Between moves every network
    is frozen and in evaluation mode; parameters that do not require gradients when the Trainer begins never move. What moves is
    held in float32 at least (`precision.master`).

    optimizers: for each player that moves, what makes its optimizer. ema: how the product is averaged, in one way or in
    several; the first is the one that is evaluated. tf32: see `precision.tf32`. strategies: how networks lie on the ranks,
    by their name in the method, those that do not move included; the others are replicated.
    """

    def __init__(
        self,
        method: Method,
        data: Stream,
        optimizers: Mapping[str, Optimizer],
        *,
        batch_size: int,
        micro_batch: int | None = None,
        ema: Profile | tuple[Profile, ...] = HalfLife(),
        seed: int = 0,
        tf32: bool = False,
        device: torch.device | None = None,
        strategies: Mapping[str, Strategy] | None = None,
    ) -> None:
        self.micro_batch = micro_batch or max(1, batch_size // world_size())
        if batch_size % (self.micro_batch * world_size()):
            raise ValueError(
                f"batch_size must be a multiple of micro_batch times the number of ranks; got batch_size={batch_size}, "
                f"micro_batch={self.micro_batch}, ranks={world_size()}. A run keeps the micro-batch with which it began: give "
                "one small enough for as many ranks as it will have"
            )
        players = list(dict.fromkeys(phase.player for phase in method.phases))
        if set(players) != set(optimizers):
            raise ValueError(f"expected an optimizer for each of {players}; got {list(optimizers)}")
        self.device = device or torch.device("cpu")
        self.method, self.batch_size, self.seed, self.tf32 = method.to(self.device), batch_size, seed, tf32
        for name in players:
            precision.master(self.player(name))
        copy_from_first(method.state_dict().values())  # new heads may have been drawn without a seed
        self.data = ReadAhead(data, self.micro_batch, self.micro_batch * world_size(), self.device)
        lay_out(self.method)
        # labels are for networks that know classes
        self.labelled = any(getattr(m, "num_classes", 0) for m in method.modules())
        self.nimg = self.steps = self.position = 0
        moving = {name: [k for k, p in self.player(name).named_parameters() if p.requires_grad] for name in players}
        if still := [name for name, keys in moving.items() if not keys]:
            raise ValueError(
                f"no parameter of the {', '.join(still)} requires gradients, so it cannot move; if this method was trained "
                "before, make the method anew"
            )
        method.requires_grad_(False).eval()
        self.averages = averages(self.player(method.product), ema)
        for name, strategy in (strategies or {}).items():
            strategy.place(self.player(name))
        for average in self.averages:
            average.follow()
        self.params = {name: [self.player(name).get_parameter(k) for k in keys] for name, keys in moving.items()}
        for params in self.params.values():
            for p in params:
                p.requires_grad_(True)
        self.projected = {name: constrained(self.player(name)) for name in players}
        self.settings: dict[str, Any] = dict(optimizers)
        self.seen = {name: alike(params) for name, params in self.params.items()}
        self.optimizers = {name: make(self.seen[name]) for name, make in optimizers.items()}
        self.scalers = {name: loss_scaler(self.device, settings.loss_scale) for name, settings in optimizers.items()}
        method.requires_grad_(False)

    def player(self, name: str) -> nn.Module:
        return self.method.get_submodule(name)

    @property
    def product(self) -> nn.Module:
        """The averaged product, by the first average; if it lies in parts, after `gather`."""
        return self.averages[0].module

    def gather(self) -> None:
        """Let every average have its weights as a network until the next step; all ranks call it."""
        for average in self.averages:
            average.gather()

    def step(self) -> dict[str, Tensor]:
        """Move every player that is due; returns what to log, without waiting for the device.

        Scalars are means over the batch; of figures `by_sigma` (2, BINS), sums and counts.
        """
        logs: dict[str, Tensor] = {}
        for index, phase in enumerate(self.method.phases):
            if phase.due(self.steps, self.nimg):
                with precision.tf32(self.tf32):
                    logs |= self.move(index, phase)
        self.method.after_step(logs, self.batch_size)
        for average in self.averages:
            average.update(self.nimg, self.batch_size)
        self.steps += 1
        self.nimg += self.batch_size
        return logs

    def move(self, index: int, phase: Phase) -> dict[str, Tensor]:
        """One step of one player's optimizer, over one batch."""
        params, optimizer = self.params[phase.player], self.optimizers[phase.player]
        scaler = self.scalers[phase.player]
        rounds = self.batch_size // self.micro_batch
        logs: dict[str, Tensor] = {}
        for layer in self.projected[phase.player]:
            layer.project_()
        with self.thawed(phase.player):
            for k in range(rank(), rounds, world_size()):
                batch = self.data.batch(self.position + k * self.micro_batch)
                batch = batch if self.labelled else batch._replace(label=None)
                reseed(self.seed, self.steps, index, k)
                loss, diagnostics = phase.losses(batch)
                last = k + world_size() >= rounds
                with summed_over_ranks(params) if last else nullcontext():
                    scaler.scale(loss.sum() / self.batch_size).backward()
                figures = {phase.name: loss.detach().mean()}
                figures |= {f"{phase.name}/{key}": value.detach() for key, value in diagnostics.items()}
                for key, value in figures.items():
                    # a scalar is the mean of a micro-batch; sums and counts (2, BINS) add up
                    share = value.float() / rounds if value.ndim == 0 else value
                    logs[key] = logs[key] + share if key in logs else share
        self.position += self.batch_size
        hand_over(params, self.seen[phase.player])
        gradients = [p.grad for p in self.seen[phase.player] if p.grad is not None]
        sum_over_ranks([*logs.values()])
        scaler.unscale_(optimizer)
        logs[f"nonfinite/{phase.name}"] = whole(phase.clean(gradients))
        logs[f"grad_norm/{phase.name}"] = whole(torch.stack(torch._foreach_norm(gradients)).norm())
        for group in optimizer.param_groups:
            group["lr"] = self.settings[phase.player].rate(self.nimg)
        if scaler.is_enabled():
            logs[f"loss_scale/{phase.player}"] = scaler.scale(torch.ones((), device=self.device))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return logs

    @contextmanager
    def thawed(self, name: str) -> Iterator[None]:
        """One player in training mode, with gradients to its parameters; frozen again afterwards."""
        module, params = self.player(name), self.params[name]
        module.train()
        for p in params:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p in params:
                p.requires_grad_(False)
            module.eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside the settings: tensors under dotted names, counters, scales.

        Tensors lie on the ranks as the strategies have it, and are those that train, not copies.
        """
        tensors: dict[str, Tensor] = {f"method.{k}": v for k, v in self.method.state_dict().items()}
        for average in self.averages:
            tensors |= {f"average.{average.profile.name}/{k}": v for k, v in average.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": value for key, value in entries.items()}
        scalers = {name: s.state_dict() for name, s in self.scalers.items() if s.is_enabled()}
        counters = {"nimg": self.nimg, "steps": self.steps, "position": self.position}
        return {**counters, "scalers": scalers, "tensors": tensors}

    def layout(self) -> Callable[[str, torch.Size], Tensor | None]:
        """A function of name and shape: the tensor that lies on the ranks as the one of this name in `state_dict` does.

        Moments come with the first step, and lie as their parameter does. None for names of another method.
        """
        known = {f"method.{k}": v for k, v in self.method.state_dict().items()}
        known |= {f"average.{a.profile.name}/{k}": v for a in self.averages for k, v in a.params.items()}
        known |= {f"optimizer.{name}.{i}": p for name, params in self.seen.items() for i, p in enumerate(params)}

        def like(name: str, shape: torch.Size) -> Tensor | None:
            found = known.get(name.rpartition(".")[0] if name.startswith("optimizer.") else name)
            return found if found is not None and found.shape == shape else None

        return like

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, into a Trainer of the same settings, under any strategies; strict.

        Its tensors may be whole, or lie as those of this Trainer do.
        """
        parts: dict[str, dict[str, Tensor]] = {"method": {}, "average": {}, "optimizer": {}}
        for key, value in state["tensors"].items():
            part, rest = key.split(".", 1)
            parts[part][rest] = value
        mine = self.method.state_dict()
        self.method.load_state_dict({k: shard_like(mine[k], v) if k in mine else v for k, v in parts["method"].items()})
        for average in self.averages:
            prefix = f"{average.profile.name}/"
            average.load_state_dict(
                {k.removeprefix(prefix): v for k, v in parts["average"].items() if k.startswith(prefix)}
            )
        moments: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self.optimizers}
        for key, value in parts["optimizer"].items():
            name, index, entry = key.rsplit(".", 2)
            param = self.seen[name][int(index)]
            moments[name].setdefault(int(index), {})[entry] = (
                shard_like(param, value) if value.shape == param.shape else value  # the count of steps has no parts
            )
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[name], "param_groups": groups})
            for p, entries in optimizer.state.items():
                for key, value in entries.items():
                    if value.shape == p.shape:  # fused kernels walk through memory: it lies as its parameter does
                        entries[key] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        for name, values in state["scalers"].items():
            self.scalers[name].load_state_dict(values)
        self.nimg, self.steps, self.position = state["nimg"], state["steps"], state["position"]

    def condition(self) -> dict[str, float]:
        """Figures of the present: for each player the norm of all weights that move, and the rate of its last step.

        All ranks call it.
        """
        figures: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            figures[f"weight_norm/{name}"] = float(whole(torch.stack(torch._foreach_norm([*self.seen[name]])).norm()))
            figures[f"learning_rate/{name}"] = float(optimizer.param_groups[0]["lr"])
        return figures
