"""The experiment with smaller MLPs in small: converted models against oracles, arms that resume, verdicts and page."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.fips import __main__ as experiment  # noqa: E402
from bench.fips import models, page, runs, scores, stories, subjects, verdicts, vit_cifar  # noqa: E402
from bench.fips.arms import ARMS  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason=f"needs the shared data in {SHARED}")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama_oracle(file: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (tokens, vocabulary) in float64, straight from the file: neighbouring entries of q and k are turned."""
    sizes, arrays = stories.read(file)
    a = {name: values.astype(np.float64) for name, values in arrays.items()}
    n, width = len(ids), sizes.width // sizes.heads
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    turns = np.exp(1j * angles)[:, None]

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turned(x):
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turns
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = a["tokens"][ids]
    for layer in range(sizes.layers):
        h = norm(x, a["attention_norm"][layer])
        q = turned((h @ a["wq"][layer].T).reshape(n, sizes.heads, width))
        k = turned((h @ a["wk"][layer].T).reshape(n, sizes.kv_heads, width))
        v = (h @ a["wv"][layer].T).reshape(n, sizes.kv_heads, width)
        out = np.empty_like(q)
        for head in range(sizes.heads):
            its = head // (sizes.heads // sizes.kv_heads)
            s = q[:, head] @ k[:, its].T / np.sqrt(width)
            s[np.triu_indices(n, 1)] = -np.inf
            p = np.exp(s - s.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, its]
        x = x + out.reshape(n, -1) @ a["wo"][layer].T
        h = norm(x, a["mlp_norm"][layer])
        gate = h @ a["w1"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ a["w3"][layer].T)) @ a["w2"][layer].T
    return norm(x, a["norm"]) @ a["tokens"].T


@needs_data
def test_the_converted_story_model_is_the_one_of_the_file(tmp_path):
    from transformers import LlamaForCausalLM

    file = SHARED / "models" / "stories260K.bin"
    model = LlamaForCausalLM.from_pretrained(stories.convert(file, tmp_path)).eval()
    assert sum(p.numel() for p in model.parameters()) == 260_032
    vocabulary = stories.Vocabulary(SHARED / "models" / "tok512.bin")
    ids = [stories.BOS, *vocabulary.encode("Once upon a time, there was a little girl named Lily.")]
    for _ in range(40):
        ids.append(int(llama_oracle(file, np.array(ids))[-1].argmax()))
    told = model.generate(torch.tensor([ids[:16]]), max_new_tokens=len(ids) - 16, do_sample=False)
    assert told[0].tolist() == ids
    assert vocabulary.decode(ids[16:]).startswith(" She loved to play outside in the park.")

    window = stories.tell(model, 1, 192, seed=3)
    logits = llama_oracle(file, window[0].numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(model(window).logits[0].numpy(), logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    loss = np.log(np.exp(logits[:-1]).sum(-1)) - logits[np.arange(191), window[0, 1:].numpy()]
    assert scores.perplexity(model, window) == pytest.approx(np.exp(loss.mean()), rel=1e-5)


@needs_data
def test_words_merge_on_their_own():
    vocabulary = stories.Vocabulary(SHARED / "models" / "tok512.bin")
    assert not [piece for piece in vocabulary.pieces if b" " in piece[1:]]
    text = "The  café = was\nclosed ; nobody knew why , not even Tom ."
    assert vocabulary.encode(text) == vocabulary.merged(f" {text}")
    assert vocabulary.decode(vocabulary.encode(text)) == f" {text}"


@needs_data
def test_the_converted_vision_transformer_is_that_of_the_file(tmp_path):
    from transformers import AutoModel

    spec = importlib.util.spec_from_file_location("shared_loaders", SHARED / "loaders.py")
    assert spec is not None
    assert spec.loader is not None
    loaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    model = AutoModel.from_pretrained(vit_cifar.convert(SHARED / "models" / "vit_cifar10.safetensors", tmp_path)).eval()
    assert sum(p.numel() for p in model.parameters()) == 811_146
    x = vit_cifar.scaled(models.lossless(SHARED)[0][:32])
    with torch.no_grad():
        ours, theirs = model(pixel_values=x).logits, loaders.vit_cifar10()(x)
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@needs_data
def test_arms_of_the_vision_transformer(tmp_path, monkeypatch):
    from tensorfact.compress import Calibration

    def small(data, work):
        source = vit_cifar.convert(data / "models" / "vit_cifar10.safetensors", work / "vit")
        x, y = models.lossless(data)
        x = vit_cifar.scaled(x)
        kinds = {"own": Calibration({"pixel_values": x[:64]}, samples=64, batch=16)}
        sets = {"lossless": (x[64:364], y[64:364]), "jpeg": (x[364:414], y[364:414])}
        return models.Loaded(source, kinds, scores.Accuracy(sets))

    subject = dataclasses.replace(
        subjects.SUBJECTS["vit_cifar10"], ratios=(0.4,), arms=("SVD", "FiPS", "FiPS, refined"), few=(("quantised", 4),)
    )
    monkeypatch.setitem(subjects.SUBJECTS, "vit_cifar10", subject)
    monkeypatch.setitem(models.OPEN, "vit_cifar10", small)
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    file = tmp_path / "fips.json"
    call = ["--data", str(SHARED), "--model", "vit_cifar10", "--out", str(file), "--steps", "20"]
    experiment.main([*call, "--arm", "SVD"])
    before = json.loads(file.read_text())["models"]["vit_cifar10"]["rows"]
    assert list(before) == ["SVD @ 0.4"]
    experiment.main(call)
    found = json.loads(file.read_text())["models"]["vit_cifar10"]
    assert found["rows"]["SVD @ 0.4"] == before["SVD @ 0.4"]
    assert len(found["rows"]) == 4
    rounded = found["rows"].pop("quantised @ 0.135")
    assert 4 / 32 < rounded["mlp_bytes"] <= 0.135
    for row in found["rows"].values():
        assert 0.39 < row["mlp_bytes"] <= 0.4
        assert row["stored_bytes"] == row["reported_bytes"]
    svd, fips, refined = (found["rows"][f"{arm} @ 0.4"] for arm in subject.arms)
    assert svd["lossless"] + 5 < fips["lossless"] <= 100
    assert [len(row["blocks"]) for row in (svd, fips, refined)] == [0, 0, 2]
    assert any(block["loss_after"] < block["loss_before"] for block in refined["blocks"])
    assert not list((tmp_path / "data" / "fips").glob("*FiPS*"))  # what was compressed is removed again

    text = (tmp_path / "docs" / "fips.md").read_text()
    for row in (rounded, *found["rows"].values()):
        assert f"{row['lossless']:.2f}" in text
    assert (tmp_path / "docs" / "fips.png").stat().st_size > 10_000
    monkeypatch.setattr(runs, "run", lambda *a, **k: pytest.fail("nothing is left to run"))
    experiment.main(call)


def rows(key: str, **values: float) -> dict:
    """Stored rows of one ratio."""
    found = {}
    for arm, value in values.items():
        name = {"svd": "SVD", "white": "whitened SVD", "own": "own basis", "fips": "FiPS", "fine": "FiPS, refined"}[arm]
        blocks = [{"name": "0", "loss_before": 2.0, "loss_after": 1.0}] if ARMS[name].refine else []
        found[f"{name} @ 0.5"] = {"arm": name, "ratio": 0.5, key: value, "blocks": blocks, "steps": 100}
    return {"rows": found, "dense": {key: 10.0}}


@pytest.mark.parametrize(("name", "sign"), [("stories260K", -1.0), ("all-MiniLM-L6-v2", 1.0)])
def test_verdicts_know_which_way_is_better(name, sign):
    subject = subjects.SUBJECTS[name]
    measure = subject.measures[0]
    assert (1.0 if measure.higher else -1.0) == sign
    found = rows(
        measure.key, svd=20 - 3 * sign, white=20 + sign, own=20 + 4 * sign, fips=20 + 2 * sign, fine=20 + 3 * sign
    )
    seen = verdicts.Rows(subject, found, measure)
    assert seen.best(0.5) == "own basis"
    assert seen.over_svd(0.5) == {"SVD": 7.0, "whitened SVD": 3.0}
    assert seen.refinements(0.5) == {"FiPS, refined": 1.0}
    assert seen.sharing(0.5) == {"FiPS": -2.0}
    assert seen.missing()["SVD, refined"] == list(subject.ratios)
    assert 0.5 not in seen.missing()["FiPS"]
    told = page.sentence(seen)
    assert "own basis at 0.5" in told
    assert "2 of 2 comparisons" in told
    assert "1 of 1 pairs" in told
    assert "0 of 1 pairs" in told
    assert "1 of 1 stages" in told
