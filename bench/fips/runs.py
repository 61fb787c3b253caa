"""One arm of one model: compress, load, score; and where its row is kept."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fips.arms import ARMS
from bench.fips.subjects import Subject

if TYPE_CHECKING:
    from bench.fips.models import Loaded

Result = dict[str, Any]


def key(arm: str, ratio: float) -> str:
    """Name of a row."""
    return f"{arm} @ {ratio:g}"


def wanted(
    subject: Subject, found: Result, arms: Sequence[str] | None = None, ratios: Sequence[float] | None = None
) -> list[tuple[str, float]]:
    """Arms and ratios of a model that have no row yet, the quick ones first; all, or those that are named."""
    tasks = subject.tasks()
    if arms or ratios:
        tasks = [(arm, ratio) for arm in arms or subject.arms for ratio in ratios or subject.ratios]
        tasks.sort(key=lambda task: ARMS[task[0]].refine)
    return [task for task in tasks if key(*task) not in found["rows"]]


def load_small(folder: Path) -> Any:
    """A compressed checkpoint in float32, as the class that it names or, where transformers has none, as AutoModel."""
    import torch

    from tensorfact.compress import load
    from tensorfact.compress._hf_classes import architecture_class

    names = json.loads((folder / "config.json").read_text()).get("architectures")
    auto = {} if architecture_class(names) else {"auto_class": "AutoModel"}
    return load(folder, dtype=torch.float32, **auto).eval()


def run(
    subject: Subject, loaded: Loaded, arm: str, ratio: float, folder: Path, *, steps: int, threads: int = 1
) -> Result:
    """Compress, load and score. What is in `folder` of a run that was killed is gone on from."""
    from tensorfact.compress import Refinement, compress
    from tensorfact.compress.checkpoint import Checkpoint

    settings = ARMS[arm]
    calibration = None if settings.data is None else loaded.data[settings.data]
    resident = _resident_mib()
    begin, cpu = time.perf_counter(), time.process_time()
    report = compress(
        loaded.source,
        folder,
        method=settings.method,
        param_ratio=settings.ratio(ratio, subject.bits),
        options={
            **settings.options,
            **(subject.low_rank if settings.method == "lowrank" else {}),
            **({} if settings.bits is None else {"factor_bits": settings.bits}),
        },
        target_modules=subject.targets,
        calibration=calibration,
        refine=Refinement(steps=steps, inputs=settings.inputs) if settings.refine else False if calibration else None,
        executor=f"threads:{threads}",
        rng=0,
        overwrite=True,
    )
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    dense, small = Checkpoint.open(loaded.source), Checkpoint.open(folder)
    stored = sum(info.nbytes for info in small.tensors.values())
    mlps = sum(info.nbytes for name, info in dense.tensors.items() if is_target(subject, name))
    rest = sum(info.nbytes for info in dense.tensors.values()) - mlps
    row = {
        **loaded.score(load_small(folder)),
        "mlp_bytes": (stored - rest) / mlps,
        "reported_bytes": report.bytes_after,
        "stored_bytes": stored,
        "seconds": seconds,
        "cpu_seconds": cpu,
        # of the process so far: of this arm alone only where it ran first
        "peak_mib": peak,
        "resident_mib_before": resident,
        "error": sum(layer.error or 0 for layer in report.layers) / max(1, len(report.layers)),
        "blocks": [{"name": b.name, "loss_before": b.loss_before, "loss_after": b.loss_after} for b in report.blocks],
        **({"steps": steps} if settings.refine else {}),
    }
    shutil.rmtree(folder)
    return row


def is_target(subject: Subject, tensor: str) -> bool:
    """Whether a tensor of the dense checkpoint is the weight of a targeted layer."""
    name = tensor.removesuffix(".weight")
    return name != tensor and re.search(subject.targets.removeprefix("re:"), name) is not None


@contextmanager
def updated(file: Path) -> Iterator[Result]:
    """Results to change, read and written under a lock: several processes may run arms."""
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        result: Result = json.loads(file.read_text()) if file.is_file() else {}
        yield result
        part = file.with_name(f"{file.stem}.{os.getpid()}.part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(file)
    finally:
        os.close(descriptor)


def _resident_mib() -> float:
    """What the process holds now."""
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * resource.getpagesize() / 2**20
