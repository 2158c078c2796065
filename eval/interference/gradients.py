"""How gradients lie to one another: dot products, cosines with their nulls, the neurons of an MLP.

    table = gram([g, g_t, g_r, null])                 # (P, V, V): one Gram matrix a parameter
    cosine(table.sum(0), unit(0, of=4) - unit(1, of=4), unit(2, of=4))   # cos(g - g_t, g_r)

A **vector** is a gradient as one flat tensor a parameter; under FSDP each is this rank's shard. Dot
products are linear, so every cosine between sums, differences and projections of the vectors
follows from their Gram matrix: the shards are multiplied once, and one all-reduce of a few numbers
is all that ranks exchange. An **arrow** is such a combination: its coefficients on the V vectors.

Axes: P parameters, V vectors, N neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from data_injection.philox import raw_words

Vector = Sequence[torch.Tensor]
"""One flat tensor a parameter."""

Arrow = NDArray[np.float64]
"""Coefficients of a combination of vectors, shape (V,)."""

CHUNK = 2**18
"""Entries multiplied at a time: bounds the copies in double precision to V x 2 MiB."""

VANISHED = 1e-6
"""An arrow shorter than this share of what it is made of is rounding: its cosines are undefined.
(The gradients themselves are exact to about 1e-7 in fp32.)"""


@dataclass(frozen=True)
class Shard:
    """A rank's contiguous part of a flattened parameter."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@torch.no_grad()
def gram(vectors: Sequence[Vector], *, device: torch.device | None = None) -> torch.Tensor:
    """Dot products of all pairs of vectors by parameter, of this rank's shards; (P, V, V) double.

    Sum over parameters for a group of them, and over ranks (`sum_over_ranks`) for whole vectors.
    device: where to multiply vectors of which some lie elsewhere, brought there by the chunk.
    """
    num_params, num_vectors = len(vectors[0]), len(vectors)
    place = device or (vectors[0][0].device if num_params else torch.device("cpu"))
    out_PVV = torch.zeros(num_params, num_vectors, num_vectors, dtype=torch.float64, device=place)
    for index in range(num_params):
        parts = [vector[index] for vector in vectors]
        # Double precision: |g_r minus its projection|^2 is a difference of nearly equal numbers.
        for start in range(0, len(parts[0]), CHUNK):
            chunks = [part[start : start + CHUNK].to(device or part.device) for part in parts]
            block = torch.stack(chunks).double()
            out_PVV[index] += block @ block.T
    # One triangle, twice: some processors' kernels round (i, j) and (j, i) differently.
    return out_PVV.tril() + out_PVV.tril(-1).mT


def sum_over_ranks(tensors: list[torch.Tensor], group: Any) -> list[torch.Tensor]:
    """The tensors (of one type) summed over the ranks of a process group, in one all-reduce.

    A group of None says that every rank holds whole vectors: nothing is summed.
    """
    if group is None or not tensors:
        return tensors
    # A few hundred numbers: the wait for the slowest rank is all that counts, so once is enough.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    sizes = [tensor.numel() for tensor in tensors]
    return [
        part.view(tensor.shape) for part, tensor in zip(flat.split(sizes), tensors, strict=True)
    ]


# -- arrows: combinations of vectors -------------------------------------------------------------


def unit(index: int, *, of: int) -> Arrow:
    """The arrow that is vector `index` of `of` vectors."""
    arrow = np.zeros(of)
    arrow[index] = 1.0
    return arrow


def length(table_VV: NDArray[np.float64], arrow: Arrow) -> float:
    """Euclidean length; exactly 0 where the arrow's parts cancel to rounding (`VANISHED`)."""
    # Against its own parts, not an absolute bound: gradients shrink by orders of magnitude.
    square = float(arrow @ table_VV @ arrow)
    parts = float(np.abs(arrow) @ np.sqrt(np.maximum(np.diag(table_VV), 0.0)))
    return float(np.sqrt(square)) if square > (VANISHED * parts) ** 2 else 0.0


def cosine(table_VV: NDArray[np.float64], one: Arrow, two: Arrow) -> float:
    """Cosine of the angle between two arrows; not-a-number if one of them has no length."""
    lengths = length(table_VV, one) * length(table_VV, two)
    return float(one @ table_VV @ two) / lengths if lengths else float("nan")


def without(table_VV: NDArray[np.float64], arrow: Arrow, other: Arrow) -> Arrow:
    """The arrow minus its projection on another: what the other does not say.

    One step of Gram-Schmidt. With the permuted-labels gradient as the other, what is left is beyond
    the label marginal, which any row that ends in a label would teach as well.
    """
    square = length(table_VV, other) ** 2
    return arrow - float(arrow @ table_VV @ other) / square * other if square else arrow


def alignment(
    table_VV: NDArray[np.float64],
    arrow: Arrow,
    *,
    reference: Arrow,
    permuted: Arrow,
    random: Arrow,
    dim: int,
) -> dict[str, float]:
    """Cosine of an arrow with a task's reference gradient g_r, beside its nulls.

    Args:
        reference: g_r, the gradient of the task's label loss.
        permuted: the same with the labels permuted within the task: the label *marginal*, which is
            most of g_r before the task is learned.
        random: a random direction.
        dim: number of entries of a vector over all ranks.

    Returns:
        The fields of a record: value (the cosine), inner (the inner product: nats of the task's
        loss that a step of minus the arrow takes away, to first order; below 0 it harms) and
        null_inner (the same with `permuted`), null_labels and null_random (the cosine with
        `permuted` and `random`), random_spread (standard deviation of a cosine with a random
        direction, 1 / sqrt(dim)), perp (cosine with g_r minus its projection on `permuted`), norm
        (of the arrow) and dim.
    """
    return {
        "value": cosine(table_VV, arrow, reference),
        "inner": float(arrow @ table_VV @ reference),
        "null_inner": float(arrow @ table_VV @ permuted),
        "null_labels": cosine(table_VV, arrow, permuted),
        "null_random": cosine(table_VV, arrow, random),
        "random_spread": dim**-0.5 if dim else float("nan"),
        "perp": cosine(table_VV, arrow, without(table_VV, reference, permuted)),
        "norm": length(table_VV, arrow),
        "dim": dim,
    }


def perp_share(table_VV: NDArray[np.float64], reference: Arrow, permuted: Arrow) -> float:
    """|g_r minus its projection on the permuted g_r| / |g_r|: how much of it `perp` speaks for."""
    norm = length(table_VV, reference)
    perp = length(table_VV, without(table_VV, reference, permuted))
    return perp / norm if norm else float("nan")


class RandomDirection(Sequence[torch.Tensor]):
    """A vector of independent standard normals, drawn where it is read and never kept.

    A function of (seed, counter, the entry's place) and the type of device: the same on any rank
    count, whatever part of a parameter a rank holds.
    """

    BLOCK = 2**20
    """Drawn at a time, whatever a rank holds of it. Part of the numbers: another size would draw
    another direction, and a run resumed with it another null."""

    def __init__(
        self,
        shards: Sequence[Shard],
        total_sizes: Sequence[int],
        *,
        seed: int,
        counter: int,
        device: torch.device,
    ) -> None:
        self.shards, self.total_sizes = shards, total_sizes
        self.seed, self.counter, self.device = seed, counter, device

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: Any) -> Any:
        shard = self.shards[index]
        first, last = shard.start // self.BLOCK, -(-shard.stop // self.BLOCK)
        blocks = [self._block(index, number) for number in range(first, last)]
        whole = torch.cat(blocks) if blocks else torch.zeros(0, device=self.device)
        start = shard.start - first * self.BLOCK
        return whole[start : start + shard.size]

    def _block(self, index: int, number: int) -> torch.Tensor:
        purpose = f"interference/random/{index}/{number}"
        word = raw_words(1, seed=self.seed, purpose=purpose, counter=self.counter)[0]
        # torch takes seeds below 2^63.
        generator = torch.Generator(self.device).manual_seed(int(word >> np.uint64(1)))
        size = min(self.BLOCK, self.total_sizes[index] - number * self.BLOCK)
        return torch.randn(size, generator=generator, device=self.device)


# -- the neurons of an MLP -----------------------------------------------------------------------


@dataclass(frozen=True)
class MLP:
    """Where an MLP's numbers are. Neuron i is its rows of `ff_proj` and its column of `ff_out`.

    In OLMo's SwiGLU ff_proj has 2N rows, "up" then "gate", and ff_out N columns: neuron i is the
    rows i and N + i, and the column i, 3 x d_model numbers (N = mlp_ratio x d_model / 2).
    """

    ff_proj: int
    """Index of ff_proj's weight, shape (N or 2N, d_model), among the parameters."""

    ff_out: int
    """Index of ff_out's weight, shape (d_model, N)."""

    num_neurons: int
    d_model: int

    width: int
    """Numbers of one neuron."""

    shards: tuple[Shard, ...]
    """This rank's parts of ff_proj, of the gates and of ff_out, in this order."""

    gates: tuple[int, ...] = ()
    """Indices of weights of shape (N, d_model) where "gate" is a tensor of its own."""

    def of(self, vector: Vector) -> list[torch.Tensor]:
        """A vector's part in ff_proj, the gates and ff_out."""
        return [vector[i] for i in (self.ff_proj, *self.gates, self.ff_out)]

    def neuron(self, entry: torch.Tensor, *, down: bool) -> torch.Tensor:
        """The neuron of entries of the flattened ff_proj, or (`down`) ff_out.

        Both are flattened row by row: a neuron is a row of ff_proj and a column of ff_out. The
        remainder folds "gate" (rows N to 2N - 1) onto "up".
        """
        return (entry if down else entry // self.d_model) % self.num_neurons

    @torch.no_grad()
    def squares(self, pair: Vector) -> torch.Tensor:
        """Squared length of each neuron's part of `of(vector)`, of this rank's shards; (N,)."""
        device = pair[0].device
        out_N = torch.zeros(self.num_neurons, dtype=torch.float64, device=device)
        for place, (shard, part) in enumerate(zip(self.shards, pair, strict=True)):
            down = place == len(pair) - 1
            for first in range(0, shard.size, CHUNK):
                block = part[first : first + CHUNK].double()
                # A shard ends anywhere, also inside a row: each entry is told its neuron.
                entry = shard.start + first + torch.arange(len(block), device=device)
                out_N.index_add_(0, self.neuron(entry, down=down), block.square())
        return out_N

    def entries(self, chosen: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Indices into this rank's shards of the entries of the chosen neurons."""
        neuron_K, place_D = torch.tensor(list(chosen)), torch.arange(self.d_model)
        # Without a gate ff_proj has one row a neuron; the second lies beyond its end.
        row_K = torch.cat([neuron_K, self.num_neurons + neuron_K])
        up = (row_K[:, None] * self.d_model + place_D).reshape(-1)
        down = (place_D[:, None] * self.num_neurons + neuron_K).reshape(-1)
        ups = [up] * (len(self.shards) - 1)
        return tuple(
            entry[(entry >= shard.start) & (entry < shard.stop)] - shard.start
            for entry, shard in zip((*ups, down), self.shards, strict=True)
        )

    def pick(self, pair: Vector, entries: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The numbers of `of(vector)` at `entries`, one flat tensor."""
        return torch.cat([p[e.to(p.device)] for p, e in zip(pair, entries, strict=True)])


def strongest(squares_N: torch.Tensor, k: int) -> list[int]:
    """The k neurons with the largest squared length, ascending; ties go to the lower number."""
    # On the CPU and stable: every rank must choose the same neurons from the same sums.
    return sorted(torch.argsort(squares_N.cpu(), descending=True, stable=True)[:k].tolist())


def shared(one: Sequence[int], two: Sequence[int]) -> float:
    """The share of the neurons in `one` that are in `two` as well."""
    return len(set(one) & set(two)) / len(one)
