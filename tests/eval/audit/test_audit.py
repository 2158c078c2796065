"""The audit agrees with healthy runs, and finds each planted fault: that one, and by its name."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import warm
from refusals import refuses

from data_injection.errors import ConfigError
from data_injection.ledger import read_segments
from data_injection.plan import InjectionPlan
from eval.audit.audit import audit_run
from eval.audit.explain import explain_step
from eval.audit.host_rows import HostRows
from eval.audit.identity import check_plan
from eval.audit.ledger import trace_ledger
from eval.audit.rows import check_rows
from eval.audit.segments import check_segments
from eval.audit.subject import DIFFERS, NOT_CHECKED, OK, Audit, Verdict, open_run
from eval.checkpoints.checkpoint import load_plan, write_checksums
from olmo_ext.config import load_experiment
from olmo_ext.train import train

ALL = ["plan", "checkpoints", "segments", "ledger", "exposures", "corpus", "stream"]
CHECKPOINTS = ["step0-unsharded", "step4-unsharded", "step8-unsharded", "step12-unsharded"]

Rows = list[tuple[int, int, int, int]]
"""(step, slot, example, task) in the order of the file."""


# -- tools: a run to spoil, and a forger who knows the format from docs/audit.md alone ------------


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """copy(run) -> a copy of the run and, where it has one, of the corpus beside it."""

    def make(run: Path) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(run, folder / "run", symlinks=True)
        for name in ("tokens.npy", "corpus"):
            source = run.parent / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copy(source, folder / name)
        return folder / "run"

    return make


def audited(run: Path, **kwargs: object) -> Audit:
    """Audit a copy on the corpus that was copied with it."""
    corpus = run.parent / "corpus"
    place = corpus if corpus.is_dir() else run.parent
    if not (place / "tokens.npy").is_file() and place == run.parent:
        return audit_run(run, **kwargs)  # type: ignore[arg-type]
    return audit_run(run, corpus=place, **kwargs)  # type: ignore[arg-type]


def verdict(audit: Audit, check: str) -> Verdict:
    return next(verdict for verdict in audit.verdicts if verdict.check == check)


def differing(audit: Audit) -> list[str]:
    assert [verdict.check for verdict in audit.verdicts] == ALL
    found = [verdict.check for verdict in audit.verdicts if verdict.status == DIFFERS]
    assert audit.status == (1 if found else 0)
    return found


def said(audit: Audit, check: str) -> str:
    found = verdict(audit, check)
    return "\n".join([found.said, *found.details])


def segment_file(run: Path, number: int = 0) -> Path:
    return run / "ledger" / f"segment-{number:05d}.bin"


def forge(path: Path, edit: Callable[[Rows], Rows], header: dict | None = None) -> None:
    """Change a segment and make all its checksums right again."""
    line, _, body = path.read_bytes().partition(b"\n")
    if header is not None:
        text = json.dumps(json.loads(line.split(b" ", 2)[2]) | header, sort_keys=True).encode()
        line = b"olmo-ext-ledger-1 %08x %s" % (zlib.crc32(text), text)
    line += b"\n"
    forged, block = [line], []
    for step, slot, example, task in struct.iter_unpack("<IIIH", body):
        if task != 0xFFFF:
            block.append((step, slot, example, task))
            continue
        rows = b"".join(struct.pack("<IIIH", *row) for row in edit(block))
        seal = struct.pack("<IIIH", step, len(rows) // 14, 0, 0xFFFF)
        crc = zlib.crc32(seal, zlib.crc32(rows, zlib.crc32(line)))
        forged += [rows, struct.pack("<IIIH", step, len(rows) // 14, crc, 0xFFFF)]
        block = []
    forged += [struct.pack("<IIIH", *row) for row in block]
    path.write_bytes(b"".join(forged))


def edit_identity(checkpoint: Path, edit: Callable[[dict], object]) -> None:
    """Change what a checkpoint says of itself and make its checksums right again."""
    path = checkpoint / "olmo_ext.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    (checkpoint / "SHA256SUMS").unlink()
    write_checksums(checkpoint)


def move_places(run: Path, *, after: int, by: int) -> None:
    """Let the checkpoints after a step name places so many records on."""
    for name in CHECKPOINTS:
        if int(name.split("-")[0].removeprefix("step")) > after:
            edit_identity(
                run / name, lambda i: i["ledger"].update(records=i["ledger"]["records"] + by)
            )


def reseed(plan: dict) -> str:
    """Another seed in a canonical plan; returns its hash, as the plan computes it."""
    plan["seed"] = 1
    return hashlib.sha256(
        json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def host_of(run: Path, paths: list[Path]) -> HostRows:
    identity = json.loads((run / "plan.json").read_text())
    return HostRows(paths, dtype="uint16", seq_len=16, batch_size=8, seed=identity["data_seed"])


def change_token(run: Path, paths: list[Path], *, step: int, slot: int, column: int) -> Path:
    """Change one token of a host row to another of the vocabulary; returns its file."""
    host = host_of(run, paths)
    path, offset = host.place(int(host.rows_of_step(step)[slot]))
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[offset + column] = 2 + (tokens[offset + column] - 1) % 254
    tokens.tofile(path)
    return path


def inside_rows(run: Path, path: Path, *, injected: bool) -> tuple[int, int]:
    """(step, slot) of a row that is injected or not, between the ends that are fingerprinted."""
    host, plan = host_of(run, [path]), load_plan(run)
    for step in range(4, 8):
        for slot in range(8):
            first = host.place(int(host.rows_of_step(step)[slot]))[1] * 2
            inside = 65536 <= first < path.stat().st_size - 65536 - 32
            if inside and (slot in plan.at(step).slots) == injected:
                return step, slot
    raise AssertionError("no such row")


# -- healthy runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["bare_run", "resumed_run", "prepared_run"])
def test_a_healthy_run_agrees_in_every_check(
    name: str, full: bool, request: pytest.FixtureRequest
) -> None:
    audit = audit_run(request.getfixturevalue(name), full=full)
    assert [(v.check, v.status) for v in audit.verdicts] == [(check, OK) for check in ALL]
    assert audit.status == 0
    assert audit.step == 12
    assert verdict(audit, "ledger").numbers["planned"] == 30  # 12 steps at rates 2 and 1/2
    stream = verdict(audit, "stream").numbers
    assert stream == {
        "steps_read": 12, "steps_compared": 12, "unplanned_rows": 66, "natural_examples": {},
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_resumed_on_two_ranks_agrees(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    shutil.rmtree(run / "step12-unsharded")
    settings = ["-o", f"train.save_folder={run}", "--resume"]
    done = warm.run("train", bare_run / "experiment.yaml", *settings, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    audit = audited(run, full=True)
    assert differing(audit) == []
    assert verdict(audit, "segments").said.endswith("1 restart, world size 1, 2")


def test_an_audit_changes_nothing_in_the_run(
    resumed_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(resumed_run)

    def look() -> dict[str, tuple[int, bytes]]:
        files = [path for path in run.rglob("*") if path.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in [*files]}

    before, names = look(), sorted(run.rglob("*"))
    audit_run(run, full=True)
    explain_step(run, 3)
    assert (look(), sorted(run.rglob("*"))) == (before, names)


def test_steps_taken_again_are_told_and_are_no_error(resumed_run: Path) -> None:
    audit = audit_run(resumed_run)
    (note,) = verdict(audit, "ledger").notes
    assert note == (
        "10 rows of steps 8 to 11 in segment 0 are abandoned: segment 1 went on from step 8"
    )
    assert verdict(audit, "ledger").numbers["rows"] == {
        "effective": 30, "abandoned": 10, "pending": 0,
    }  # fmt: skip
    assert "1 restart" in verdict(audit, "segments").said


def test_what_follows_the_last_checkpoint_is_pending(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    shutil.rmtree(run / "step12-unsharded")
    audit = audited(run)
    assert differing(audit) == []
    assert audit.step == 8
    assert verdict(audit, "ledger").numbers["rows"] == {
        "effective": 20, "abandoned": 0, "pending": 10,
    }  # fmt: skip


def test_a_run_that_is_writing_at_this_moment_is_not_damaged(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    with segment_file(run).open("ab") as file:
        file.write(b"\x0c\0\0\0\0")
    (run / "step16-unsharded-tmp").mkdir()
    segment_file(run, 1).touch()
    audit = audited(run, full=True)
    assert differing(audit) == []
    notes = verdict(audit, "segments").notes
    assert any("torn record of 5 bytes" in note for note in notes)
    assert any("segment 1 is empty" in note for note in notes)


def test_a_run_before_its_first_checkpoint_has_nothing_to_compare_yet(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    for name in CHECKPOINTS:
        shutil.rmtree(run / name)
    audit = audited(run)
    assert differing(audit) == []
    assert verdict(audit, "ledger").status == NOT_CHECKED
    assert "no checkpoint yet" in verdict(audit, "ledger").said
    assert verdict(audit, "ledger").numbers["rows"]["pending"] == 30


def test_a_run_from_before_the_ledger_is_checked_as_far_as_it_goes(
    bare_run: Path, copy: Callable[[Path], Path], write_experiment: Callable[..., Path]
) -> None:
    """Its checkpoints name no place; one that goes on has the later steps in its ledger."""
    run = copy(bare_run)
    shutil.rmtree(run / "ledger")
    for name in CHECKPOINTS:
        edit_identity(run / name, lambda identity: identity.pop("ledger"))
    old = audited(run, full=True)
    assert differing(old) == []
    kept = ("segments", "ledger", "exposures", "stream")
    assert [verdict(old, check).status for check in kept] == [NOT_CHECKED] * 4
    shutil.rmtree(run / "step12-unsharded")
    train(load_experiment(bare_run / "experiment.yaml", [f"train.save_folder={run}"]), resume=True)
    new = audited(run, full=True)
    assert differing(new) == []
    assert verdict(new, "ledger").said.startswith("10 rows in 4 steps")
    assert "steps 0 to 7 were trained before" in verdict(new, "ledger").notes[0]
    assert verdict(new, "stream").status == NOT_CHECKED


def test_an_earlier_checkpoint_can_be_audited(resumed_run: Path) -> None:
    audit = audit_run(resumed_run, step=4, full=True)
    assert (audit.step, audit.status) == (4, 0)
    assert verdict(audit, "ledger").numbers["planned"] == 10
    with refuses(key=resumed_run, rule="no checkpoint after step 5", remedy="[0, 4, 8, 12]"):
        audit_run(resumed_run, step=5)


def test_a_run_without_tasks_is_audited_for_its_text(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = write_experiment(lambda c: c.update(injection={"tasks": []}))
    run = train(load_experiment(experiment))
    assert differing(audit_run(run, full=True)) == []
    tokens = np.fromfile(tmp_path / "tokens.npy", dtype=np.uint16)
    tokens[::16] = 2
    tokens.tofile(tmp_path / "tokens.npy")
    assert differing(audit_run(run, full=True)) == ["corpus", "stream"]


@pytest.mark.parametrize("known", [False, True])
def test_a_family_that_is_not_installed_is_no_fault_of_the_run(
    known: bool, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """As of a run with somebody's own family: every witness of the plan names it."""
    run, family = copy(bare_run), "absent_pkg.tasks:Canary"
    experiment = run / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("family: comparison", f"family: {family}"))
    assert differing(audited(run)) == ["plan"]  # plan.json knows no such family

    def edit(identity: dict) -> None:
        for task in identity["plan"]["tasks"].values():
            task["family"] = family if task["family"] == "comparison" else task["family"]
        text = json.dumps(identity["plan"], sort_keys=True, separators=(",", ":"))
        identity["plan_hash"] = hashlib.sha256(text.encode()).hexdigest()

    plan = json.loads((run / "plan.json").read_text())
    edit(plan)
    (run / "plan.json").write_text(json.dumps(plan))
    for name in CHECKPOINTS:
        edit_identity(run / name, edit)
    forge(segment_file(run), lambda rows: rows, header={"plan_hash": plan["plan_hash"]})
    if known:
        said = json.loads((run / "run.json").read_text())
        canary = {"name": family, "path": family, "package": "absent", "version": "1.2"}
        (run / "run.json").write_text(json.dumps(said | {"extensions": [canary]}))
    audit = audited(run)
    assert differing(audit) == []
    found = verdict(audit, "plan")
    assert found.status == NOT_CHECKED
    assert found.said == f"unknown family {family}" + (" (absent, 1.2)" if known else "")
    assert verdict(audit, "ledger").status == NOT_CHECKED


def test_what_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plan\.json"):
        audit_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        audit_run(tmp_path / "nowhere")


# -- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("injected", [False, True])
def test_a_changed_token_is_found_by_the_digest_where_only_it_can_tell(
    injected: bool, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """In a plain row, and in an injected one beside the example."""
    run = copy(bare_run)
    tokens = run.parent / "tokens.npy"
    step, slot = inside_rows(run, tokens, injected=injected)
    change_token(run, [tokens], step=step, slot=slot, column=9)
    for full in (False, True):  # so small a run is within the budget
        audit = audited(run, full=full)
        assert differing(audit) == ["stream"]
        assert "differ from those trained on somewhere in steps 4 to 7" in said(audit, "stream")
        assert "step8-unsharded says" in said(audit, "stream")
        assert len(verdict(audit, "stream").details) == 0, "later intervals agree"


def test_a_sample_compares_whole_intervals_and_says_how_much_it_did_not_see(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """Of three intervals of 4 steps a budget of 7 holds one: the seed says which."""
    run = copy(bare_run)
    tokens = run.parent / "tokens.npy"
    step, slot = inside_rows(run, tokens, injected=False)
    change_token(run, [tokens], step=step, slot=slot, column=9)
    found = []
    for seed in range(20):
        audit = audited(run, sample=7, seed=seed)
        stream = verdict(audit, "stream")
        found.append(stream.status)
        assert stream == verdict(audited(run, sample=7, seed=seed), "stream")
        assert (stream.numbers["steps_read"], stream.numbers["steps_compared"]) == (7, 4)
        if stream.status == OK:
            assert "the digests hold for 4 steps of 12" in stream.said
            assert "a token changed in the 8 other steps" in stream.notes[0]
            assert "--full" in stream.notes[0]
    assert {OK, DIFFERS} == set(found)


def test_a_sample_smaller_than_every_interval_compares_nothing_and_says_so(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    audit = audit_run(bare_run, sample=3)
    stream = verdict(audit, "stream")
    assert (stream.status, audit.status) == (NOT_CHECKED, 0)
    assert (stream.numbers["steps_read"], stream.numbers["steps_compared"]) == (3, 0)
    assert "at least 4 steps apart" in stream.said
    assert "--sample 4 or more, or --full" in stream.said
    # What needs no digest is found all the same.
    run = copy(bare_run)
    for order in (run / "train_data").glob("*.u32"):
        order.write_bytes(bytes(order.stat().st_size))
    assert differing(audited(run, sample=3)) == ["stream"]


def test_the_default_sample_is_a_budget_of_tokens(
    bare_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.audit.stream.SAMPLE_TOKENS", 5 * 8 * 16)
    assert verdict(audit_run(bare_run), "stream").numbers["steps_read"] == 5
    monkeypatch.setattr("eval.audit.stream.SAMPLE_TOKENS", 1)
    assert verdict(audit_run(bare_run), "stream").numbers["steps_read"] == 1


@pytest.mark.parametrize("sample", [0, -1])
def test_a_sample_of_nothing_is_bad_input(sample: int, bare_run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        audit_run(bare_run, sample=sample)
    assert (caught.value.key, caught.value.value) == ("--sample", sample)
    assert caught.value.remedy


def test_a_changed_token_beneath_an_example_is_in_no_digest_but_in_the_manifest(
    bare_run: Path, prepared_run: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    run = copy(bare_run)
    tokens = run.parent / "tokens.npy"
    step, slot = inside_rows(run, tokens, injected=True)
    change_token(run, [tokens], step=step, slot=slot, column=1)
    audit = audited(run, full=True)
    assert differing(audit) == []
    assert "beneath an example" in verdict(audit, "stream").notes[0]
    shutil.rmtree(run.parent)
    run = copy(prepared_run)
    paths = sorted((run.parent / "corpus").glob("*.npy"))
    slot = int(load_plan(run).at(5).slots[0])
    path = change_token(run, paths, step=5, slot=slot, column=1)
    audit = audited(run, full=True)
    # The corpus of 40 rows is read more than once: in other steps the row has no example.
    assert differing(audit) == ["corpus", "stream"]
    assert f"{path} has sha256" in said(audit, "corpus")


def test_a_changed_token_of_a_prepared_corpus_is_found_in_its_file(
    prepared_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(prepared_run)
    paths = sorted((run.parent / "corpus").glob("*.npy"))
    slot = next(s for s in range(8) if s not in load_plan(run).at(1).slots)
    path = change_token(run, paths, step=1, slot=slot, column=9)
    assert differing(audited(run)) == ["stream"]
    audit = audited(run, full=True)
    assert differing(audit) == ["corpus", "stream"]
    assert f"{path} has sha256" in said(audit, "corpus")
    assert "somewhere in steps 0 to 3" in verdict(audit, "stream").said


@pytest.mark.parametrize("name", ["bare_run", "prepared_run"])
def test_a_corpus_file_cut_short_is_found_without_reading_it(
    name: str, request: pytest.FixtureRequest, copy: Callable[[Path], Path]
) -> None:
    run = copy(request.getfixturevalue(name))
    (path, *_) = sorted(run.parent.rglob("tokens*.npy"))
    path.write_bytes(path.read_bytes()[:-320])
    audit = audited(run)
    assert differing(audit) == ["corpus"]
    assert path.name in said(audit, "corpus") or str(path.parent) in said(audit, "corpus")
    assert "an epoch has" in said(audit, "corpus")
    assert verdict(audit, "stream").status == NOT_CHECKED


def test_two_corpus_files_in_each_others_place_are_found(
    prepared_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(prepared_run)
    one, two = sorted((run.parent / "corpus").glob("*.npy"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert differing(audited(run)) == ["stream"]  # of equal size: only reading them tells
    audit = audited(run, full=True)
    assert differing(audit) == ["corpus", "stream"]
    assert one.name in verdict(audit, "corpus").said
    assert len(verdict(audit, "stream").details) == 2, "all three intervals differ"


def test_another_corpus_with_a_manifest_of_its_own_is_found_at_once(
    prepared_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(prepared_run)
    manifest = run.parent / "corpus" / "manifest.json"
    value = json.loads(manifest.read_text())
    one = run.parent / "corpus" / value["files"][0]["path"]
    one.write_bytes(one.read_bytes()[::-1])
    value["files"][0]["sha256"] = hashlib.sha256(one.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(value))
    audit = audited(run)
    assert differing(audit) == ["corpus", "stream"]
    assert "is the corpus" in verdict(audit, "corpus").said


def test_a_missing_or_unreadable_corpus_file_is_named(
    prepared_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(prepared_run)
    (run.parent / "corpus" / "tokens-00001.npy").unlink()
    audit = audited(run, full=True)
    assert differing(audit) == ["corpus"]
    assert "tokens-00001.npy is missing" in verdict(audit, "corpus").said
    (run.parent / "corpus" / "manifest.json").write_text("{}")
    assert "is not the manifest" in verdict(audited(run), "corpus").said


def test_a_corpus_that_is_not_here_is_not_checked_and_with_full_bad_input(
    bare_run: Path, prepared_run: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    for source in (bare_run, prepared_run):
        run = copy(source)
        experiment = run / "experiment.yaml"
        experiment.write_text(experiment.read_text().replace(str(source.parent), "/nowhere"))
        audit = audit_run(run)
        assert differing(audit) == []
        assert verdict(audit, "corpus").status == verdict(audit, "stream").status == NOT_CHECKED
        assert "--corpus" in verdict(audit, "corpus").said
        with pytest.raises(FileNotFoundError, match="--corpus"):
            audit_run(run, full=True)
        assert differing(audited(run, full=True)) == []
        shutil.rmtree(run.parent)
    with pytest.raises(FileNotFoundError, match="--corpus"):
        audit_run(bare_run, corpus=tmp_path / "nowhere")


def test_a_wild_token_id_is_found_by_the_sample(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    path = run.parent / "tokens.npy"
    step, slot = inside_rows(run, path, injected=False)
    host = host_of(run, [path])
    _, offset = host.place(int(host.rows_of_step(step)[slot]))
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[offset + 3] = 300
    tokens.tofile(path)
    audit = audited(run)
    assert differing(audit) == ["stream"]
    assert f"step {step}, slot {slot}: token id 300" in verdict(audit, "stream").said
    assert "steps 4 to 7" in verdict(audit, "stream").details[0]
    assert f"token {offset + 3}" in verdict(audit, "stream").said


def test_rows_read_in_another_order_than_the_engines_are_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """The training reads the order from train_data and trusts what it finds there."""
    run = copy(bare_run)
    (path,) = (run / "train_data").glob("*.u32")
    order = np.fromfile(path, dtype=np.uint32)
    order[[17, 40]] = order[[40, 17]]
    order.tofile(path)
    audit = audited(run)
    assert differing(audit) == ["stream"]
    assert "step 2, slot 1: row" in verdict(audit, "stream").said


def test_natural_examples_are_counted(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = write_experiment()
    config = load_experiment(experiment)
    run = train(config)
    plan = load_plan(run)
    host = host_of(run, [tmp_path / "tokens.npy"])
    slot = next(s for s in range(8) if s not in plan.at(0).slots)
    _, offset = host.place(int(host.rows_of_step(0)[slot]))
    tokens = np.fromfile(tmp_path / "tokens.npy", dtype=np.uint16)
    tokens[offset : offset + 4] = [*plan.tasks[0].tokens[5], plan.eos_token_id]
    tokens.tofile(tmp_path / "tokens.npy")
    shutil.rmtree(run)
    natural = verdict(audit_run(train(load_experiment(experiment)), full=True), "stream")
    assert natural.numbers["natural_examples"]["cmp"] >= 1
    assert natural.status == OK


# -- the ledger -----------------------------------------------------------------------------------


def planned(plan: InjectionPlan, step: int) -> Rows:
    rows = plan.at(step)
    columns = (rows.slots, rows.examples, rows.tasks)
    return [(step, *row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def test_a_row_that_is_missing_is_found_though_all_checksums_are_forged(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    gone = planned(load_plan(run), 5)[0]
    forge(segment_file(run), lambda rows: [row for row in rows if row != gone])
    # One who forgets the checkpoints' places is found by them, too.
    assert "segments" in differing(audited(run))
    move_places(run, after=5, by=-1)
    audit = audited(run, full=True)
    assert differing(audit) == ["ledger", "exposures"]
    first = verdict(audit, "ledger").said
    assert first.startswith(f"step 5, slot {gone[1]}: the plan has example {gone[2]} of 'cmp'")
    assert first.endswith("the ledger lacks it")
    assert "in all 1 row of the plan not in the ledger, 0 rows" in said(audit, "ledger")
    assert verdict(audit, "exposures").said == "cmp: 24 instances planned, 23 trained"


def test_a_row_taken_out_of_the_file_is_found_by_the_checksum(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    path = segment_file(run)
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(line + b"\n" + body[:-42] + body[-28:])
    audit = audited(run)
    assert differing(audit) == ["segments", "ledger", "exposures"]
    assert "segment 0: records" in verdict(audit, "segments").said
    assert "are damaged" in verdict(audit, "segments").said


def test_a_doubled_row_is_found_as_twice(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    twin = planned(load_plan(run), 9)[1]
    forge(segment_file(run), lambda rows: [r for row in rows for r in [row] * (1 + (row == twin))])
    move_places(run, after=9, by=1)
    audit = audited(run)
    assert differing(audit) == ["ledger", "exposures"]
    first = verdict(audit, "ledger").said
    assert first.startswith(f"step 9, slot {twin[1]}: the ledger has example {twin[2]} of 'cmp'")
    assert first.endswith("twice, the plan once")


def test_a_swapped_example_is_named_with_both_sides_and_its_split(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    plan = load_plan(run)
    step, slot, example, task = planned(plan, 7)[0]
    other = int(plan.tasks[task].test[0])
    forge(
        segment_file(run),
        lambda rows: [
            (step, slot, other, task) if row == (step, slot, example, task) else row for row in rows
        ],
    )
    audit = audited(run)
    assert differing(audit) == ["ledger", "exposures"]
    name = plan.tasks[task].name
    first = verdict(audit, "ledger").said
    assert first.startswith(f"step 7, slot {slot}: the plan has example {example} of {name!r}")
    assert f"the ledger example {other} of {name!r}" in first
    assert "1 row of the test split" in said(audit, "exposures")


def test_rows_exchanged_between_slots_are_found_by_no_count_but_by_the_comparison(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    a, b = planned(load_plan(run), 6)[:2]
    places = {a: (6, b[1], *a[2:]), b: (6, a[1], *b[2:])}
    forge(segment_file(run), lambda rows: [places.get(row, row) for row in rows])
    audit = audited(run)
    assert differing(audit) == ["ledger"]
    assert "2 rows of the plan not in the ledger, 2 rows" in said(audit, "ledger")


def test_the_order_within_a_step_says_nothing(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    before = segment_file(run).read_bytes()
    forge(
        segment_file(run),
        lambda rows: sorted(rows, key=lambda row: (row[0], row[1])),
    )
    assert segment_file(run).read_bytes() != before
    assert differing(audited(run)) == []


def test_rows_in_no_order_that_a_run_writes_are_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """All there, each once, all checksums right: only their order shows a forger."""
    run = copy(bare_run)
    forge(segment_file(run), lambda rows: rows[::-1])
    audit = audited(run)
    assert differing(audit) == ["segments"]
    assert "segment 0: step 2 stands after step 3" in said(audit, "segments")


def test_a_damaged_seal_that_looks_like_a_row_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    path = segment_file(run)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the last record is the seal of step 12
    path.write_bytes(data)
    audit = audited(run)
    assert "step12-unsharded: segment 0 has no seal at record" in said(audit, "segments")


def test_an_unplanned_row_without_effect_is_found(
    resumed_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(resumed_run)
    stray = (11, 7, 3, 0)
    assert stray not in planned(load_plan(run), 11)
    forge(segment_file(run), lambda rows: [*rows, stray] if rows and rows[-1][0] == 11 else rows)
    audit = audited(run)
    assert differing(audit) == ["ledger"]
    assert verdict(audit, "ledger").said.startswith(
        "segment 0, among rows without effect: step 11, slot 7"
    )


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_a_truncated_segment_is_told_and_the_rest_is_still_read(
    keep: float, resumed_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(resumed_run)
    path = segment_file(run, 1)
    line, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(line + b"\n" + body[: int(len(body) * keep)])
    audit = audited(run)
    assert "segments" in differing(audit)
    assert "segment 1 is truncated" in said(audit, "segments")
    rows = verdict(audit, "ledger").numbers["rows"]
    assert rows["effective"] >= 20
    assert rows["abandoned"] == 10


def test_every_flipped_bit_of_a_segment_is_noticed(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """Also after the last seal, where no checksum is: such a row is not the plan's."""
    run = copy(bare_run)
    shutil.rmtree(run / "step12-unsharded")
    path = segment_file(run)
    path.write_bytes(path.read_bytes()[:-14])  # killed before the seal of step 12
    subject = open_run(run)
    plan = subject.trained_plan()
    whole = path.read_bytes()

    def noticed() -> bool:
        now = replace(subject, segments=read_segments(run / "ledger"))
        ledger = trace_ledger(now.segments, now.audited)
        found = [check_plan(now), check_segments(now), *check_rows(now, ledger, plan)]
        return any(one.status == DIFFERS for one in found)

    assert not noticed()
    unnoticed = []
    for at in range(len(whole)):
        for bit in range(8) if at % 7 == 0 else (at % 8,):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            if not noticed():
                unnoticed.append((at, bit))
    assert unnoticed == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_segment_is_named(
    number: int, resumed_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(resumed_run)
    segment_file(run, number).unlink()
    audit = audited(run)
    assert differing(audit) == ["segments", "ledger", "exposures"]
    assert f"segment {number} is missing" in said(audit, "segments")
    assert verdict(audit, "ledger").said.startswith("step 0, slot")
    assert f"the lineage is broken: segment {number} is missing" in said(audit, "ledger")
    # Of a missing first segment the later steps are still known.
    rows = verdict(audit, "ledger").numbers["rows"]
    assert rows["effective"] == (10 if number == 0 else 0)


def test_a_missing_segment_without_effect_is_named(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """Three starts, of which the second came to nothing: its file is part of the account."""
    run = copy(bare_run)
    for _ in range(2):
        shutil.rmtree(run / "step12-unsharded")
        overrides = [f"train.save_folder={run}"]
        train(load_experiment(bare_run / "experiment.yaml", overrides), resume=True)
    assert differing(audited(run)) == []
    segment_file(run, 1).unlink()
    audit = audited(run)
    assert differing(audit) == ["segments"]
    assert verdict(audit, "segments").said == "segment 1 is missing"


def test_a_run_without_its_ledger_is_found(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    shutil.rmtree(run / "ledger")
    audit = audited(run)
    assert differing(audit) == ["segments"]
    assert "no segment, but checkpoints name places" in verdict(audit, "segments").said
    assert verdict(audit, "ledger").status == NOT_CHECKED


def test_a_segment_of_another_run_is_named(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    forge(segment_file(run), lambda rows: rows, header={"run": "other"})
    audit = audited(run)
    assert differing(audit) == ["segments"]
    assert "segment 0: it is of the run 'other', this is 'tiny'" in said(audit, "segments")


def test_a_segment_under_another_number_is_not_taken_for_that(
    resumed_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(resumed_run)
    shutil.copy(segment_file(run, 0), segment_file(run, 1))
    audit = audited(run)
    assert "segments" in differing(audit)
    assert "segment 1: its first line is damaged" in said(audit, "segments")


def test_a_parent_that_is_not_older_ends_the_lineage(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    parent = {"segment": 0, "records": 3}
    forge(segment_file(run), lambda rows: rows, header={"parent": parent, "start_step": 2})
    assert "segments" in differing(audited(run))


# -- the plan -------------------------------------------------------------------------------------


def test_another_seed_in_the_experiment_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    path = run / "experiment.yaml"
    text = path.read_text()
    assert text.count("injection:\n  seed: 0") == 1
    path.write_text(text.replace("injection:\n  seed: 0", "injection:\n  seed: 1"))
    audit = audited(run)
    assert differing(audit) == ["plan"]
    assert verdict(audit, "plan").said.startswith("experiment.yaml: plan")
    assert "plan.seed: 1 in experiment.yaml, 0 elsewhere" in said(audit, "plan")
    # Compared with a plan that nothing vouches for, every row would differ.
    assert verdict(audit, "ledger").status == NOT_CHECKED


@pytest.mark.parametrize("hashed", [False, True])
def test_another_seed_in_plan_json_is_found(
    hashed: bool, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    value = json.loads((run / "plan.json").read_text())
    other = reseed(value["plan"])
    if hashed:
        value["plan_hash"] = other
    (run / "plan.json").write_text(json.dumps(value))
    audit = audited(run)
    assert differing(audit) == ["plan"]
    assert verdict(audit, "plan").said.startswith("plan.json: ")
    assert "plan.seed: 1 in" in said(audit, "plan")
    assert verdict(audit, "ledger").status == OK


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("name", ["step4-unsharded", "step12-unsharded"])
def test_a_checkpoint_of_another_plan_is_found(
    name: str, hashed: bool, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    def edit(identity: dict) -> None:
        other = reseed(identity["plan"])
        if hashed:
            identity["plan_hash"] = other

    run = copy(bare_run)
    edit_identity(run / name, edit)
    audit = audited(run, full=True)
    assert differing(audit) == ["plan"]
    assert verdict(audit, "plan").said.startswith(f"{name}: ")


def test_a_segment_of_another_plan_is_found(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    forge(segment_file(run), lambda rows: rows, header={"plan_hash": "ab" * 32})
    audit = audited(run)
    assert differing(audit) == ["plan"]
    assert verdict(audit, "plan").said.startswith("ledger segment 0: plan abab")


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("global_train_batch_size: 8", "global_train_batch_size: 4", "global_train_batch_size"),
        ("\n  seed: 7\n", "\n  seed: 9\n", "the data seed is 9 in experiment.yaml, 7"),
        ("run_name: tiny", "run_name: huge", "train.run_name is 'huge'"),
    ],
)
def test_an_experiment_of_another_stream_is_found(
    before: str, after: str, named: str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    path = run / "experiment.yaml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    audit = audited(run)
    assert differing(audit) == ["plan"]
    assert named in said(audit, "plan")


@pytest.mark.parametrize("text", ["", "injection: [", "injection: {tasks: [{name: x}]}", "7"])
def test_an_experiment_that_compiles_to_nothing_is_found(
    text: str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    (run / "experiment.yaml").write_text(text)
    audit = audited(run)
    assert differing(audit)[0] == "plan"
    assert "experiment.yaml" in said(audit, "plan")
    (run / "experiment.yaml").unlink()
    assert "experiment.yaml is missing" in said(audited(run), "plan")


def test_a_plan_json_that_cannot_be_read_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    (run / "plan.json").write_text("{}")
    audit = audited(run)
    assert differing(audit) == ["plan"]
    assert "plan.json cannot be read" in verdict(audit, "plan").said


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_the_latest_at_once_and_others_with_full(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    for name, found in (("step4-unsharded", []), ("step12-unsharded", ["checkpoints"])):
        path = run / name / "model.pt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert differing(audited(run)) == found
        full = audited(run, full=True)
        assert differing(full) == ["checkpoints"]
        assert f"{name}: model.pt has sha256" in said(full, "checkpoints")


def test_a_checkpoint_under_the_name_of_another_step_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    (run / "step12-unsharded").rename(run / "step11-unsharded")
    audit = audited(run)
    assert "checkpoints" in differing(audit)
    assert verdict(audit, "checkpoints").said == "step11-unsharded: step 12 stands inside"


def test_a_checkpoint_of_another_corpus_seed_or_learning_rate_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    edit_identity(run / "step8-unsharded", lambda i: i.update(corpus_hash="x"))
    edit_identity(run / "step4-unsharded", lambda i: i["train"].update(seed=9))
    audit = audited(run)
    assert differing(audit) == ["checkpoints"]
    assert verdict(audit, "checkpoints").said == "step4-unsharded: train.seed is 9, 7 in plan.json"
    assert "step8-unsharded: corpus_hash is 'x'" in said(audit, "checkpoints")


def test_a_checkpoint_that_lost_files_or_its_checksums_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    (run / "step12-unsharded" / "SHA256SUMS").unlink()
    (run / "step8-unsharded" / "optim.pt").unlink()
    audit = audited(run)
    assert differing(audit) == ["checkpoints"]
    assert "step12-unsharded: SHA256SUMS is missing" in said(audit, "checkpoints")
    shutil.rmtree(run / "step12-unsharded")
    audit = audited(run)
    assert differing(audit) == ["checkpoints"]
    assert (audit.step, verdict(audit, "checkpoints").details) == (4, ())
    assert "step8-unsharded is incomplete: optim.pt missing" in said(audit, "checkpoints")


@pytest.mark.parametrize("gone", [["optim.pt"], ["SHA256SUMS"], ["olmo_ext.json"], "all"])
def test_a_checkpoint_that_is_half_removed_while_a_later_one_is_whole_is_a_note(
    gone: list[str] | str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    """As a run that keeps its last checkpoints leaves it, killed or audited as it removes one."""
    run = copy(bare_run)
    for path in sorted((run / "step4-unsharded").iterdir()):
        if gone == "all" or path.name in gone:
            path.unlink()
    audit = audited(run, full=True)
    assert differing(audit) == []
    (note,) = verdict(audit, "checkpoints").notes
    assert note.startswith("step4-unsharded ")
    assert "a later one is whole" in note


def test_a_checkpoint_removed_while_its_files_are_read_is_a_note(
    bare_run: Path, copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(bare_run)

    def verify(path: Path) -> list[str]:
        if path.name == "step4-unsharded":
            (path / "model.pt").unlink()
            raise FileNotFoundError(2, "No such file", str(path / "model.pt"))
        return []

    monkeypatch.setattr("eval.audit.identity.verify_checkpoint", verify)
    audit = audited(run, full=True)
    assert differing(audit) == []
    assert verdict(audit, "checkpoints").notes[0].startswith("step4-unsharded was not verified")


def test_an_unreadable_identity_is_found_and_the_checkpoint_before_it_audited(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    (run / "step12-unsharded" / "olmo_ext.json").write_text('{"plan_hash')
    audit = audited(run)
    assert differing(audit) == ["checkpoints"]
    assert audit.step == 8
    assert "step12-unsharded: olmo_ext.json cannot be read" in said(audit, "checkpoints")


def test_a_checkpoint_set_aside_is_mentioned(bare_run: Path, copy: Callable[[Path], Path]) -> None:
    run = copy(bare_run)
    (run / "step8-unsharded").rename(run / "step8-unsharded.damaged-abc123")
    audit = audited(run)
    assert differing(audit) == []
    note = "step8-unsharded was set aside by a later start: damaged-abc123"
    assert note in verdict(audit, "checkpoints").notes
    (run / "step4-unsharded").rename(run / "step4-unsharded.incomplete-abc123")
    (run / "step16-unsharded-tmp").mkdir()
    audit = audited(run)
    assert differing(audit) == []
    assert verdict(audit, "checkpoints").notes[:3] == (
        "step4-unsharded was set aside by a later start: incomplete-abc123",
        "step8-unsharded was set aside by a later start: damaged-abc123",
        "step16-unsharded-tmp was not finished: a killed writer, or one at work",
    )


@pytest.mark.parametrize(
    ("ledger", "named"),
    [
        ({"records": 5}, "step12-unsharded: segment 0: record"),
        ({"records": 99}, "step12-unsharded: segment 0 is truncated"),
        ({"segment": 3}, "step12-unsharded: segment 3 is missing"),
        ({"segment": "x"}, "step12-unsharded/olmo_ext.json holds no place in the ledger"),
        ({"records": -1}, "step12-unsharded/olmo_ext.json holds no place in the ledger"),
    ],
)
def test_a_checkpoint_that_names_another_place_in_the_ledger_is_found(
    ledger: dict, named: str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    edit_identity(run / "step12-unsharded", lambda i: i["ledger"].update(ledger))
    audit = audited(run)
    assert "segments" in differing(audit)
    assert named in said(audit, "segments")


@pytest.mark.parametrize("name", ["step4-unsharded", "step12-unsharded"])
@pytest.mark.parametrize("ledger", [None, [], "x", {}, {"segment": 0, "records": True}])
def test_a_damaged_place_in_any_checkpoint_is_told_and_the_rest_is_audited(
    ledger: object, name: str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    edit_identity(run / name, lambda identity: identity.update(ledger=ledger))
    audit = audited(run)
    assert differing(audit) == ["segments"]
    assert verdict(audit, "segments").said.startswith(f"{name}/olmo_ext.json holds no place")
    lost = name == "step12-unsharded"
    assert verdict(audit, "ledger").status == (NOT_CHECKED if lost else OK)
    if lost:
        assert "does not say where in the ledger it stands" in verdict(audit, "ledger").said
        with refuses(key=run / name, remedy="use another checkpoint"):
            explain_step(run, 3)
    assert differing(audited(run, step=8)) == ["segments"]
    assert verdict(audited(run, step=8), "ledger").status == OK


@pytest.mark.parametrize("name", ["step4-unsharded", "step12-unsharded"])
@pytest.mark.parametrize("digest", [None, 7, "0x12", "xyz", "-" + "1" * 15])
def test_a_damaged_digest_is_told_and_the_steps_around_it_are_compared(
    digest: object, name: str, bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    edit_identity(run / name, lambda identity: identity["ledger"].update(stream_digest=digest))
    for full in (False, True):
        audit = audited(run, full=full)
        assert differing(audit) == ["checkpoints"]
        found = verdict(audit, "checkpoints").said
        assert found.startswith(f"{name}: {name}/olmo_ext.json holds no stream digest")
        stream = verdict(audit, "stream")
        if name == "step4-unsharded":
            assert (stream.status, stream.numbers["steps_compared"]) == (OK, 12)
        else:
            assert (stream.status, stream.numbers["steps_compared"]) == (NOT_CHECKED, 8)
            assert "after step 8 no checkpoint holds a digest" in stream.said


def test_a_changed_digest_in_a_checkpoint_is_found(
    bare_run: Path, copy: Callable[[Path], Path]
) -> None:
    run = copy(bare_run)
    edit_identity(run / "step8-unsharded", lambda i: i["ledger"].update(stream_digest="1" * 16))
    audit = audited(run, full=True)
    assert differing(audit) == ["stream"]
    # A sum: the steps before and after it do not add up, all others do.
    assert "steps 4 to 7" in verdict(audit, "stream").said
    assert len(verdict(audit, "stream").details) == 1


# -- one step explained ---------------------------------------------------------------------------


def test_a_step_is_explained_with_both_texts(prepared_run: Path) -> None:
    plan, tokens = load_plan(prepared_run), np.zeros(0)
    explained = explain_step(prepared_run, 5)
    assert len(explained.rows) == explained.num_rows == len(plan.at(5)) == 3
    for row, slot, index in zip(explained.rows, plan.at(5).slots, plan.at(5).tasks, strict=True):
        assert (row.slot, row.position, row.time, row.split) == (slot, 40 + slot, 1, "train")
        assert row.tokens.ids == [*plan.tasks[index].tokens[row.example].tolist(), 0]
        assert row.ledger == ("effective in segment 0",)
        assert row.file is not None
        assert row.offset is not None
        assert row.replaced is not None
        tokens = np.fromfile(row.file, dtype=np.uint16)
        assert row.replaced.ids == tokens[row.offset : row.offset + 4].tolist()
        assert row.replaced.text == " ".join(f"word{i}" for i in row.replaced.ids)
        assert row.following is not None
        assert row.following.ids == tokens[row.offset + 4 : row.offset + 16].tolist()
    assert len(explain_step(prepared_run, 5, most=2).rows) == 2


def test_a_later_exposure_of_an_example_is_counted(
    write_experiment: Callable[..., Path],
) -> None:
    def often(config: dict) -> None:
        config["injection"]["tasks"] = [
            {"name": "cmp", "num_symbols": 4, "schedule": {"rate": 5}}
        ]  # six or so train examples: each comes about once a step

    run = train(load_experiment(write_experiment(often)))
    plan, seen = load_plan(run), {}
    for step in range(12):
        for row in explain_step(run, step).rows:
            seen[row.example] = seen.get(row.example, 0) + 1
            assert row.time == seen[row.example], step
    assert set(seen) == set(plan.tasks[0].train.tolist())


def test_a_redone_step_says_which_segments_have_it(resumed_run: Path) -> None:
    explained = explain_step(resumed_run, 9)
    assert {row.ledger for row in explained.rows} == {
        ("abandoned in segment 0", "effective in segment 1")
    }
    with refuses(key="--explain", value=12, rule="in [0, 11]"):
        explain_step(resumed_run, 12)
