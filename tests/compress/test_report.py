"""The report as text and as a page: complete, well formed, self-contained, and calm about what is missing."""

from __future__ import annotations

import dataclasses

import pytest

from html_page import check_page
from tensorfact.compress._grouping import common_prefix, format_bytes, group_layers, title
from tensorfact.compress._progress import _bar
from tensorfact.compress.records import DenseRecord, Fidelity, Latency, LayerRecord, Report, downsample_spectrum
from tensorfact.compress.report import render_terminal
from tensorfact.compress.report_html import render_html

KINDS = (
    ("self_attn.q_proj", 64, 64),
    ("self_attn.k_proj", 16, 64),
    ("mlp.up_proj", 256, 64),
    ("mlp.down_proj", 64, 256),
)


def make_layer(name: str, m: int, n: int, rank: int | tuple[int, ...] = 8, **changes: object) -> LayerRecord:
    largest = rank if isinstance(rank, int) else max(rank)
    fields = {
        "name": name,
        "kind": "linear",
        "shape": (m, n),
        "dtype": "F32",
        "rank": rank,
        "error": 0.25,
        "optimal_error": 0.24,
        "path": "gram-exact",
        "params_before": m * n,
        "params_after": largest * (m + n),
        "bytes_before": 4 * m * n,
        "bytes_after": 4 * largest * (m + n),
        "spectrum": downsample_spectrum([(i + 1) ** -0.5 for i in range(min(m, n))]),
        "latency_before_ms": 0.4,
        "latency_after_ms": 0.2,
    }
    return LayerRecord(**{**fields, **changes})  # type: ignore[arg-type]


def make_report(blocks: int = 2, **changes: object) -> Report:
    layers = tuple(make_layer(f"model.layers.{b}.{kind}", m, n) for b in range(blocks) for kind, m, n in KINDS)
    dense = (
        DenseRecord(
            name="model.embed_tokens.weight",
            reason="embedding",
            shape=(999, 64),
            dtype="F32",
            params=63936,
            bytes=255744,
        ),
    )
    before, after = sum(layer.params_before for layer in layers), sum(layer.params_after for layer in layers)
    fields = {
        "method": "lowrank",
        "options": {"allocation": "spectrum"},
        "source": "checkpoints/tiny-llama",
        "output": "out/tiny",
        "model_type": "llama",
        "architecture": "LlamaForCausalLM",
        "param_ratio": 0.5,
        "targeted_before": before,
        "targeted_after": after,
        "params_before": before + 64000,
        "params_after": after + 64000,
        "bytes_before": 4 * (before + 64000),
        "bytes_after": 4 * (after + 64000),
        "layers": layers,
        "dense": dense,
        "seconds": {"factor": 1.25, "total": 2.5},
        "peak_memory_bytes": 300 << 20,
        "executor": "threads:2",
        "latency": Latency(
            before_ms=10.0, after_ms=8.0, input="24 sentences", threads=2, repeats=5, layer_input="128 tokens"
        ),
        "fidelity": Fidelity(
            input="24 sentences", output="logits", metrics={"cosine_mean": 0.91, "kl_mean": 0.5, "top1_agreement": 0.75}
        ),
        "notes": ("one remark",),
        "versions": {"tensorfact": "0.1.0", "numpy": "2.4.6"},
        "created": "2026-11-21T10:00:00+00:00",
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


BARE = {
    "latency": None,
    "fidelity": None,
    "peak_memory_bytes": None,
    "seconds": {},
    "versions": {},
    "notes": (),
    "created": "",
}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("blocks", [1, 9, 40])
def test_terminal_lines_fit_the_width(width: int, blocks: int) -> None:
    text = render_terminal(make_report(blocks), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_terminal_names_every_layer_with_its_numbers() -> None:
    report = make_report(2)
    text = render_terminal(report, width=120)
    for layer in report.layers:
        (line,) = [line for line in text.splitlines() if line.startswith(layer.name.removeprefix("model.layers."))]
        assert f"8/{min(layer.shape)}" in line
        assert "0.2500" in line
        assert f"{format_bytes(layer.bytes_before)} -> {format_bytes(layer.bytes_after)}" in line
        assert "0.400 -> 0.200" in line
    for words in (
        "tiny-llama",
        "left dense, embedding: 1",
        "1.25x faster",
        "same first choice 75.0%",
        "note: one remark",
    ):
        assert words in " ".join(text.split())
    assert text.isascii()


def test_terminal_condenses_many_layers_to_one_row_a_kind() -> None:
    text = render_terminal(make_report(40), width=120)
    for kind, _, _ in KINDS:
        assert f"{kind} (40)" in text
    assert "39.self_attn.q_proj" not in text
    assert "39.self_attn.q_proj" in render_terminal(make_report(40), width=120, condensed=False)


def test_terminal_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    assert max(map(len, render_terminal(make_report()).splitlines())) <= 64


@pytest.mark.parametrize("render", [render_terminal, render_html])
def test_missing_measurements_are_left_out(render: object) -> None:
    layer = make_layer(
        "encoder.fc", 8, 4, error=None, optimal_error=None, spectrum=(), latency_before_ms=None, latency_after_ms=None
    )
    text = render(make_report(layers=(layer,), dense=(), **BARE))  # type: ignore[operator]
    assert "fc" in text
    assert "None" not in text
    assert "faster" not in text


@pytest.mark.parametrize("render", [render_terminal, render_html])
def test_a_report_without_layers_says_so(render: object) -> None:
    numbers = {"targeted_before": 0, "targeted_after": 0, "params_before": 0, "params_after": 0}
    empty = make_report(layers=(), dense=(), bytes_before=0, bytes_after=0, **numbers, **BARE)
    text = render(empty)  # type: ignore[operator]
    assert "no weight was compressed" in text or "0 weights" in text


def test_layers_that_became_slower_are_marked() -> None:
    noise, slow = {"latency_after_ms": 0.405}, {"latency_after_ms": 0.5}
    names = [f"model.layers.{b}.fc" for b in range(4)]
    layers = [make_layer(name, 64, 64, **times) for name, times in zip(names, ({}, noise, slow, slow), strict=True)]
    report = make_report(layers=tuple(layers))
    text = " ".join(render_terminal(report, width=120).split())
    assert text.count("slower: 0.400 -> 0.500") == 2
    assert "slower than dense when timed alone: 2 of 4: model.layers.2.fc, model.layers.3.fc;" in text
    assert "2 slower: 0.400 -> 0.453" in " ".join(render_terminal(report, width=120, condensed=True).split())
    checker = check_page(render_html(report))
    assert checker.words.count("0.500 slower") == 2
    assert checker.words.count("2 slower than dense") == 1
    assert any("2 of 4 are slower" in word for word in checker.words)
    assert render_html(report).count('class="pt slow"') == 2
    assert "slower:" not in render_terminal(make_report())
    assert 'class="pt slow"' not in render_html(make_report())


def test_names_do_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2J\r\n\x07\u202eb"
    layer = make_layer(f"x.{evil}", 8, 8, rank=1, path=evil)
    dense = DenseRecord(name=evil, reason=evil, shape=(2, 2), dtype="F32", params=4, bytes=16)
    report = make_report(layers=(layer,), dense=(dense,), source=evil, output=evil, architecture=evil, notes=(evil,))
    text = render_terminal(report, width=100)
    assert text.count("a?[2J????b") >= 5
    assert all(line.isprintable() for line in text.split("\n"))
    _bar("spectra", 1, 2, evil)
    assert "a?[2J????b" in capsys.readouterr().err


def test_an_estimate_is_called_one() -> None:
    report = make_report(dry_run=True, output=None, **BARE)
    assert "estimate, nothing was written" in render_terminal(report, width=100)
    assert "nothing was written" in render_html(report)


@pytest.mark.parametrize("blocks", [1, 6, 70])
def test_page_is_well_formed_and_loads_nothing(blocks: int) -> None:
    report = make_report(blocks)
    checker = check_page(render_html(report))
    cells = set(checker.words)
    skip = len(common_prefix(layer.name for layer in report.layers))
    assert {layer.name[skip:] for layer in report.layers} <= cells
    assert checker.count["svg"] == 4 * len(KINDS)
    assert any("embedding" in word for word in checker.words)


def test_page_marks_every_chosen_rank() -> None:
    report = make_report(3)
    page = render_html(report)
    for layer in report.layers:
        assert f"<title>{layer.name}: rank 8, singular value" in page
        assert f"<title>{layer.name}: error 0.2500" in page


def test_names_and_notes_are_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    layer = dataclasses.replace(make_layer("a.b", 8, 8, rank=1), name=f"a.{evil}", notes=(evil,), path=evil)
    dense = DenseRecord(name=evil, reason=evil, shape=(2, 2), dtype=evil, params=4, bytes=16)
    page = render_html(make_report(layers=(layer,), dense=(dense,), source=evil, architecture=evil, notes=(evil,)))
    assert "<script" not in page
    check_page(page)


def test_several_bonds_and_extreme_values_are_drawn() -> None:
    layers = (
        make_layer("x.0.w", 64, 64, rank=(2, 9, 4), spectrum=((1, 1.0), (64, 0.0))),
        make_layer("x.1.w", 1, 64, rank=1, error=0.0, optimal_error=0.0, spectrum=((1, 1.0),)),
        make_layer("x.2.w", 64, 64, bytes_after=0, bytes_before=0, latency_before_ms=0.0, latency_after_ms=0.0),
    )
    report = make_report(layers=layers)
    check_page(render_html(report))
    assert "2,9,4/64" in render_terminal(report, width=100)


def test_reports_survive_json_with_their_latencies() -> None:
    report = make_report()
    assert Report.from_json(report.to_json()) == report


def test_layers_group_by_what_differs_in_numbers_only() -> None:
    kinds = group_layers(make_report(3).layers)
    assert [kind.name for kind in kinds] == [kind for kind, _, _ in KINDS]
    assert [len(kind.layers) for kind in kinds] == [3] * 4
    experts = [make_layer(f"layers.{b}.experts.{e}.w1", 8, 8) for b in range(2) for e in range(3)]
    assert [(kind.name, len(kind.layers)) for kind in group_layers([*experts, make_layer("layers.0.fc", 8, 8)])] == [
        ("experts.*.w1", 6),
        ("fc", 1),
    ]


def test_weights_that_the_budget_left_dense_keep_their_place() -> None:
    layers = [make_layer(f"h.{b}.fc", 8, 8, rank=1) for b in (0, 2)]
    dense = [
        DenseRecord(name=name, reason="why", shape=(8, 8), dtype="F32", params=64, bytes=256, targeted=targeted)
        for name, targeted in (("h.1.fc.weight", True), ("h.3.fc.weight", False), ("other.weight", True))
    ]
    (kind,) = group_layers(layers, dense)
    assert kind.positions == (0, 2)
    assert kind.dense_positions == (1,)
    page = render_html(make_report(layers=tuple(layers), dense=tuple(dense)))
    assert "<title>h.1.fc.weight: 256 B, left dense: why</title>" in page
    check_page(page)


def test_title_is_never_a_path() -> None:
    source = "/data/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/0123abc"
    assert title(make_report(source=source)) == "SmolLM2-135M"
    assert title(make_report(source="a/b/c/")) == "c"
    assert title(make_report(source="package/model", output="out/small")) == "small"
    assert title(make_report(source="model", output=None)) == "LlamaForCausalLM"
