"""The vision transformer experiment in small: counts, the three ways to make an MLP smaller, page and plot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.vit import __main__ as experiment  # noqa: E402
from bench.vit import arms, model, page, plot  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def taught():
    images = model.load(0)
    return model.teach(images, epochs=2, seed=0), images


def test_digits_are_split_by_the_seed():
    images, other = model.load(0), model.load(1)
    assert len(images.train) + len(images.test) == 1797
    assert images.train.shape[1:] == (1, 8, 8)
    assert float(images.train.abs().max()) <= 1
    assert not torch.equal(images.train, other.train)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_budgets_are_met_from_below(share):
    m, h, n = model.WIDTH, model.HIDDEN, model.WIDTH
    budget = share * arms.dense_size(m, h, n)
    r, k = arms.decoupled_rank(m, h, n, share), arms.low_rank(m, h, n, share)
    branch, rank = m + n + arms.N_BASIS + 2, 2 * (m + h)
    assert budget - branch < r * branch + n <= budget
    assert budget - rank < k * rank + h + n <= budget


def test_students_have_the_parameters_they_may_and_decoupling_is_nearest(taught):
    teacher, images = taught
    seen = arms.inputs_of(teacher, images.train)
    assert [x.shape for x in seen] == [(len(images.train) * 17, model.WIDTH)] * model.LAYERS
    errors = {}
    for method in arms.METHODS:
        student = arms.compressed(teacher, seen, method, 0.35, seed=0, samples=600)
        assert arms.mlp_parameters(student) <= 0.35 * arms.mlp_parameters(teacher)
        errors[method] = sum(experiment.mlp_errors(teacher, student, images))
    assert errors["decouple"] < errors["drone"] < errors["svd"]


def test_a_cut_of_full_rank_is_the_layer(taught):
    teacher, images = taught
    linear = teacher.vit.layers[0].mlp.fc1
    x = arms.inputs_of(teacher, images.test)[0]
    for given in (None, x.double()):
        torch.testing.assert_close(arms.cut(linear, model.WIDTH, given)(x), linear(x), rtol=1e-4, atol=1e-4)


def test_the_experiment_resumes_and_its_page_has_every_number(tmp_path, capsys):
    result = {}
    stored = []
    options = {"epochs": 1, "distil_epochs": 1, "shares": [0.3], "samples": 200}
    experiment.experiment(result, [0], keep=lambda found: stored.append(len(found["runs"])), **options)
    assert stored == [1, 2, 3]
    before = dict(result["runs"])
    experiment.experiment(result, [0], keep=stored.append, **options)
    assert result["runs"] == before
    assert len(stored) == 3
    text = page.render(result)
    for name, run in before.items():
        assert f"{100 * run['after']['accuracy']:.1f}" in text, name
    assert "at 30 % kept" in page.verdict(result)
    experiment.write(result, tmp_path)
    assert (tmp_path / "vit.md").read_text() == text
    assert (tmp_path / "vit.png").stat().st_size > 10_000
    plot.draw(result, tmp_path / "again.png")
