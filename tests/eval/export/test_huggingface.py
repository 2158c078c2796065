"""An exported model computes what the original computes, comes back bit for bit, or is refused."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from olmo.config import ModelConfig
from olmo.model import OLMo
from refusals import Words, refuses
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import eval.export.huggingface
import eval.export.llama
from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.corpus.encoder import tokenizer_path
from data_injection.corpus.manifest import VERSION, Manifest
from data_injection.errors import NO_VALUE
from data_injection.plan import compile_plan
from eval.checkpoints.checkpoint import load_model, load_model_config, load_plan
from eval.export.huggingface import export_hf, import_hf, load_hf
from eval.export.llama import (
    REQUIRED,
    TRANSLATED,
    WITHOUT_EFFECT,
    check_llama_shaped,
    llama_config,
    llama_weights,
    olmo_config,
)
from eval.export.model_card import model_card
from eval.export.provenance import Provenance
from eval.export.task_tables import load_tasks
from eval.records import read_records
from eval.scores.accuracy import answer
from launch.cli import main
from olmo_ext.config import load_experiment
from olmo_ext.train import train

Write = Callable[..., Path]

EXACT = 1e-5
"""What logits of order one may differ by in fp32: the two sum in another order."""

PLAIN: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
    "mlp_ratio": 8,
    "rope": True,
    "layer_norm_type": "rms",
    "layer_norm_eps": 1e-6,
    "include_bias": False,
    "weight_tying": False,
    "max_sequence_length": 64,
    "vocab_size": 256,
    "embedding_size": 256,
    "eos_token_id": 0,
    "pad_token_id": 1,
}

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"weight_tying": True},
    "padded": {"vocab_size": 250, "embedding_size": 384},
    "padded and tied": {"vocab_size": 250, "embedding_size": 384, "weight_tying": True},
    "embedding size null": {"embedding_size": None},
    "one head": {"n_heads": 1},
    "eight heads": {"n_heads": 8},
    "grouped queries": {"d_model": 64, "n_heads": 8, "n_kv_heads": 2},
    "grouped queries, tied": {"n_heads": 4, "n_kv_heads": 2, "weight_tying": True},
    "one key": {"n_heads": 4, "n_kv_heads": 1},
    "one key, by its older name": {"n_heads": 4, "multi_query_attention": True},
    "mlp by its size": {"mlp_hidden_size": 88},
    "another theta and eps": {"rope_theta": 500, "layer_norm_eps": 1e-3},
    "grouped blocks": {"n_layers": 4, "block_group_size": 2},
    "long": {"max_sequence_length": 1024},
    "EOS beyond the vocabulary": {"eos_token_id": 50256, "pad_token_id": 50256},
}


def randomised(model: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Every weight is a number of its own, gains too: one in another's place shows."""
    generator = torch.Generator().manual_seed(seed)
    names = {name for name, _ in model.named_parameters()}
    # Small where there is a head besides: an eps then shows. A tied one gives logits of order one.
    embedding = 0.02 if names & {"transformer.ff_out.weight", "lm_head.weight"} else 0.15
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                is_embedding = "wte" in name or "embed_tokens" in name
                scale = embedding if is_embedding else weight.shape[1] ** -0.5
                weight.normal_(0.0, scale, generator=generator)
    return model.eval()


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """A checkpoint of a randomised OLMo; of stock OLMo's files only those that are read."""
    config = ModelConfig(**(PLAIN | changes))
    config.init_device = "cpu"
    folder.mkdir(parents=True)
    values = json.loads(json.dumps(asdict(config)))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": values}))
    torch.save(randomised(OLMo(config)).state_dict(), folder / "model.pt")
    return folder


def difference(checkpoint: Path, exported: Path, *, ids_BT: torch.Tensor | None = None) -> float:
    """Largest difference of any logit, of random tokens over the full length by default."""
    original = load_model(checkpoint)
    if ids_BT is None:
        size, length = original.config.vocab_size, original.config.max_sequence_length
        ids_BT = torch.randint(size, (3, length), generator=torch.Generator().manual_seed(1))
    ours = AutoModelForCausalLM.from_pretrained(exported)
    assert type(ours) is LlamaForCausalLM
    with torch.no_grad():
        expected, found = original(ids_BT).logits, ours(ids_BT).logits
    assert expected.shape == found.shape
    assert 0.3 < expected.std() < 3, "the tolerance is for logits of order one"
    return float((expected - found).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree_for_every_shape_and_the_way_back_is_bit_equal(
    shape: str, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "step5-unsharded", **SHAPES[shape])
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True).folder
    assert difference(checkpoint, out) < EXACT
    back = import_hf(out, tmp_path / "olmo")
    assert load_model_config(back) == load_model_config(checkpoint)
    before, after = (torch.load(p / "model.pt", weights_only=True) for p in (checkpoint, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    load_model(back)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model over OLMo's own vocabulary, and its export with the tokenizer."""
    folder = tmp_path_factory.mktemp("real")
    sizes = {"vocab_size": 50280, "embedding_size": 50304, "eos_token_id": 50279}
    checkpoint = write_checkpoint(folder / "step1", max_sequence_length=512, **sizes)
    return checkpoint, export_hf(checkpoint, folder / "hf", tokenizer="dolma-v1_5").folder


TEXT = (Path(sysconfig.get_path("stdlib")) / "this.py").read_text() + "  naïve 漢字\n\t\t12345"


def test_logits_agree_on_real_text(real: tuple[Path, Path]) -> None:
    checkpoint, out = real
    ids = AutoTokenizer.from_pretrained(out)(TEXT, return_tensors="pt").input_ids[:, :512]
    assert ids.shape[1] > 400
    assert difference(checkpoint, out, ids_BT=ids) < EXACT


def test_the_text_tokenizer_encodes_and_decodes_as_the_corpus_did(real: tuple[Path, Path]) -> None:
    theirs = AutoTokenizer.from_pretrained(real[1])
    ours = Tokenizer.from_file(str(tokenizer_path("dolma-v1_5")))
    ids = ours.encode(TEXT, add_special_tokens=False).ids
    assert theirs.encode(TEXT) == ids
    assert theirs.decode(ids) == ours.decode(ids) == TEXT
    assert (theirs.eos_token_id, theirs.eos_token) == (50279, "<|endoftext|>")
    assert (theirs.pad_token_id, theirs.bos_token_id) == (1, None)


@pytest.mark.parametrize("shape", ["plain", "grouped queries, tied", "padded"])
def test_greedy_generation_is_the_originals_arg_max(shape: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "step1", **SHAPES[shape])
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True).folder
    model, original = AutoModelForCausalLM.from_pretrained(out), load_model(checkpoint)
    for seed in range(4):
        ids = torch.randint(2, 250, (1, 7), generator=torch.Generator().manual_seed(seed))
        generated = model.generate(ids, max_new_tokens=20)[0].tolist()
        expected = ids
        with torch.no_grad():
            while expected.shape[1] < 27 and expected[0, -1] != 0:
                following = original(expected).logits[:, -1:].argmax(dim=-1)
                expected = torch.cat([expected, following], dim=1)
        assert generated == expected[0].tolist()
        assert len(generated) > 10


def swap_up_and_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = ({"mlp.gate_proj": "mlp", "mlp.up_proj": "mlp"}, "width")
    monkeypatch.setitem(eval.export.llama.LAYER, "ff_proj", swapped)


def change_config(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Keys of config.json to set, or to leave out where None."""

    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(model: dict[str, Any]) -> dict[str, Any]:
            config = llama_config(model) | changes
            return {key: config[key] for key in config if changes.get(key, 0) is not None}

        monkeypatch.setattr(eval.export.huggingface, "llama_config", changed)

    return change


MUTATIONS = {
    "up and gate": swap_up_and_gate,
    "eps": change_config(rms_norm_eps=1e-5),
    "eps absent": change_config(rms_norm_eps=None),
    "theta": change_config(rope_theta=None, rope_parameters=None),
    "heads": change_config(num_attention_heads=8, num_key_value_heads=8, head_dim=8),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_sees_every_mistake_of_the_mapping(
    mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = 1e-4 if mutation == "eps absent" else 1e-6
    checkpoint = write_checkpoint(
        tmp_path / "step1", d_model=64, n_heads=4, rope_theta=500, layer_norm_eps=eps
    )
    MUTATIONS[mutation](monkeypatch)
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True).folder
    assert difference(checkpoint, out) > 100 * EXACT


# -- what is refused -----------------------------------------------------------------------------


def test_every_field_of_the_engines_model_config_is_classified_once() -> None:
    classes = [*REQUIRED, *TRANSLATED, *WITHOUT_EFFECT]
    assert sorted(classes) == sorted(field.name for field in fields(ModelConfig))


OTHER: dict[str, Any] = {
    "activation_type": "gelu",
    "alibi": True,
    "attention_layer_norm": True,
    "bias_for_layer_norm": True,
    "block_type": "llama",
    "clip_qkv": 8.0,
    "embedding_layer_norm": True,
    "include_bias": True,
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "norm_after": True,
    "rope": False,
    "scale_logits": True,
}


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_not_llama_shaped_is_refused_by_name_before_any_work(
    name: str, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "in" / "step1-unsharded"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text(yaml.safe_dump({"model": PLAIN | {name: OTHER[name]}}))
    (checkpoint / "model.pt").write_bytes(b"never read")
    with refuses(key="the model", rule=f"model.{name} is {OTHER[name]!r}, must be"):
        export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_all_reasons_are_named_at_once_and_a_new_field_is_refused() -> None:
    model = json.loads(json.dumps(asdict(ModelConfig(**PLAIN))))
    check_llama_shaped(model)
    with refuses(
        key="the model", rule=("model.clip_qkv", "model.norm_after"), remedy="olmo-ext eval"
    ):
        check_llama_shaped(model | {"clip_qkv": 8.0, "norm_after": True})
    with refuses(key="the model", rule="model.sliding_window is 64: a field this release"):
        check_llama_shaped(model | {"sliding_window": 64})


IN_FP32 = {
    "alibi_bias_max": 3.0,
    "attention_dropout": 0.5,
    "attention_layer_norm_with_affine": False,
    "embedding_dropout": 0.5,
    "emb_init_std": 0.7,
    "init_cutoff_factor": 2.0,
    "init_fn": "full_megatron",
    "init_std": 0.7,
    "residual_dropout": 0.5,
    "rope_full_precision": False,
    "scale_emb_init": True,
}


@pytest.mark.parametrize("name", IN_FP32)
def test_a_field_without_effect_has_none_in_the_engine(name: str) -> None:
    ids = torch.arange(64)[None]
    with torch.no_grad():
        one, two = (
            randomised(OLMo(ModelConfig(**(PLAIN | changes), init_device="cpu")))(ids).logits
            for changes in ({}, {name: IN_FP32[name]})
        )
    assert torch.equal(one, two)
    elsewhere = {"flash_attention", "init_device", "precision"}
    assert IN_FP32.keys() | elsewhere == WITHOUT_EFFECT.keys()


LADDER = Path(__file__).parents[3] / "configs" / "olmo_4M_to_4B"


@pytest.mark.parametrize("rung", ["4M", "20M", "300M", "1B", "4B"])
@pytest.mark.parametrize("preset", ["ladder", "paper"])
def test_every_rung_of_the_ladder_is_llama_shaped(preset: str, rung: str) -> None:
    raw = yaml.safe_load((LADDER / preset / f"{rung}.yaml").read_text())["train"]["model"]
    config = ModelConfig(**(raw | {"flash_attention": False, "init_device": "meta"}))
    model = json.loads(json.dumps(asdict(config)))
    check_llama_shaped(model)
    tensors = llama_weights(model, OLMo(config, init_params=False).state_dict())
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**llama_config(model))).state_dict()
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in theirs.items()}


# -- back ----------------------------------------------------------------------------------------


def stranger(folder: Path, **changes: Any) -> Path:
    """A LLaMA that transformers has made and saved."""
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
        "max_position_embeddings": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | changes)))
    randomised(model).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"eos_token_id": None}])
def test_a_llama_from_elsewhere_becomes_an_olmo(changes: dict[str, Any], tmp_path: Path) -> None:
    source = stranger(tmp_path / "hf", **changes)
    assert len(list(source.glob("*.safetensors"))) > 2
    assert difference(import_hf(source, tmp_path / "olmo"), source) < EXACT


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"attention_bias": True}, "attention_bias is True, must be False"),
        ({"mlp_bias": True}, "mlp_bias is True, must be False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', must be 'silu'"),
        ({"head_dim": 16}, "head_dim is 16, not width / heads"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            ("rope_parameters are", "linear"),
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0.5}},
            "rope_theta is 0.5, and the engine's is a whole number",
        ),
    ],
)
def test_a_llama_that_olmo_cannot_compute_is_refused(
    changes: dict[str, Any], rule: Words, tmp_path: Path
) -> None:
    with refuses(key="config.json", rule=rule):
        import_hf(stranger(tmp_path / "hf", **changes), tmp_path / "olmo")
    assert not (tmp_path / "olmo").exists()


def test_a_config_of_transformers_4_means_the_same() -> None:
    model = json.loads(json.dumps(asdict(ModelConfig(**PLAIN, rope_theta=500))))
    config = llama_config(model)
    del config["rope_parameters"]
    assert olmo_config(config, model) == model
    assert olmo_config(config, None)["rope_theta"] == 500
    with refuses(key="config.json", rule="rope_scaling"):
        olmo_config(config | {"rope_scaling": {"type": "linear", "factor": 2.0}}, model)


def test_a_folder_that_transformers_has_saved_again_comes_back_too(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "step1", n_kv_heads=1, rope_theta=500)
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True).folder
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "again")
    back = import_hf(tmp_path / "again", tmp_path / "olmo")
    before, after = (torch.load(p / "model.pt", weights_only=True) for p in (checkpoint, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert difference(back, out) < EXACT


def test_a_changed_config_is_believed_before_the_saved_one(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "step1")
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True).folder
    config = json.loads((out / "config.json").read_text()) | {"rms_norm_eps": 1e-2}
    (out / "config.json").write_text(json.dumps(config))
    assert load_model_config(import_hf(out, tmp_path / "olmo"))["layer_norm_eps"] == 1e-2


# -- files ---------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_an_empty_one_filled(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "in" / "step1")
    (tmp_path / "hf").mkdir()
    export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
    with refuses(key="--out", value=tmp_path / "hf", rule="not empty"):
        export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
    with refuses(key="--out", value=tmp_path / "hf", rule="not empty"):
        import_hf(tmp_path / "hf", tmp_path / "hf")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_to_where_it_leads(there: bool, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "in" / "step1")
    (tmp_path / "scratch").mkdir()
    if there:
        (tmp_path / "scratch" / "hf").mkdir()
    (tmp_path / "hf").symlink_to(tmp_path / "scratch" / "hf")
    export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
    assert (tmp_path / "hf").is_symlink()
    assert (tmp_path / "scratch" / "hf" / "config.json").is_file()


def test_weights_that_do_not_fit_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "in" / "step1")
    state = torch.load(checkpoint / "model.pt", weights_only=True)
    wte = state.pop("transformer.wte.weight")
    for changed, rule in (
        (state, "transformer.wte.weight is missing"),
        (state | {"transformer.wte.weight": wte, "extra": wte}, "extra is not expected"),
        (state | {"transformer.wte.weight": wte[:9]}, "wte.weight has shape (9, 32)"),
    ):
        torch.save(changed, checkpoint / "model.pt")
        with refuses(key="model.pt", rule=rule, remedy="from one checkpoint"):
            export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_can_run(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "step1")
    torch.save({"weight": Payload(tmp_path / "ran")}, checkpoint / "model.pt")
    with refuses(key=checkpoint / "model.pt", rule=("holds code, which is not run", "it asks for")):
        export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True)
    assert not (tmp_path / "ran").exists()


def test_bf16_rounds_and_says_so(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "step1")
    out = export_hf(checkpoint, tmp_path / "hf", no_tokenizer=True, dtype="bf16").folder
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "logits no longer agree" in (out / "README.md").read_text()
    back = torch.load(import_hf(out, tmp_path / "olmo") / "model.pt", weights_only=True)
    original = torch.load(checkpoint / "model.pt", weights_only=True)
    for name, tensor in original.items():
        assert torch.equal(back[name], tensor.bfloat16().float())
    with refuses(key="--dtype", value="fp16", rule="fp32, bf16"):
        export_hf(checkpoint, tmp_path / "other", no_tokenizer=True, dtype="fp16")


# -- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(write_experiment: Write) -> Path:
    return train(load_experiment(write_experiment()))


def test_no_name_becomes_markup_of_the_model_card() -> None:
    name = "<script>`x`</script> [a](javascript:b) | c\n# d"
    run = {"run": name, "starts": []}
    known = Provenance(Path("x"), 6, {"embedding_size": None}, {}, run, None, [])
    known.model["max_sequence_length"] = 8
    card = model_card(known, num_params=1, dtype="fp32", tokenizer=False)
    said = r"&lt;script&gt;\`x\`&lt;/script&gt; \[a\](javascript:b) \| c # d"
    assert f"# {said}, step 6\n" in card
    assert r"| run | `` <script>`x`</script> [a](javascript:b) \| c # d `` |" in card
    assert card.count("<script>") == 1  # inside a code span, which shows it


def test_a_card_does_not_call_sequences_text_alone_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"tokens": [3, 4, 5], "copies": 2}\n')
    canaries = TaskConfig("canaries", "sequences", params={"file": str(tmp_path / "s.jsonl")})
    cmp = TaskConfig("cmp", num_symbols=10, schedule=ScheduleConfig(rate=1))
    for tasks in ([canaries], [cmp, canaries]):
        plan = compile_plan(
            InjectionConfig(tasks=tasks), batch_size=8, seq_len=16, epoch_rows=8, vocab_size=100,
            eos_token_id=0, num_steps=10,
        )  # fmt: skip
        model = {"embedding_size": None, "max_sequence_length": 16}
        known = Provenance(Path("x"), 6, model, {}, {"starts": []}, plan, [])
        card = model_card(known, num_params=1, dtype="fp32", tokenizer=False)
        assert "text alone" not in card
        assert "Sequences, which no file here holds: `canaries`" in card
        assert ("`tasks.json`" in card) == (cmp in tasks)


def test_a_runs_export_carries_plan_exposures_scores_and_tables(run: Path, tmp_path: Path) -> None:
    out = export_hf(run, tmp_path / "hf", step=6, no_tokenizer=True).folder
    plan, card = load_plan(run), (out / "README.md").read_text()
    known = json.loads((out / "olmo_ext.json").read_text())
    digest = json.loads((run / "step6-unsharded" / "olmo_ext.json").read_text())["ledger"]
    for found in (plan.hash, digest["stream_digest"], known["corpus_hash"], *known["commits"]):
        assert found in card
    assert known["exposures_per_example"] == {"cmp": 12 / 50, "add": 3 / 50}
    assert "| `cmp` | comparison | even | 2 | 0.25 | 0.01562 | 0.0625 | 0.24 | 50 | 50 |" in card
    assert "| training tokens | 768 |" in card
    for task in plan.tasks:
        assert f"`{task.name}`: symbols {' '.join(map(str, task.symbols))}" in card
    rows = read_records(run).query("step == 6 and split == 'test' and subset == 'all'")
    for value in rows[rows.metric.isin(["accuracy", "label_accuracy", "score"])].value:
        assert f"{value:.3f} [" in card
    assert str(tmp_path) not in card
    assert [t.digest() for t in load_tasks(out)] == [t.digest() for t in plan.tasks]


def test_the_tokenizer_of_the_runs_corpus_goes_along_and_that_of_another_does_not(
    write_experiment: Write, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    Tokenizer(WordLevel({f"word{i}": i for i in range(256)})).save(str(corpus / "tokenizer.json"))
    overrides = [f"train.tokenizer.identifier={corpus}/tokenizer.json", "train.max_duration=1"]
    run = train(load_experiment(write_experiment(), overrides))
    out = export_hf(run, tmp_path / "hf").folder
    assert (out / "tokenizer.json").read_bytes() == (corpus / "tokenizer.json").read_bytes()
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["pad_token"]) == ("word0", "word1")
    other = Manifest(
        *("other", "tokenizer.json", "", 256, 0, 1, (), (), "uint16", 0, 0, (), ()), version=VERSION
    )
    (corpus / "manifest.json").write_text(json.dumps(asdict(other)))
    key, name = "train.tokenizer.identifier", corpus / "tokenizer.json"
    with refuses(key=key, value=name, rule=("corpus", other.hash[:12]), remedy="--no-tokenizer"):
        export_hf(run, tmp_path / "again")


def test_an_exported_folder_is_scored_as_the_original_item_by_item(
    run: Path, tmp_path: Path
) -> None:
    export = export_hf(run, tmp_path / "hf", no_tokenizer=True)
    assert export.provenance.path == run / "step12-unsharded"
    model, exported = load_model(run / "step12-unsharded"), load_hf(export.folder)
    for task in load_tasks(export.folder):
        ours = answer(lambda ids: model(ids).logits[:, -1], task, task.split("all"))
        theirs = answer(exported, task, task.split("all"))
        np.testing.assert_array_equal(ours.correct, theirs.correct)
        np.testing.assert_array_equal(ours.label_correct, theirs.label_correct)
        np.testing.assert_allclose(ours.loss, theirs.loss, atol=EXACT)
        assert ours.label_correct.any()


def test_a_damaged_or_changed_table_is_refused(run: Path, tmp_path: Path) -> None:
    out = export_hf(run, tmp_path / "hf", no_tokenizer=True).folder
    tables = json.loads((out / "tasks.json").read_text())
    tables["tasks"]["add"]["tokens"][3][2] += 1
    (out / "tasks.json").write_text(json.dumps(tables))
    with refuses(key=f"{out / 'tasks.json'}: the table of 'add'", remedy="export again"):
        load_tasks(out)


def test_a_checkpoint_away_from_its_run_is_exported_with_what_it_knows_itself(
    run: Path, tmp_path: Path
) -> None:
    away = (run / "step12-unsharded").rename(tmp_path / "step12-unsharded")
    out = export_hf(away, tmp_path / "hf", no_tokenizer=True).folder
    card = (out / "README.md").read_text()
    assert load_plan(run).hash in card
    assert "Unknown: exported away from its run's folder." in card
    assert not (out / "tasks.json").exists()
    with pytest.raises(FileNotFoundError, match=r"no tasks\.json .*from its run's folder"):
        load_tasks(out)


def test_bad_input_is_named_with_its_remedy(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    last = run / "step12-unsharded"
    both = "--tokenizer and --no-tokenizer"
    for source, given, key, value, rule in (
        (run, {}, "train.tokenizer.identifier", "gpt2", "a file here"),
        (run, {"tokenizer": "x", "no_tokenizer": True}, both, NO_VALUE, "exclude each other"),
        (run, {"step": 7}, "--step", 7, (str(run), "0, 6, 12")),
        (last, {"step": 6}, "--step", 6, (str(last), "is a checkpoint")),
    ):
        with refuses(key=key, value=value, rule=rule):
            export_hf(source, out, **given)
    rule, remedy = ("ids up to 50279", "embedding 256 rows"), "--no-tokenizer"
    with refuses(key=tokenizer_path("dolma-v1_5"), rule=rule, remedy=remedy):
        export_hf(run, out, tokenizer="dolma-v1_5")
    with pytest.raises(FileNotFoundError, match=r"neither a checkpoint .* nor a run"):
        export_hf(tmp_path / "absent", out)
    with pytest.raises(FileNotFoundError, match=r"config\.json and \*\.safetensors"):
        import_hf(last, out)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_hf(last)
    (last / "model.pt").write_bytes((last / "model.pt").read_bytes()[:-1])
    with refuses(key=last, rule="damaged: model.pt"):
        export_hf(run, out, no_tokenizer=True)
    assert not out.exists()


def test_the_command_exports_and_reads_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def olmo_ext(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["olmo-ext", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0)

    hf, back = tmp_path / "hf", tmp_path / "olmo"
    assert olmo_ext("export", run, "--to", "hf", "--out", hf, "--no-tokenizer") == 0
    assert olmo_ext("export", hf, "--to", "olmo", "--out", back) == 0
    original = torch.load(run / "step12-unsharded" / "model.pt", weights_only=True)
    again = torch.load(back / "model.pt", weights_only=True)
    assert all(torch.equal(tensor, again[name]) for name, tensor in original.items())
    assert olmo_ext("export", run, "--to", "gguf", "--out", tmp_path / "x") == 2
    assert "--to must be hf or olmo, got 'gguf'" in capsys.readouterr().err
    assert olmo_ext("export", hf, "--to", "olmo", "--out", tmp_path / "x", "--dtype", "bf16") == 2
    assert "--dtype has no effect with --to olmo" in capsys.readouterr().err
