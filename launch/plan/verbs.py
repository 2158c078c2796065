"""`olmo-ext prepare` and `olmo-ext plan`: what comes before a run is paid for.

olmo-ext prepare embedded --out runs/corpus
olmo-ext plan experiment.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_injection.errors import ConfigError
from launch.terminal import (
    JsonFile,
    Overrides,
    at_work,
    console,
    errors,
    interruptible,
    refuse_idle,
    say,
    tables,
)

if TYPE_CHECKING:
    from data_injection.corpus.manifest import Manifest

IDLE = {
    "embedded": ("tokenizer", "name", "text_field", "dtype", "max_tokens", "skip_bad"),
    "closed": ("tokenizer", "name", "text_field", "dtype", "vocab_size", "skip_bad"),
    "facts": ("name", "text_field", "dtype", "vocab_size", "skip_bad"),
    "text": ("vocab_size",),
}
"""Options of `prepare` that say nothing about a source of this kind."""


def prepare(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="`embedded`, or Dolma files, globs, folders, hf:PATH[,CONFIG][:SPLIT], or "
            "closed:CORPUS, a prepared corpus' first --max-tokens again and again, or "
            "facts:NUM[,NOISE], facts over tokens of --tokenizer, of known entropy."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the corpus.")],
    tokenizer: Annotated[
        str, typer.Option(help="dolma-v1_5, dolma2, or a tokenizer.json.")
    ] = "dolma-v1_5",
    name: Annotated[str | None, typer.Option(help="Name in the manifest.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of a record with its text.")] = "text",
    dtype: Annotated[str | None, typer.Option(help="uint16 or uint32; default: smallest.")] = None,
    vocab_size: Annotated[int, typer.Option(help="BPE vocabulary of `embedded`.")] = 2048,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many tokens.")] = None,
    skip_bad: Annotated[
        int, typer.Option(min=0, help="Leave out so many lines that are no documents.")
    ] = 0,
) -> None:
    """Turn text into the engine's token files with a manifest."""
    kind = "embedded" if sources == ["embedded"] else sources[0].partition(":")[0]
    kind = kind if kind in IDLE else "text"
    refuse_idle(context, IDLE[kind], f"on {sources[0]}")
    if kind == "embedded":
        say(errors, f"{out}: about half a minute on one core, once")
    from data_injection.corpus.prepare import num_bad, prepare_corpus, prepare_embedded

    if kind == "embedded":
        manifest = prepare_embedded(out, vocab_size=vocab_size)
    elif kind == "closed":
        from data_injection.corpus.closed import prepare_closed

        if len(sources) > 1 or max_tokens is None:
            rule = "stands alone, and --max-tokens says how much of it"
            raise ConfigError(key="closed:CORPUS", rule=rule)
        if not (source := sources[0].removeprefix("closed:")):
            rule = "needs the folder of a corpus, got 'closed:'"
            raise ConfigError(key="closed:CORPUS", rule=rule)
        manifest = prepare_closed(source, out, num_tokens=max_tokens)
    elif kind == "facts":
        manifest = _prepare_facts(sources, out, tokenizer, max_tokens)
    else:
        manifest = prepare_corpus(
            sources, out, name=name or out.name, tokenizer=tokenizer, dtype=dtype,
            text_field=text_field, max_tokens=max_tokens, skip_bad=skip_bad,
        )  # fmt: skip
    if bad := num_bad(manifest.sources):
        console.print(f"{bad} bad lines left out; {out}/manifest.json lists them")
    console.print(
        f"{out}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents, "
        f"{manifest.dtype}, vocabulary {manifest.vocab_size}, sha256 {manifest.hash}"
    )


def _prepare_facts(
    sources: list[str], out: Path, tokenizer: str, max_tokens: int | None
) -> Manifest:
    from data_injection.corpus.facts import LEAST_TOKENS, prepare_facts

    num, _, noise = sources[0].removeprefix("facts:").partition(",")
    try:
        if len(sources) > 1:
            raise ValueError
        count, share = int(num), float(noise or 0)
    except ValueError:
        rule, remedy = "must be facts:NUM or facts:NUM,NOISE, alone", "for example facts:2048"
        raise ConfigError(key="sources", value=sources, rule=rule, remedy=remedy) from None
    tokens = LEAST_TOKENS if max_tokens is None else max_tokens
    made = prepare_facts(count, out, tokenizer=tokenizer, noise=share, num_tokens=tokens)
    entropy, first = (made.sources[0][name] for name in ("entropy", "first"))
    console.print(f"entropy: {entropy:.4f} nats a token; the least loss of rows of T tokens, whose")
    console.print("first is not predicted, as ai2-olmo logs it (their sum over all T tokens):")
    console.print(f"({entropy:.4f} T - {first:.4f}) / T")
    return made


def plan(
    context: typer.Context,
    experiments: Annotated[
        list[Path],
        typer.Argument(help="Experiment YAML; with --cost several, folders of them, sweeps."),
    ],
    override: Overrides = None,
    scan: Annotated[bool, typer.Option(help="Look for the tasks' tokens in the corpus.")] = True,
    scan_tokens: Annotated[
        int | None, typer.Option(min=1, help="Scan an evenly spread sample of so many tokens.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Only what runs cost, in one table; needs no corpus.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(help="World size of the estimate; default 1, with --cost 8.")
    ] = None,
    peak_tflops: Annotated[
        float, typer.Option(help="Peak of one GPU; 989 is an H100 SXM in dense bf16.")
    ] = 989.0,
    mfu: Annotated[float, typer.Option(help="Share of the peak that the model uses.")] = 0.4,
    json: JsonFile = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Write every instance (step, slot, offset, tokens): .parquet, .jsonl."),
    ] = None,
) -> None:
    """Before you pay for a run: exposures, what the corpus holds already, cost, warnings."""
    device = {"peak_tflops": peak_tflops, "mfu": mfu}
    if cost:
        refuse_idle(context, ("scan", "scan_tokens"), "with --cost")
        from launch.plan.cost import plan_cost

        if export is not None:
            rule = "writes the rows of one experiment's plan"
            raise ConfigError(key="--export", rule=rule, remedy="leave out --cost")
        gpus = 8 if gpus is None else gpus
        plan_cost(
            experiments, override or [], gpus=gpus, **device, json_path=json, console=tables(json)
        )
        return
    if not scan:
        refuse_idle(context, ("scan_tokens",), "with --no-scan")
    if len(experiments) != 1:
        rule = f"takes one experiment, got {len(experiments)}"
        raise ConfigError(key="plan", rule=rule, remedy="--cost takes more")
    with at_work("starting"):
        from eval.audit.host_rows import host_rows
        from eval.text import check_target
        from launch.json_file import write_json
        from launch.plan.preflight import as_json, preflight, show
        from launch.plan.rows import SUFFIXES, write_rows
        from olmo_ext.config import load_experiment

        check_target(export, "--export", suffixes=SUFFIXES)
        config = load_experiment(experiments[0], override, corpus=False)
    gpus = 1 if gpus is None else gpus
    with interruptible("--no-scan or --scan-tokens takes less time"):
        found = preflight(config, scan=scan, scan_tokens=scan_tokens, gpus=gpus, **device)
    show(found, tables(json))
    if json is not None:
        write_json(json, as_json(found))
    if export is not None:
        stream, host = found.stream, None
        if stream.plan.at_documents:
            paths = found.experiment.train.data.paths or []
            host = host_rows(stream.identity, [Path(path) for path in paths])
        num = write_rows(export, stream.plan, num_steps=stream.num_steps, host=host)
        tables(json).print(f"{export}: {num:,} rows")
