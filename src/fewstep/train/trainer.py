"""The Trainer: one optimizer step for every player that is due. It runs any Method and knows no algorithm's name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.denoiser import lay_out
from fewstep.core.method import Method, Phase
from fewstep.runtime import precision
from fewstep.runtime.distributed import copy_from_first, rank, sum_over_ranks, world_size
from fewstep.train.ema import Average, HalfLife, Profile, profiles
from fewstep.train.gradients import summed_over_ranks
from fewstep.train.optim import Optimizer, constrained_layers, loss_scaler, start_moments
from fewstep.train.read_ahead import ReadAhead, Stream
from fewstep.train.sharding import Strategy, as_optimized, full, move_gradients, shard_like


def reseed(*key: int) -> None:
    """Seed the random streams of torch from a tuple of non-negative numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class Trainer:
    """Trains the players of a method; the caller owns the loop.

    A step runs each due phase once, over `batch_size` fresh images, split into micro-batches that the ranks share. What a
    micro-batch draws depends only on (seed, step, phase, micro-batch), so that a resumed run is the same run, and the same
    micro-batches on more ranks give the same gradients. Between phases every network is frozen and in evaluation mode.
    Parameters that do not require gradients at the start never train. Those that train are stored in float32 at least
    (`precision.master`).

    Args:
        method: The networks and their losses; changed in place.
        data: Where batches come from.
        optimizers: Settings of an optimizer for each player that trains.
        batch_size: Images of a step, over all ranks.
        micro_batch: Images at a time on one rank; None for `batch_size` divided by the number of ranks.
        ema: How the product is averaged, in one way or several; the first average is the one that is evaluated.
        seed: Seed of everything that training draws.
        tf32: See `precision.tf32`.
        device: Where to train; None for the CPU.
        strategies: How networks are stored on the ranks, by their name in the method; others are replicated.

    Raises:
        ValueError: The batch cannot be divided so, an optimizer is missing, or a player has nothing to train.

    Example:
        >>> trainer = Trainer(method, stream, {"denoiser": Adam(1e-3)}, batch_size=64)
        >>> for _ in range(1000):
        ...     logs = trainer.step()
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
                f"micro_batch={self.micro_batch}, ranks={world_size()}. A run keeps the micro-batch it started with: choose "
                "one small enough for the largest number of ranks"
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
                f"no parameter of the {', '.join(still)} requires gradients, so it cannot train; if this method was trained "
                "before, create the method again"
            )
        method.requires_grad_(False).eval()
        product = self.player(method.product)
        replicas = [(copy.deepcopy(product), profile) for profile in profiles(ema)]
        for name, strategy in (strategies or {}).items():
            strategy.place(self.player(name))
        self.averages = tuple(Average(product, replica, profile) for replica, profile in replicas)
        self.params = {name: [self.player(name).get_parameter(k) for k in keys] for name, keys in moving.items()}
        for params in self.params.values():
            for p in params:
                p.requires_grad_(True)
        self.projected = {name: constrained_layers(self.player(name)) for name in players}
        self.settings: dict[str, Any] = dict(optimizers)
        self.optimized = {name: as_optimized(params) for name, params in self.params.items()}
        self.optimizers = {name: make(self.optimized[name]) for name, make in optimizers.items()}
        self.scalers = {name: loss_scaler(self.device, settings.loss_scale) for name, settings in optimizers.items()}
        method.requires_grad_(False)

    def player(self, name: str) -> nn.Module:
        return self.method.get_submodule(name)

    @property
    def product(self) -> nn.Module:
        """The averaged product, by the first average; if it is sharded, valid after `gather`."""
        return self.averages[0].module

    def gather(self) -> None:
        """Gather the weights of every sharded average until the next step; all ranks call it."""
        for average in self.averages:
            average.gather()

    def step(self) -> dict[str, Tensor]:
        """Train every player that is due, once.

        Returns:
            What to log, without waiting for the device: scalars are means over the batch; entries by noise level (2, BINS)
            are sums and counts.
        """
        logs: dict[str, Tensor] = {}
        for index, phase in enumerate(self.method.phases):
            if phase.due(self.steps, self.nimg):
                with precision.tf32(self.tf32):
                    logs |= self.update(index, phase)
        self.method.after_step(logs, self.batch_size)
        for average in self.averages:
            average.update(self.nimg, self.batch_size)
        self.steps += 1
        self.nimg += self.batch_size
        return logs

    def update(self, index: int, phase: Phase) -> dict[str, Tensor]:
        """One optimizer step of one player, over one batch."""
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
                metrics = {phase.name: loss.detach().mean()}
                metrics |= {f"{phase.name}/{key}": value.detach() for key, value in diagnostics.items()}
                for key, value in metrics.items():
                    # a scalar is the mean of a micro-batch; sums and counts (2, BINS) add up
                    share = value.float() / rounds if value.ndim == 0 else value
                    logs[key] = logs[key] + share if key in logs else share
        self.position += self.batch_size
        move_gradients(params, self.optimized[phase.player])
        gradients = [p.grad for p in self.optimized[phase.player] if p.grad is not None]
        sum_over_ranks([*logs.values()])
        scaler.unscale_(optimizer)
        logs[f"nonfinite/{phase.name}"] = full(phase.clean(gradients))
        logs[f"grad_norm/{phase.name}"] = full(torch.stack(torch._foreach_norm(gradients)).norm())
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
        """Put one player in training mode, with gradients for its parameters; freeze it again afterwards."""
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
        """Everything that the next step depends on, besides the settings: named tensors, counters, loss scales.

        The tensors are those that train, not copies, and are sharded as the strategies have it.
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

    def tensors(self, stored: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The tensors of `state_dict` that a stored state fills in place; optimizers get the moments that it has.

        Args:
            stored: Names and shapes of its tensors.

        Raises:
            ValueError: It is the state of other networks or settings.
        """
        indices: dict[str, set[int]] = {name: set() for name in self.optimizers}
        for key in stored:
            if key.startswith("optimizer."):
                name, index, _ = key.removeprefix("optimizer.").rsplit(".", 2)
                indices.get(name, set()).add(int(index))
        for name, optimizer in self.optimizers.items():
            start_moments(optimizer, indices[name])
        mine = self.state_dict()["tensors"]
        names = sorted(mine.keys() | stored.keys())
        if wrong := [n for n in names if n not in mine or n not in stored or mine[n].shape != stored[n]]:
            raise ValueError(f"{len(wrong)} of its tensors do not belong to this run, such as {wrong[0]}")
        return mine

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, into a Trainer of the same settings under any strategies; strict.

        The tensors may be full, or sharded as those of this Trainer are.
        """
        values: dict[str, Tensor] = state["tensors"]
        with torch.no_grad():
            for name, tensor in self.tensors({k: v.shape for k, v in values.items()}).items():
                tensor.copy_(shard_like(tensor, values[name]))
        self.load_counters(state)

    def load_counters(self, state: dict[str, Any]) -> None:
        """Set the counters and loss scales to those of a `state_dict`."""
        for name, values in state["scalers"].items():
            self.scalers[name].load_state_dict(values)
        self.nimg, self.steps, self.position = state["nimg"], state["steps"], state["position"]

    def player_metrics(self) -> dict[str, float]:
        """For each player the norm of all weights that train, and the learning rate of its last step; all ranks call it."""
        metrics: dict[str, float] = {}
        for name, optimizer in self.optimizers.items():
            norms = torch._foreach_norm([*self.optimized[name]])
            metrics[f"weight_norm/{name}"] = float(full(torch.stack(norms).norm()))
            metrics[f"learning_rate/{name}"] = float(optimizer.param_groups[0]["lr"])
        return metrics
