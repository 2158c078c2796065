"""Cosines, projections, nulls and neurons against cases whose answer is known by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from olmo.config import ModelConfig
from olmo.model import OLMo

from data_injection.tasks.comparison import Comparison
from eval.interference.gradients import (
    MLP,
    RandomDirection,
    Shard,
    alignment,
    cosine,
    gram,
    length,
    perp_share,
    shared,
    strongest,
    unit,
    without,
)
from eval.interference.measure import (
    dimensions,
    group_tables,
    halves,
    instances_of,
    join_halves,
    permuted_labels,
    step_rows,
    two_halves,
)


def random_vector(seed: int, sizes: tuple[int, ...] = (700, 1, 300_000)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


def table_of(*vectors: list[torch.Tensor]) -> np.ndarray:
    return gram(vectors).sum(0).numpy()


@pytest.mark.parametrize(("other", "expected"), [("opposed", -1), ("equal", 1), ("apart", 0)])
def test_opposed_equal_and_orthogonal_tasks_give_minus_one_one_and_zero(
    other: str, expected: int
) -> None:
    """A model w with a task that wants x0 up; another wants it down, up, or wants x1 up."""
    weight = torch.zeros(2, requires_grad=True)
    inputs = {
        "task": torch.tensor([1.0, 0.0]),
        "opposed": torch.tensor([-2.0, 0.0]),
        "equal": torch.tensor([3.0, 0.0]),
        "apart": torch.tensor([0.0, 1.0]),
    }

    def gradient(name: str) -> list[torch.Tensor]:
        return list(torch.autograd.grad(F.softplus(-(weight @ inputs[name])), weight))

    names = ["g", "t/task", "label/task", "r/task", "p/task", "z"]
    reference, rest = gradient("task"), gradient(other)
    task = [0.5 * reference[0]]
    step = [task[0] + rest[0]]
    null = [torch.tensor([0.0, 1.0])]
    table = table_of(step, task, task, reference, null, null)
    rows = {row["metric"]: row for row in step_rows(table, names, task="task", dim=2)}
    assert rows["cos_g_nt"]["value"] == pytest.approx(expected, abs=1e-7)
    assert rows["cos_g_nt"]["norm"] == pytest.approx(float(rest[0].norm()))
    assert rows["cos_g_t_all"]["value"] == pytest.approx(1)
    assert rows["cos_g_t_label"]["value"] == pytest.approx(1)
    assert rows["cos_g_nt"]["random_spread"] == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("rows", [8, 9])
def test_two_halves_tell_the_population_from_the_noise_of_a_batch(rows: int) -> None:
    """Rows' gradients drawn around a known one: over many batches, the closed forms."""
    generator = torch.Generator().manual_seed(0)
    population, task = torch.tensor([0.3, 0.0, 0.4]), torch.tensor([1.0, 2.0, 0.0])
    half, signal, noise, variance = rows // 2, [], [], []
    for _ in range(4000):
        drawn = population + torch.randn(rows, 3, generator=generator)
        vectors = [[drawn.mean(0)], [drawn[:half].mean(0)], [task]]
        spread, pull = two_halves(
            table_of(*vectors),
            unit(0, of=3),
            unit(1, of=3),
            reference=unit(2, of=3),
            share=half / rows,
        )
        signal.append(pull["value"])
        noise.append(pull["noise"])
        variance.append(spread**2)
    assert np.mean(signal) == pytest.approx(0.25, abs=0.02)
    assert np.mean(noise) == pytest.approx(3 / rows, rel=0.05)
    assert np.mean(variance) == pytest.approx(5 / rows, rel=0.05)


def test_inner_is_what_a_plain_step_takes_off_and_not_one_of_length_one() -> None:
    """A loss that is linear in the parameters, so that first order is all of it."""
    gradient, task, null = random_vector(1), random_vector(2), random_vector(3)
    table = table_of(gradient, task, null)
    reference, permuted = unit(1, of=3), unit(2, of=3)
    found = alignment(
        table, unit(0, of=3), reference=reference, permuted=permuted, random=permuted, dim=1
    )

    def taken_off(*, rate: float) -> float:
        steps = [-rate * part.double() for part in gradient]
        return -sum(float(step @ part.double()) for step, part in zip(steps, task, strict=True))

    assert found["inner"] == pytest.approx(taken_off(rate=1.0))
    assert found["inner"] / found["norm"] == pytest.approx(taken_off(rate=1 / found["norm"]))
    assert found["norm"] > 100  # so that the two differ


def test_cosines_from_the_gram_matrix_are_those_of_the_vectors() -> None:
    g, t, r, p = (random_vector(seed) for seed in range(4))
    r = [0.9 * b + 0.1 * a for a, b in zip(r, p, strict=True)]
    table = table_of(g, t, r, p)
    flat = {name: torch.cat(v).double() for name, v in zip("gtrp", (g, t, r, p), strict=True)}
    at = {name: unit(index, of=4) for index, name in enumerate("gtrp")}
    nt = flat["g"] - flat["t"]
    expected = float(nt @ flat["r"] / nt.norm() / flat["r"].norm())
    assert cosine(table, at["g"] - at["t"], at["r"]) == pytest.approx(expected, abs=1e-9)
    perp = flat["r"] - flat["r"] @ flat["p"] / flat["p"].norm() ** 2 * flat["p"]
    arrow = without(table, at["r"], at["p"])
    expected = float(nt @ perp / nt.norm() / perp.norm())
    assert cosine(table, at["g"] - at["t"], arrow) == pytest.approx(expected, abs=1e-9)
    assert cosine(table, arrow, at["p"]) == pytest.approx(0, abs=1e-9)
    share = perp_share(table, at["r"], at["p"])
    assert share == pytest.approx(float(perp.norm() / flat["r"].norm()))


def test_what_cancels_to_rounding_has_no_direction() -> None:
    g, r = random_vector(0), random_vector(1)
    nearly = [part * (1 + 2e-8) for part in g]
    table = table_of(g, nearly, r)
    nothing = unit(0, of=3) - unit(1, of=3)
    assert length(table, nothing) == 0
    assert math.isnan(cosine(table, nothing, unit(2, of=3)))
    assert math.isnan(cosine(table_of(g, [0 * p for p in g]), unit(0, of=2), unit(1, of=2)))


def test_a_step_without_rows_of_any_task_has_g_nt_equal_to_g() -> None:
    names = ["g", "r/a", "p/a", "r/b", "p/b", "z"]
    table = table_of(*(random_vector(seed) for seed in range(6)))
    rows = {row["metric"]: row for row in step_rows(table, names, task="a", dim=9)}
    assert set(rows) == {"cos_g", "cos_g_nt", "cos_g_r", "norm_g_r"}
    assert rows["cos_g"] == rows["cos_g_nt"] | {"metric": "cos_g"}
    assert rows["cos_g_r"]["other_task"] == "b"


def test_groups_sum_what_their_parameters_hold() -> None:
    one, two = random_vector(0, (4, 5, 6)), random_vector(1, (4, 5, 6))
    tables = group_tables({"a": one, "b": two}, [-1, 0, 1], ["layers", "model"])
    assert set(tables) == {("layers", 0, None), ("layers", 1, None), ("model", None, None)}
    for index, layer in ((1, 0), (2, 1)):
        expected = float(one[index].double() @ two[index].double())
        assert float(tables["layers", layer, None][0, 1]) == pytest.approx(expected)
    assert dimensions([-1, 0, 1], [4, 5, 6]) == {None: 15, -1: 4, 0: 5, 1: 6}


@pytest.mark.parametrize(("activation", "rows"), [("swiglu", 2), ("gelu", 1)])
def test_a_neuron_is_its_rows_of_ff_proj_and_its_column_of_ff_out(
    activation: str, rows: int
) -> None:
    """Planted in the engine's own block: scaling one neuron's numbers is all that `pick` sees."""
    config = ModelConfig(
        d_model=8,
        n_heads=2,
        n_layers=1,
        mlp_ratio=6,
        activation_type=activation,
        include_bias=False,
        vocab_size=16,
        embedding_size=16,
        max_sequence_length=8,
        rope=True,
        init_device="cpu",
    )
    torch.manual_seed(0)
    block = OLMo(config).transformer.blocks[0]
    num = block.ff_out.in_features
    assert (num, block.ff_proj.out_features) == (8 * 6 // rows, 8 * 6)
    sizes = (block.ff_proj.weight.numel(), block.ff_out.weight.numel())
    mlp = MLP(0, 1, num, 8, (rows + 1) * 8, (Shard(0, sizes[0]), Shard(0, sizes[1])))
    # The output's gradient through neuron 3 alone: only neuron 3's numbers get any.
    hidden = block.act(block.ff_proj(torch.randn(5, 8)))
    only = torch.zeros(num)
    only[3] = 1.0
    block.ff_out(hidden * only).square().sum().backward()
    vector = [block.ff_proj.weight.grad.reshape(-1), block.ff_out.weight.grad.reshape(-1)]
    squares = mlp.squares(vector)
    assert squares.nonzero().flatten().tolist() == [3]
    assert strongest(squares, 1) == [3]
    picked = mlp.pick(vector, mlp.entries([3]))
    assert len(picked) == mlp.width == (rows + 1) * 8
    assert (picked != 0).all()
    assert float(picked.square().sum()) == pytest.approx(float(squares[3]))
    assert not mlp.pick(vector, mlp.entries([0, 7])).any()


def test_neurons_over_shards_are_those_of_the_whole() -> None:
    d_model, num = 8, 16
    whole = random_vector(5, (2 * num * d_model, num * d_model))
    mlp = MLP(0, 1, num, d_model, 24, (Shard(0, len(whole[0])), Shard(0, len(whole[1]))))
    squares, picked = torch.zeros(num, dtype=torch.float64), []
    for cut in ((0, 100, 0, 0), (100, 101, 0, 77), (101, 256, 77, 128)):
        shards = (Shard(*cut[:2]), Shard(*cut[2:]))
        part = [full[shard.start : shard.stop] for full, shard in zip(whole, shards, strict=True)]
        rank = MLP(0, 1, num, d_model, 24, shards)
        squares += rank.squares(part)
        picked.append(rank.pick(part, rank.entries([2, 9])))
    assert torch.allclose(squares, mlp.squares(whole))
    expected = mlp.pick(whole, mlp.entries([2, 9]))
    assert sorted(torch.cat(picked).tolist()) == sorted(expected.tolist())


def test_a_random_direction_is_the_same_however_it_is_cut() -> None:
    total = RandomDirection.BLOCK + 1000
    settings = {"seed": 3, "counter": 7, "device": torch.device("cpu")}
    whole = RandomDirection([Shard(0, total)], [total], **settings)[0]
    cuts = [0, 5, RandomDirection.BLOCK - 3, total, total]
    parts = [
        RandomDirection([Shard(a, b)], [total], **settings)[0] for a, b in itertools.pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), whole)
    other = RandomDirection([Shard(0, total)], [total], **settings | {"counter": 8})[0]
    table = table_of([whole], [other], [torch.ones(total)])
    for one, two in ((0, 1), (0, 2)):
        assert abs(cosine(table, unit(one, of=3), unit(two, of=3))) < 4 / math.sqrt(total)


def test_halves_share_nothing_and_their_mean_is_the_whole() -> None:
    task = Comparison(
        "cmp", symbols=np.arange(10, 19), labels=np.arange(3), seed=0, train_fraction=0.5
    )
    instances = instances_of(task, split="all", num=0, seed=1)
    assert sorted(instances) == list(range(81))
    assert instances_of(task, split="all", num=20, seed=1).tolist() == instances[:20].tolist()
    assert set(instances_of(task, split="test", num=0, seed=1)) == set(task.test)
    first, second = halves(instances)
    assert not set(first) & set(second)
    assert len(first) + len(second) == 81
    mlp = MLP(0, 1, 1, 1, 3, (Shard(0, 2), Shard(0, 1)))
    r = [[torch.full((size,), value) for size in (2, 1, 5)] for value in (1.0, 4.0)]
    p = [[torch.full((size,), value) for size in (2, 1, 5)] for value in (2.0, 5.0)]
    joined = join_halves(r, p, mlp, share=1 / 3, device=torch.device("cpu"))
    assert [float(part[0]) for part in (*joined.r, *joined.p)] == pytest.approx([3] * 3 + [4] * 3)
    halves_of = (joined.choosing, joined.r_half, joined.p_half)
    assert [float(part[0][0]) for part in halves_of] == [1, 4, 5]


def test_permuted_labels_keep_the_marginal_and_lose_the_task() -> None:
    task = Comparison(
        "cmp", symbols=np.arange(10, 40), labels=np.arange(3), seed=0, train_fraction=0.5
    )
    instances = instances_of(task, split="all", num=0, seed=0)
    labels, permuted = task.tokens[instances, -1], permuted_labels(task, instances, seed=0)
    assert sorted(labels) == sorted(permuted)
    assert permuted.tolist() == permuted_labels(task, instances, seed=0).tolist()
    chance = sum((np.mean(labels == label)) ** 2 for label in range(3))
    assert np.mean(labels == permuted) == pytest.approx(chance, abs=0.08)


def test_shared_is_a_share_of_the_first() -> None:
    assert shared([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


@pytest.mark.parametrize("num_vectors", [2, 3, 7, 16])
def test_gram_is_symmetric_to_the_last_bit_on_every_processor(num_vectors: int) -> None:
    generator = torch.Generator().manual_seed(num_vectors)
    vectors = [[torch.randn(5_003, generator=generator)] for _ in range(num_vectors)]
    (table_VV,) = gram(vectors)
    assert torch.equal(table_VV, table_VV.mT)
    whole_VD = torch.stack([vector[0] for vector in vectors]).double()
    torch.testing.assert_close(table_VV, whole_VD @ whole_VD.T, rtol=1e-12, atol=1e-9)
