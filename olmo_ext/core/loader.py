"""The plan in OLMo-core's own data loaders: one seam, `_iter_batches`, in the main process.

    loader = inject(loader, InjectionConfig(...))      # before the trainer is built
    loader.plan.hash

OLMo-core's epochs count from 1 and are the order PCG64(seed + epoch) of all rows, the tail dropped:
that of `RowOrder` with seed + 1. Rank r of W takes every W-th row of a batch from r on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from data_injection.config import InjectionConfig
from data_injection.errors import ConfigError, check_equal
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.schedules.fits import check_beginning
from data_injection.splice import splice_batch
from data_injection.tasks.sequence_file import Encode
from eval.run import differences, told_differences
from olmo_ext.core.compat import (
    ComposableDataLoader,
    NumpyFSLDataLoader,
    ShuffleStrategy,
    require_core,
)

STATE = "olmo_ext"
"""Where the plan stands in the loader's part of a checkpoint."""


class Injected:
    """Before the class of a loader: its batches with the plan's examples in place.

    A batch is spliced when it has arrived in the main process, so that neither workers nor what
    they have read ahead matter.
    """

    plan: InjectionPlan
    section: InjectionConfig
    """What the plan was compiled from."""

    vocabulary: dict[str, Any]
    """Its size, and the ids that no task may draw."""

    @property
    def step(self: Any) -> int:
        """Step of the plan, counted from 0, of the batch that comes next."""
        return (self.epoch - 1) * self.total_batches + self.batches_processed

    @property
    def slots(self: Any) -> range:
        """Which rows of the global batch are this rank's."""
        return range(self.dp_rank, self.plan.geometry.batch_size, self.dp_world_size)

    def _iter_batches(self: Any) -> Iterator[dict[str, Any]]:
        # __iter__ counts a batch when it has been given: here it is number `batches_processed`.
        for batch in super()._iter_batches():  # type: ignore[misc]
            pad = self.collator.pad_token_id
            splice_batch(batch, self.plan, step=self.step, slots=self.slots, pad_token_id=pad)
            yield batch

    def state_dict(self: Any) -> dict[str, Any]:
        plan = {"plan_hash": self.plan.hash, "plan": self.plan.canonical}
        return super().state_dict() | {STATE: plan}  # type: ignore[misc]

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        before = state.get(STATE)
        if before is None:
            self._continue_unplanned(state)
            return
        if before["plan_hash"] != self.plan.hash:
            found = differences(self.plan.canonical, before["plan"])
            rule = "was trained by another plan; it cannot be resumed:\n  "
            rule += "\n  ".join(told_differences(found))
            raise ConfigError(key="the checkpoint", rule=rule)
        super().load_state_dict({k: v for k, v in state.items() if k != STATE})  # type: ignore[misc]

    def _continue_unplanned(self: Any, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of anybody's, whose rows so far were the corpus's own."""
        data = getattr(self, "dataset", None)  # of a composable loader OLMo-core itself compares
        if data is not None and state["dataset_fingerprint"] != data.fingerprint:
            rule = "was trained on another corpus (dataset_fingerprint): its order of rows cannot "
            rule += "be taken up"
            remedy = "start from its weights alone, by load_trainer_state=False"
            raise ConfigError(key="the checkpoint", rule=rule, remedy=remedy)
        super().load_state_dict(state)  # type: ignore[misc]
        check_beginning(self.plan.schedules, self.step)

    # -- the rows without the plan, for the batch check -------------------------------------------

    def order(self: Any) -> RowOrder:
        rows = self.plan.geometry.batch_size
        return RowOrder(num_rows=self.num_rows, batch_size=rows, seed=self.seed + 1)


class InjectedFSL(Injected, NumpyFSLDataLoader):
    """Also the rows of the corpus by number, as a batch check's host."""

    @property
    def num_rows(self) -> int:
        return len(self.dataset)

    def host_row(self, row: int) -> dict[str, Any]:
        return self._get_dataset_item(row)


class InjectedComposable(Injected, ComposableDataLoader):
    """As InjectedFSL."""

    @property
    def num_rows(self) -> int:
        return self.total_instances

    def host_row(self, row: int) -> dict[str, Any]:
        return self.get_instance(row)


class LoaderRows:
    """The loader's rows as `data_injection.splice.HostCorpus`."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return self.loader.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.loader.host_row(row)


def inject(
    loader: Any,
    config: InjectionConfig,
    *,
    reserved_tokens: Collection[int] = (),
    num_steps: int | None = None,
    encode: Encode | None = None,
) -> Any:
    """The loader with a plan, compiled for its corpus and batches: `.plan`.

    Args:
        loader: a NumpyFSLDataLoader or ComposableDataLoader not iterated yet.
        num_steps, encode: of the training and its tokenizer, for totals, shares and texts; see
            `compile_plan`.
        reserved_tokens: ids never drawn as symbols, besides EOS, BOS and padding.

    Raises:
        ConfigError: what cannot be injected, before any work starts.
    """
    require_core()
    kind: Any = _check(loader)
    fsl = kind is InjectedFSL
    tokens = loader.dataset if fsl else loader.tokenizer
    seq_len = loader.dataset.sequence_length if fsl else loader.sequence_length
    batch_size, rest = divmod(loader.global_batch_size, seq_len)
    if rest or batch_size % loader.dp_world_size:
        key, ranks = "data_loader.global_batch_size", loader.dp_world_size
        rule = f"must be a number of rows of {seq_len} tokens that {ranks} ranks can share"
        raise ConfigError(key=key, value=loader.global_batch_size, rule=rule)
    special = {tokens.eos_token_id, tokens.bos_token_id, loader.collator.pad_token_id} - {None}
    reserved = sorted({*special, *reserved_tokens})
    plan = compile_plan(
        config,
        batch_size=batch_size,
        seq_len=seq_len,
        epoch_rows=loader.total_batches * batch_size,
        vocab_size=tokens.vocab_size,
        eos_token_id=tokens.eos_token_id,
        reserved_tokens=reserved,
        num_steps=num_steps,
        encode=encode,
    )
    # The same loader in all else; a class cannot be exchanged for one with a mixin before it.
    spliced = kind.__new__(kind)
    spliced.__dict__ = loader.__dict__ | {"plan": plan, "section": config}
    spliced.vocabulary = {"vocab_size": tokens.vocab_size, "reserved_tokens": reserved}
    return spliced


def _check(loader: Any) -> type:
    """The class that splices for a loader; ConfigError where its order of rows is another."""
    kinds = {NumpyFSLDataLoader: InjectedFSL, ComposableDataLoader: InjectedComposable}
    kind = kinds.get(type(loader))
    if kind is None:
        rule = "must be a NumpyFSLDataLoader or ComposableDataLoader: in others (variable lengths "
        rule += "among them) a position has no row of its own"
        raise ConfigError(key="data_loader", value=type(loader).__name__, rule=rule)
    if kind is InjectedFSL:
        data, length = loader.dataset, loader.dataset.sequence_length
        needed = {"chunk_size": (loader.chunk_size, 1)}
        needed["max_target_sequence_length"] = (data.max_target_sequence_length or length, length)
        with_lengths, bos = data._generate_doc_lengths, data.bos_token_id
    else:
        needed = {"shuffle_strategy": (loader.shuffle_strategy, ShuffleStrategy.inter_source)}
        needed["sources_per_epoch"] = (loader.sources_per_epoch, len(loader.sources))
        needed["max_sequence_length"] = (loader.max_sequence_length, loader.sequence_length)
        with_lengths, bos = loader.generate_doc_lengths, loader.tokenizer.bos_token_id
    needed["shuffle"] = (loader.shuffle, True)
    settings = [(f"data_loader.{name}", *both) for name, both in needed.items()]
    check_equal(": the rows come in another order otherwise", *settings)
    if with_lengths and bos is not None:
        rule = "must be None with generate_doc_lengths: a spliced row's documents end at EOS alone"
        raise ConfigError(key="tokenizer.bos_token_id", value=bos, rule=rule)
    return kind
