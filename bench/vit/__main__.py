"""A small vision transformer whose MLPs are decoupled, or cut by SVD or DRONE, at equal numbers of parameters.

    python -m bench.vit                       # every seed and arm; finished ones are kept, so it resumes
    python -m bench.vit --seeds 0 --report    # no training: page and plot from what is stored

The model is trained here on the digits of scikit-learn (60 % of 1797 images; the rest tests), then its MLPs keep 80,
50, 35 and 20 % of their parameters. Each student is measured as it is, and after the same short distillation of all its
parameters. About 20 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import timing
from bench.vit import arms, model, page, plot

SHARES = (0.8, 0.5, 0.35, 0.2)
DOCS = timing.RESULTS.parent.parent / "docs"


def run(
    teacher: Any, images: model.Images, method: str, share: float, *, seed: int, epochs: int, samples: int = 4000
) -> dict[str, Any]:
    """One student: parameters, measures before and after distillation, seconds."""
    seen = arms.inputs_of(teacher, images.train)
    begin = time.process_time()
    student = arms.compressed(teacher, seen, method, share, seed=seed, samples=samples)
    made = time.process_time() - begin
    parameters = arms.mlp_parameters(student)
    before = model.measure(student, teacher, images)
    errors = mlp_errors(teacher, student, images)
    begin = time.process_time()
    model.distil(student, teacher, images, epochs=epochs, seed=seed)
    return {
        "mlp_parameters": parameters,
        "mlp_errors": errors,
        "before": before,
        "after": model.measure(student, teacher, images),
        "seconds": {"compress": round(made, 2), "distil": round(time.process_time() - begin, 2)},
    }


def mlp_errors(teacher: Any, student: Any, images: model.Images) -> list[float]:
    """Relative distance of each MLP's outputs, at what the teacher's sees of the test images."""
    found = []
    with torch.no_grad():
        for layer, other, x in zip(
            teacher.vit.layers, student.vit.layers, arms.inputs_of(teacher, images.test), strict=True
        ):
            truth = layer.mlp(x)
            found.append(float((other.mlp(x) - truth).norm() / truth.norm()))
    return found


def experiment(
    result: dict[str, Any],
    seeds: Sequence[int],
    *,
    epochs: int = 20,
    distil_epochs: int = 5,
    shares: Sequence[float] = SHARES,
    samples: int = 4000,
    keep: Any = None,
) -> dict[str, Any]:
    """Fill `result`, calling `keep` after every student."""
    result["protocol"] = {"epochs": epochs, "distil_epochs": distil_epochs, "shares": list(shares), "samples": samples}
    runs = result.setdefault("runs", {})
    for seed in seeds:
        wanted = [(method, share) for share in shares for method in arms.METHODS]
        if all(f"{seed} {method} {share}" in runs for method, share in wanted):
            continue
        images = model.load(seed)
        teacher = model.teach(images, epochs=epochs, seed=seed)
        result.setdefault("teachers", {})[str(seed)] = {
            **model.measure(teacher, teacher, images),
            "parameters": sum(p.numel() for p in teacher.parameters()),
            "mlp_parameters": arms.mlp_parameters(teacher),
        }
        for method, share in wanted:
            name = f"{seed} {method} {share}"
            if name not in runs:
                runs[name] = run(teacher, images, method, share, seed=seed, epochs=distil_epochs, samples=samples)
                if keep is not None:
                    keep(result)
                print(name, json.dumps(runs[name]), flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compress, distil; then write ``bench/results/vit.json``, ``docs/vit.md`` and ``docs/vit.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = timing.load("vit")
    if not options.report:
        result["environment"] = timing.environment("torch", "transformers", "scikit-learn") | {"load": None}
        experiment(result, options.seeds, keep=lambda found: timing.save("vit", found))
    if page.finished(result):
        write(result, DOCS)


def write(result: dict[str, Any], docs: Path) -> None:
    """Write page and plot from stored results."""
    (docs / "vit.md").write_text(page.render(result))
    plot.draw(result, docs / "vit.png")


if __name__ == "__main__":
    main()
