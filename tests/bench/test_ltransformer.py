"""The experiment on IMDB and AG News in small: a few steps on made-up reviews, resumed after interruptions; pieces."""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
pytest.importorskip("tqdm")

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.ltransformer import arms, data, measures, page, report, runs, training  # noqa: E402
from bench.ltransformer.__main__ import main, parser  # noqa: E402
from bench.ltransformer.arms import EVERYTHING, Arm  # noqa: E402
from bench.ltransformer.model import sizes  # noqa: E402
from bench.ltransformer.runs import Plan  # noqa: E402
from bench.ltransformer.training import Protocol, Trainer  # noqa: E402

from bench import resumable, timing  # noqa: E402

IMDB, NEWS = data.TASKS["imdb"], data.TASKS["ag_news"]
SMALL = {
    "vocabulary": 300, "length": 12, "width": 16, "batch": 4, "chunk": 2, "save_every": 2, "evaluate_every": 2,
    "dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip
WORDS = [["bad", "dull", "awful", "slow"], ["good", "fine", "superb", "quick"]]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    chance = torch.get_rng_state()
    resumable.quiet_torch(1)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.set_rng_state(chance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the right form with texts whose class a single word tells."""
    rng, place = random.Random(0), tmp_path_factory.mktemp("cls")

    def text(label):
        rest = rng.choices(["The", "film", "was", "&amp; is", "so<br />"], k=rng.randrange(0, 20))
        return " ".join([rng.choice(WORDS[label]), *rest])

    lines = [
        json.dumps({"split": split, "label": label, "id": i, "rating": 1, "text": text(label)})
        for split in ("train", "test")
        for label in (0, 1)
        for i in range(20)
    ]
    (place / "imdb50k.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    train, test = io.StringIO(), io.StringIO()
    csv.writer(train).writerows([("label", "text", "source"), *((i % 4, text(i % 2), "x") for i in range(40))])
    csv.writer(test).writerows([(1 + i % 4, text(i % 2), "more") for i in range(8)])
    for name, written in (("train_subset", train), ("test", test)):
        (place / f"ag_news_{name}.csv.xz").write_bytes(lzma.compress(written.getvalue().encode()))
    return place


@pytest.fixture
def plan(tmp_path, folder):
    return Plan(tmp_path, folder=folder, steps=6, changes=SMALL)


class KilledError(Exception):
    """What a kill is here."""


@pytest.mark.parametrize("name", ["std", "t4-random-learnable"])
def test_an_interrupted_run_has_the_bits_of_an_undisturbed_one(plan, name, tmp_path_factory):
    texts = plan.data(IMDB)
    job = ("imdb", name, 3)
    whole = runs.run(plan, job, texts)
    other = replace(plan, out=tmp_path_factory.mktemp("cut"))
    kills = [1, 3, 4, 6]

    def tick(step, loss):
        if step in kills:
            kills.remove(step)
            raise KilledError

    while kills:
        with pytest.raises(KilledError):
            runs.run(other, job, texts, tick)
        torch.manual_seed(len(kills))  # another process begins with another state of chance
    again = runs.run(other, job, texts, tick)
    assert {**again, "cpu_seconds": 0} == {**whole, "cpu_seconds": 0}
    for suffix in (".safetensors", "-best.safetensors"):
        first, second = (
            resumable.stored_model(p.checkpoint(job).with_name(p.checkpoint(job).stem + suffix)) for p in (plan, other)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert whole["step"] == len(whole["train"]) == 6
    assert [v["step"] for v in whole["validation"]] == [2, 4, 6]
    best = max(whole["validation"], key=lambda v: v["accuracy"])
    assert whole["best"] == best["step"]
    assert json.loads(plan.checkpoint(job).with_suffix(".json").read_text()) == whole


def test_the_test_set_is_seen_by_the_checkpoint_that_validation_chose(plan):
    """A model that learns and then is spoilt: what is tested must be what was best."""
    texts = plan.data(IMDB)
    task = replace(texts, test=texts.validation)
    protocol = plan.protocol(IMDB, 36)
    trainer = Trainer(arms.build(Arm.of("t4-dct"), IMDB, 1, protocol), task, protocol, 1)
    log = trainer.run(plan.out / "x.safetensors")
    assert log["test"]["accuracy"] == max(v["accuracy"] for v in log["validation"])


def test_it_learns(plan):
    plan = replace(
        plan,
        steps=120,
        changes={**SMALL, "dropout": 0.0, "attention_dropout": 0.0, "lr": 1e-2, "evaluate_every": 60, "save_every": 60},
    )
    log = runs.run(plan, ("imdb", "t4-dct", 1), plan.data(IMDB))
    assert sum(log["train"][:10]) / 10 > 0.6
    assert sum(log["train"][-10:]) / 10 < 0.3


def test_another_protocol_is_refused(plan):
    texts = plan.data(IMDB)
    runs.run(plan, ("imdb", "shallow", 1), texts)
    with pytest.raises(
        ValueError, match=r"imdb-shallow-seed1.safetensors must hold protocol .*'lr': 0.5.*, got .*0.001"
    ):
        runs.run(replace(plan, changes={**SMALL, "lr": 0.5}), ("imdb", "shallow", 1), texts)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(plan):
    texts = plan.data(NEWS)
    protocol = replace(plan.protocol(NEWS, 36), dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
    losses, weights = [], []
    for chunk in (1, 4):
        model = arms.build(Arm.of("t2-dct"), NEWS, 0, protocol).double()
        trainer = Trainer(model, texts, replace(protocol, chunk=chunk), 0)
        trainer.optimizer = torch.optim.SGD(model.parameters())  # Adam divides by gradients that are rounding alone
        losses.append([trainer.advance() for _ in range(3)])
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the loss is float32
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-8)


def test_padding_does_not_change_a_text(plan):
    protocol = plan.protocol(IMDB, 36)
    for name in ("std", "narrow", "t4-dct", "t4-identity", "t4-dct-ln"):
        model = arms.build(Arm.of(name), IMDB, 0, protocol).double().eval()
        ids = torch.randint(2, 300, (2, 7), generator=torch.Generator().manual_seed(0))
        padded = torch.cat([ids, torch.zeros(2, 5, dtype=torch.int64)], 1)
        torch.testing.assert_close(model(padded), model(ids), rtol=1e-10, atol=1e-10)


def test_controls_see_the_positions_that_the_dct_sees():
    protocol = Protocol(steps=1, width=32, vocabulary=10)
    seen = {}
    for name in ("t4-dct", "t4-identity", "t4-random", "t4-identity-own", "t4-identity-standard", "t4-dct-standard"):
        layer = arms.build(Arm.of(name), IMDB, 0, protocol).encoder.layers[0]
        z, _ = layer.mixing.matrices()
        seen[name] = torch.einsum("uk,ktj->utj", z, layer.positions.table)
    for name in ("t4-identity", "t4-random"):
        torch.testing.assert_close(seen[name], seen["t4-dct"], rtol=0, atol=1e-6)
    assert (seen["t4-identity-own"] - seen["t4-dct"]).abs().max() > 0.1
    only = seen["t4-identity-standard"]  # in slice 0 alone, times the root of p
    torch.testing.assert_close(only, seen["t4-dct-standard"], rtol=0, atol=1e-6)
    assert only[1:].abs().max() < 1e-6
    assert only[0].abs().max() == pytest.approx(2.0)


def test_one_seed_draws_one_embedding_and_one_order():
    protocol = Protocol(steps=1, width=32, vocabulary=50)
    models = [arms.build(Arm.of(name), IMDB, 7, protocol) for name in ("std", "t4-dct", "t4-random", "shallow")]
    for model in models[1:]:
        assert torch.equal(model.embedding.weight, models[0].embedding.weight)
    layers = models[1].encoder.layers
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)  # drawn one by one, not copied
    assert layers[0].mixing is layers[3].mixing
    one, two = (arms.build(Arm.of("t4-random"), IMDB, seed, protocol) for seed in (1, 2))
    assert not torch.equal(one.encoder.layers[0].mixing.matrix, two.encoder.layers[0].mixing.matrix)


def test_parameters_of_the_arms():
    """Counts of the document at the full sizes; controls are within 4 % of the four slices."""
    with torch.device("meta"):
        protocol = Protocol(steps=1)
        found = {
            name: sizes(arms.build(Arm.of(name), IMDB, 0, protocol)) for name in ("std", "shallow", "narrow", "t4-dct")
        }
        wide = replace(protocol, width=768, heads=8)
        news = {name: sizes(arms.build(Arm.of(name), NEWS, 0, wide)) for name in ("std", "shallow", "narrow", "t4-dct")}
    assert (found["std"]["encoder"], found["t4-dct"]["encoder"]) == (793_088, 203_264)
    assert (news["std"]["encoder"], news["t4-dct"]["encoder"]) == (28_351_488, 7_117_824)
    assert (news["std"]["all"], news["t4-dct"]["all"]) == (51_394_564, 30_160_900)
    for table in (found, news):
        for name in ("shallow", "narrow"):
            assert table[name]["encoder"] == pytest.approx(table["t4-dct"]["encoder"], rel=0.04)


def test_texts(plan, folder):
    texts = plan.data(NEWS)
    assert (len(texts.train), len(texts.validation), len(texts.test)) == (36, 4, 8)
    assert texts.validation.labels.sort().values.tolist() == [0, 1, 2, 3]
    assert data.clean("So<br /><br />GOOD &amp; long\n\t5 < 6") == "so good & long 5 < 6"
    rows, test = data.read_rows(NEWS, data.find(NEWS, folder))
    assert test[0][1].endswith(" . more")
    kept, held = data.split(rows, 0.1)
    assert sorted(kept + held) == sorted(rows)
    ids, labels = texts.train.batch(torch.arange(3))
    assert ids.shape[0] == 3
    assert (ids[:, -1] != data.PAD).any()
    assert texts.train.ids.max() < 300
    assert labels.tolist() == texts.train.labels[:3].tolist()
    again = plan.data(NEWS)  # from the cache
    assert torch.equal(again.train.ids, texts.train.ids)
    with pytest.raises(FileNotFoundError, match=r"imdb50k.jsonl.xz must be in .*nowhere"):
        data.load(IMDB, plan.out, Path("nowhere"))


def test_the_tokenizer_knows_the_training_part_only():
    tokenizer = data.train_tokenizer(["seen seen seen"] * 5, 300)
    part = data.encode(tokenizer, [(0, "seen"), (1, "unseen"), (0, "")], 4)
    assert (part.ids[0] != data.PAD).sum() == 1
    assert (part.ids[1] != data.PAD).sum() > 1
    assert part.ids[2].tolist() == [data.UNKNOWN, 0, 0, 0]


def test_rates_of_learning():
    protocol = Protocol(steps=100, lr=3.0, last_lr=0.1)
    rates = [protocol.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.3)
    assert max(rates) == pytest.approx(3.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_full_protocol_is_the_published_one(tmp_path):
    for task, width, batch, epochs, heads in ((IMDB, None, 128, 20, 4), (NEWS, None, 128, 5, 4), (NEWS, 768, 64, 5, 8)):
        found = Plan(tmp_path, "paper", width=width).protocol(task, 108_000)
        assert (found.batch, found.test_batch, found.heads) == (batch, 2 * batch, heads)
        assert found.steps == epochs * (108_000 // batch)
        assert (found.lr, found.last_lr, found.dropout, found.test_examples) == (3e-4, 1e-5, 0.1, None)
    names = {arm for _, arm, _ in runs.wanted(Plan(tmp_path, "paper"), ["imdb"], None, [1, 2, 3])}
    assert names == set(EVERYTHING)
    first = runs.wanted(Plan(tmp_path), ["imdb", "ag_news"], None, [1, 2, 3])
    assert first[:5] == [*(("imdb", name, 1) for name in arms.FIRST), ("imdb", "std", 2)]


def test_names():
    assert [Arm.of(name).name for name in EVERYTHING] == list(EVERYTHING)
    assert Arm.of("t4-dct-standard-ln") == Arm("t4-dct-standard-ln", 4, "dct", "standard", False, "transform")
    assert Arm.of("t8-random-own") == Arm("t8-random-own", 8, "random", "linear", True)
    for name in ("t3-dct", "t4", "std-ln", "t4-dft", "t4-dct-ln-own", "dense"):
        with pytest.raises(ValueError, match=f"arms must be named as in .*got '{name}'"):
            Arm.of(name)
    assert "--protocol" in parser().format_help()
    assert len({page.label(name) for name in EVERYTHING}) == len(EVERYTHING)


def test_report_of_short_runs(plan, tmp_path_factory, monkeypatch):
    pytest.importorskip("matplotlib")
    texts = plan.data(IMDB)
    for name, seed in (("std", 1), ("t4-dct", 1), ("std", 2), ("t4-dct", 2), ("t4-identity", 1)):
        runs.run(plan, ("imdb", name, seed), texts)
    with pytest.raises(KilledError):
        runs.run(plan, ("imdb", "t4-random", 1), texts, kill_at_three)
    place = tmp_path_factory.mktemp("docs")
    monkeypatch.setattr(report, "DOCS", place)
    monkeypatch.setattr(timing, "RESULTS", place)
    monkeypatch.setattr(timing, "gemm_gflops", lambda: 1.0)
    main(["--report", "--out", str(plan.out)])
    result = json.loads((place / "ltransformer.json").read_text())
    assert [(run["arm"], run["seed"]) for run in result["runs"]] == [
        ("std", 1), ("std", 2), ("t4-dct", 1), ("t4-dct", 2), ("t4-identity", 1), ("t4-random", 1),
    ]  # fmt: skip
    written = (place / "ltransformer.md").read_text()
    assert "## IMDB, width 16" in written
    assert (
        f"in the mean of 2 seeds ({', '.join(f'{g:+.2f}' for g in page.paired(result['runs'], 't4-dct'))})" in written
    )
    assert "* IMDB, `t4-random`, seed 1: stands at step 2 of 6" in written
    assert (place / "ltransformer.png").read_bytes().startswith(b"\x89PNG")
    wide = replace(plan, out=tmp_path_factory.mktemp("wide"), changes={**SMALL, "width": 32})
    runs.run(wide, ("imdb", "std", 1), wide.data(IMDB))
    main(["--report", "--out", str(wide.out)])  # what the first folder held stays
    result = json.loads((place / "ltransformer.json").read_text())
    assert [run["width"] for run in result["runs"]] == [16] * 6 + [32]


def kill_at_three(step, loss):
    if step == 3:
        raise KilledError


def test_differences_are_of_equal_seeds():
    def run(arm, seed, accuracy):
        return {"arm": arm, "seed": seed, "test": {"accuracy": accuracy, "examples": 100}}

    some = [run("std", 1, 0.8), run("std", 2, 0.7), run("t4-dct", 2, 0.75), run("t4-dct", 3, 0.9)]
    some.append({"arm": "std", "seed": 3, "test": None})
    assert page.paired(some, "t4-dct") == pytest.approx([5.0])
    assert page.spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert page.spread([]) == "-"
    assert f"{100 * math.sqrt(0.825 * 0.175 / 100):.2f} points" in page.verdict("imdb", some)


def test_speeds_and_memory(monkeypatch):
    monkeypatch.setattr(measures, "ARMS", ("std", "t4-dct"))
    protocol = Protocol(steps=10, **SMALL)
    found = measures.speeds("imdb", protocol, rounds=1)
    assert set(found) == {"std", "t4-dct"}
    assert all(rate > 0 for row in found.values() for rate in row.values())
    assert measures.memory("imdb", "t4-dct", protocol, "cpu")["mb"] >= 0
    assert measures.memories("imdb", "cpu", protocol)["std"] > 1  # in a process of its own


def test_page_is_generated_from_the_results():
    file = ROOT / "bench" / "results" / "ltransformer.json"
    result = json.loads(file.read_text())
    assert (ROOT / "docs" / "ltransformer.md").read_text() == page.render(result)
    assert (ROOT / "docs" / "ltransformer.png").exists()


def test_mixed_precision_is_left_to_gpus():
    assert not training.autocast(torch.device("cpu"))._enabled
