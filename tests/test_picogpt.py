"""The PicoGPT experiment in small: a few steps on real text, resumed after an interruption; counts, page and pieces."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.picogpt import arms, data, measures, page, plot, report, runs, training  # noqa: E402
from bench.picogpt.__main__ import main, parser  # noqa: E402
from bench.picogpt.arms import BONDS, COUNTS, EVERYTHING, Arm  # noqa: E402
from bench.picogpt.data import Corpus  # noqa: E402
from bench.picogpt.model import PicoGPT, Size, count, sinusoids  # noqa: E402
from bench.picogpt.runs import Plan  # noqa: E402
from bench.picogpt.training import Protocol, Trainer  # noqa: E402

from bench import resumable  # noqa: E402

SHORT = Protocol(steps=5, batch=2, warmup=1, lr=3e-3, evaluate_every=3, save_every=2, chunk=1)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    resumable.quiet_torch(1)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture(scope="module")
def text():
    """A part of the real text, so that validation is quick."""
    if not (data.SHARED.exists() or data.DOWNLOADED.exists()):
        pytest.skip("Tiny Shakespeare is neither in shared data nor downloaded")
    whole = data.load()
    return Corpus(whole.train[:50_000], whole.validation[:1_000], whole.alphabet)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    """A plan whose dense model is trained, for a few steps."""
    resumable.quiet_torch(1)
    plan = Plan(tmp_path_factory.mktemp("picogpt"), SHORT, tune_steps=4)
    runs.run(plan, Arm("dense"), runs.SOURCE_SEED, text)
    return plan


def test_the_text_is_the_one_that_others_use(tmp_path):
    if not (data.SHARED.exists() or data.DOWNLOADED.exists()):
        pytest.skip("Tiny Shakespeare is neither in shared data nor downloaded")
    whole = data.load()
    assert len(whole.alphabet) == 65
    assert (len(whole.train), len(whole.validation)) == (1_003_854, 111_540)
    other = tmp_path / "other.txt"
    other.write_text("To be, or not to be")
    with pytest.raises(ValueError, match=r"other\.txt must be Tiny Shakespeare with sha256 86c4e6aa.*got "):
        data.load(other)


@pytest.mark.parametrize("bond", BONDS)
def test_counts_are_those_of_the_architecture(bond):
    blocks = 4 * (1472 * bond + 64 * bond**2) + 248 * bond
    model = arms.build(Arm("mpo", bond), 0)
    assert count(model) == 13_696 + blocks == COUNTS[bond]
    assert len(list(model.linears())) == 25
    narrow = arms.build(Arm("narrow", bond), 0)
    assert 0.99 * COUNTS[bond] < count(narrow) == narrow.size.parameters <= COUNTS[bond]
    low_rank = PicoGPT()
    arms.to_low_rank(low_rank, bond)
    assert COUNTS[bond] - 193 < count(low_rank) <= COUNTS[bond]  # within a rank of the cheapest layer


def test_dense_count():
    assert count(PicoGPT()) == Size().parameters == COUNTS[None] == 808_448


def test_a_wrong_count_is_refused(monkeypatch):
    monkeypatch.setitem(COUNTS, 16, 191_872)
    with pytest.raises(ValueError, match="mpo16 must have 191872 parameters, got 177408"):
        arms.build(Arm("mpo", 16), 0)


def test_positions():
    table = sinusoids(7, 6)
    for time in range(7):
        for i in range(3):
            angle = time * 10000 ** (-2 * i / 6)
            assert table[time, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[time, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("name", ["dense", "mpo8", "svd8", "lowrank8"])
def test_weights_formed_once_change_nothing_and_the_future_is_unseen(name, trained):
    model = arms.build(Arm.of(name), 1, trained.source())
    tokens = torch.randint(65, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer_by_layer, formed = model(tokens), model(tokens, model.weights())
        torch.testing.assert_close(layer_by_layer, formed, rtol=1e-4, atol=1e-4)
        other = tokens.clone()
        other[:, 25:] = 0
        torch.testing.assert_close(model(other)[:, :25], layer_by_layer[:, :25], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(other)[:, 25:], layer_by_layer[:, 25:], atol=1e-3)


def test_gradient_in_parts_is_the_gradient(text):
    model = arms.build(Arm("mpo", 4), 0)
    whole = Trainer(model, text, training.replace(SHORT, clip=math.inf), 3)
    x, y = data.batch(text.train, 256, SHORT.batch, torch.Generator().manual_seed(3))
    loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    found = {}
    whole.optimizer.register_step_pre_hook(
        lambda *_: found.update({i: p.grad.clone() for i, p in enumerate(model.parameters())})
    )
    assert whole.advance() == pytest.approx(loss.item(), rel=1e-5)
    for index, gradient in enumerate(wanted):
        scale = gradient.norm().item() + 1e-6
        assert (found[index] - gradient).norm().item() < 1e-4 * scale


def test_validation_counts_every_character_once(text):
    model = arms.build(Arm("dense"), 0)
    found = training.evaluate(model, text.validation)
    total, right, seen = 0.0, 0, 0
    with torch.no_grad():
        for start in range(0, len(text.validation) - 1, 256):
            window = text.validation[start : start + 257].tolist()
            logits = model(torch.tensor([window[:-1]]))[0].double()
            for row, target in zip(logits, window[1:], strict=True):
                total += float(row.exp().sum().log() - row[target])
                right += int(row.argmax()) == target
                seen += 1
    assert seen == len(text.validation) - 1
    assert found["loss"] == pytest.approx(total / seen, rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / seen, abs=1.5 / seen)  # one near tie may fall either way


def test_schedule():
    protocol = Protocol()
    assert protocol.rate(0) == pytest.approx(3e-6)
    assert protocol.rate(99) == protocol.rate(100) == pytest.approx(3e-4)
    assert protocol.rate(1050) == pytest.approx(1.5e-4)
    assert 0 < protocol.rate(1999) < 1e-9
    assert protocol.short(200, 1e-4, 100).warmup == 10


class KilledError(Exception):
    """In place of kill -9."""


def stop_at(step):
    def tick(now, loss):
        if now == step:
            raise KilledError

    return tick


@pytest.mark.parametrize("name", ["mpo8", "svd16"])
def test_resumed_run_has_the_bits_of_an_undisturbed_one(name, trained, tmp_path, text):
    arm, seed = Arm.of(name), 5
    plan = Plan(tmp_path, SHORT, tune_steps=5)
    source = plan.source()
    source.write_bytes(trained.source().read_bytes())
    log = runs.run(plan, arm, seed, text)
    file = plan.checkpoint(arm, seed)
    wanted = resumable.stored_model(file)
    file.unlink()
    for step in (1, 3):  # before the first checkpoint, and after one, with a step since then lost
        with pytest.raises(KilledError):
            runs.run(plan, arm, seed, text, stop_at(step))
        file.with_name("left-over.part").write_bytes(b"half a checkpoint")
    again = runs.run(plan, arm, seed, text)
    assert {**again, "cpu_seconds": 0} == {**log, "cpu_seconds": 0}
    found = resumable.stored_model(file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert again["step"] == plan.protocol(arm).steps == len(again["train"])
    assert json.loads(file.with_suffix(".json").read_text())["validation"] == again["validation"]


def test_it_learns(trained):
    log = resumable.stored_log(trained.source())
    assert log["validation"][0]["loss"] == pytest.approx(math.log(65), abs=0.1)
    assert log["validation"][-1]["loss"] < 3.6


def test_another_protocol_is_refused(trained, text):
    other = Plan(trained.out, training.replace(SHORT, lr=1e-3))
    with pytest.raises(ValueError, match=r"dense-seed42.safetensors must hold protocol .*'lr': 0.001.*, got .*0.003"):
        runs.run(other, Arm("dense"), runs.SOURCE_SEED, text)


def test_balanced_trains_have_the_same_product_and_even_bonds(trained):
    model, small = arms.build(Arm("dense"), 0), arms.build(Arm("svd", 8), 0, trained.source())
    model.load_state_dict(resumable.stored_model(trained.source()))
    for (name, layer), (_, mpo) in zip(model.linears(), small.linears(), strict=True):
        rows, cols = arms.SHAPES[arms.kind_of(name)]
        plain = arms.MPOLinear.from_linear(layer, rank=8, row_shape=rows, col_shape=cols, balance=False, rng=0)
        norm = layer.weight.norm().item()
        assert (mpo.weight - plain.weight).norm().item() < 1e-5 * norm
        left = torch.ones(1, 1, dtype=torch.float64)
        cores = [core.detach().double() for core in mpo.cores]
        for bond in range(1, len(cores)):
            left = torch.einsum("ab,aijc,bijd->cd", left, cores[bond - 1], cores[bond - 1])
            right = torch.ones(1, 1, dtype=torch.float64)
            for core in cores[: bond - 1 : -1]:
                right = torch.einsum("aijc,bijd,cd->ab", core, core, right)
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5 * norm)
            torch.testing.assert_close(left, left.diag().diag(), rtol=0, atol=1e-5 * norm)


def test_errors_of_random_weights():
    """Values of the specification, for N(0, 0.02^2)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = measures.truncation_errors(PicoGPT(Size(layers=1)))
    wanted = {
        "attention": (0.934, 0.873, 0.759, 0.543),
        "up": (0.989, 0.965, 0.893, 0.630),
        "down": (0.988, 0.965, 0.891, 0.627),
        "head": (0.903, 0.814, 0.643, 0.297),
    }
    for kind, row in wanted.items():
        assert list(found[kind].values()) == pytest.approx(row, abs=0.01)


def test_initial_scale():
    """Weights as in the dense model, or as published: 0.088 for two sites, 0.026 and 0.0093 for three."""
    scales = {"": {"attention": 0.02, "up": 0.02, "down": 0.02}}
    scales["paper"] = {"attention": 0.088, "up": 0.026, "down": 0.0093}
    for variant, wanted in scales.items():
        squares = {kind: [] for kind in wanted}
        for seed in range(3):
            for name, layer in arms.build(Arm("mpo", 16, variant), seed).linears():
                if arms.kind_of(name) in wanted:
                    squares[arms.kind_of(name)].append(float(layer.weight.detach().square().mean()))
        for kind, scale in wanted.items():
            assert math.sqrt(sum(squares[kind]) / len(squares[kind])) == pytest.approx(scale, rel=0.1)


def test_names():
    assert [Arm.of(name).name for name in EVERYTHING] == list(EVERYTHING)
    assert Arm.of("dense-spared") == Arm("dense", None, "spared")
    for name in ("mpo5", "mpo", "dense16", "svd16-paper", "dense-paper", "sparse"):
        with pytest.raises(ValueError, match=f"arms must be named as in .*got '{name}'"):
            Arm.of(name)
    assert "--tune-steps" in parser().format_help()


def test_report_of_short_runs(trained, text, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name in ("mpo16", "svd4"):
        runs.run(trained, Arm.of(name), 1, text)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report.timing, "RESULTS", tmp_path)
    monkeypatch.setattr(measures, "truncation_errors", lambda model: {"up": dict.fromkeys(map(str, BONDS), 0.5)})
    monkeypatch.setattr(report.timing, "gemm_gflops", lambda: 1.0)
    main(["--report", "--out", str(trained.out), "--steps", str(SHORT.steps)])
    result = json.loads((tmp_path / "picogpt.json").read_text())
    assert [run["arm"] for run in result["runs"]] == ["dense", "mpo16", "svd4"]
    written = (tmp_path / "picogpt.md").read_text()
    assert "| MPO, bond 16 | 177,408 | 191,872 |" in written
    assert "* `svd4`: 1 of 3 runs" in written
    assert (tmp_path / "picogpt.png").read_bytes().startswith(b"\x89PNG")


def test_page_is_generated_from_the_results():
    result = json.loads((ROOT / "bench" / "results" / "picogpt.json").read_text())
    assert (ROOT / "docs" / "picogpt.md").read_text() == page.render(result)
    assert (ROOT / "docs" / "picogpt.png").exists()
    for run in result["runs"]:
        bond = Arm.of(run["arm"]).bond
        assert run["parameters"] <= COUNTS[bond]


def test_spread_over_seeds():
    assert page.spread([0.5], 100, 1) == "50.0"
    assert page.spread([1.0, 2.0, 3.0], 1, 2) == "2.00 ± 1.00"
    assert page.spread([]) == "-"
    assert plot.BAR == 97.7
