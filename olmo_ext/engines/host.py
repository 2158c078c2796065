"""What a callback may ask of the run it looks at, whatever engine trains it.

`Host` is all that callbacks know; `Engine` is where engines differ. ai2-olmo: `ExperimentTrainer`
with olmo_ext/engines/stock.py. OLMo-core: olmo_ext/core/host.py.

Axes: B rows, T tokens, V vocabulary, L layers (blocks + 1), D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from data_injection.beat import Beat
from eval.records import FOLLOWING, task_fields
from eval.scores.accuracy import Answers, answer
from eval.scores.fast_answers import CutModel, fast_answer

if TYPE_CHECKING:
    from data_injection.plan import InjectionPlan
    from data_injection.tasks.base import IntArray, Task


@dataclass(frozen=True)
class MLPWeights:
    """The weights of one block's MLP, by the ends of their names."""

    up: tuple[str, ...]
    """Of shape (N or 2N, D): one with "up" and "gate" below one another, or one of each."""

    down: str
    """Of shape (D, N)."""

    num_neurons: int
    d_model: int

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.up, self.down)


@dataclass(frozen=True)
class Layout:
    """Which part of each parameter, flattened, a rank holds."""

    group: Any
    """The process group over which the parts make the whole; None if every rank holds it."""

    starts: list[int]
    total_sizes: list[int]
    """Entries over all ranks."""


class Engine(Protocol):
    """The engine's own way of what callbacks need. All ranks call all of it equally often."""

    @property
    def optim(self) -> torch.optim.Optimizer: ...

    precision: str
    """As the engine names it: fp32, amp_bf16, ..."""

    taken_norm: float | None
    """Of this rank's part of the gradient as the optimizer took it, clipped, where `.grad` does not
    say so any more after the step; None where it does."""

    num_layers: int

    sharded: bool
    """Whether a rank holds parts of the parameters, which cannot be set in mid-run."""

    microbatch_rows: int
    """Of a training micro-batch: no pass of a callback's exceeds its rows or tokens."""

    microbatch_tokens: int

    def mlp(self, layer: int) -> MLPWeights: ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's own precision, for a forward pass."""

    def logits(self, ids_BT: Tensor, *, last: bool = True, of: Tensor | None = None) -> Tensor:
        """Logits of the last position, shape (B, V), or of all, (B, T, V); of these tokens."""

    def cut(self) -> CutModel | None:
        """The model for `eval.scores.fast_answers`; None in another precision than fp32, where it
        is sharded, or where nobody has held the fast answers against this engine's."""

    def residual_stream(self, input_ids_BT: Tensor) -> Tensor:
        """The last position's residual stream, as `eval.features.activations`; fp32 (L, B, D)."""

    def training_loss(self, rows: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """The loss of rows cut from this rank's part of a batch, as a share of the batch's."""

    def named_parameters(self) -> dict[str, Parameter]:
        """As the unwrapped model names them."""

    def layout(self, tensors: Sequence[Parameter]) -> Layout:
        """Where FSDP holds shards: after a backward pass. All ranks must call it."""

    def passes(self) -> AbstractContextManager[Any]:
        """Room for passes beside a step's own, whose gradients are the rank's or the mean."""

    def average(self, gradient: Sequence[Tensor]) -> None:
        """Make the gradient of such a pass the mean over ranks, in place."""


class Host(Protocol):
    """The ten names."""

    @property
    def plan(self) -> InjectionPlan:
        """What is injected: the tasks, their schedules and the rows of any step."""

    @property
    def device(self) -> torch.device:
        """This rank's."""

    @property
    def dist_model(self) -> Any:
        """The model as its parallel wrapper (DDP, FSDP) holds it; its parameters are `engine`'s."""

    @property
    def beat(self) -> Beat:
        """Says what is at work: `beat.at("features at step 200", done, parts)`."""

    @property
    def global_step(self) -> int:
        """Steps begun: s + 1 while step s of the plan is trained and when it is taken."""

    @property
    def max_steps(self) -> int:
        """Steps of the whole run."""

    @property
    def last_step(self) -> int:
        """The step after which this process stops."""

    @property
    def engine(self) -> Engine:
        """Its own ways: parameters, logits, losses, shards."""

    def measuring(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients; the training mode is put back."""

    def record(
        self,
        callback: str,
        *,
        metric: str,
        value: float,
        task: str = "",
        split: str = "train",
        **fields: Any,
    ) -> None:
        """Write one measurement at the current step; only rank 0 writes."""


def ask(host: Host, task: Task, indices: IntArray, *, batch_rows: int = 0) -> Answers:
    """`eval.scores.accuracy.answer` of the run's model; fast where the model can be cut."""
    if batch_rows == 0 and (model := host.engine.cut()) is not None:
        return fast_answer(model, task, indices)
    with host.engine.autocast():
        return answer(
            lambda ids_BT: host.engine.logits(ids_BT.to(host.device)),
            task,
            indices,
            batch_rows=batch_rows,
        )


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode without gradients; the training mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def write_record(
    host: Any,
    callback: str,
    *,
    tokens: int,
    metric: str,
    value: float,
    task: str = "",
    split: str = "train",
    **fields: Any,
) -> dict[str, Any] | None:
    """What `Host.record` writes, by the host's `writer` and with its `run_fields`: the row.

    None without a writer. Raises ValueError where `fields` are among those the run says itself.
    """
    if host.writer is None:
        return None
    now = {"step": host.global_step, "tokens": tokens, "precision": host.engine.precision}
    row = host.run_fields | now | {"family": "", "rate_per_step": 0.0, "exposures_per_example": 0.0}
    row |= {"task": task, "split": split, "metric": metric, "value": value}
    if task:
        row |= task_fields(host.plan, task, step=host.global_step)
    if taken := sorted((row.keys() | FOLLOWING) & fields.keys()):
        raise ValueError(
            f"the record of {callback}: {', '.join(taken)} is said by the run itself; choose "
            "another name for the callback's own"
        )
    host.writer.write([row | fields])
    return row | fields
