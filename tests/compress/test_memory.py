"""Peak memory is that of the largest weight for each worker, whatever the size of the checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH, SHARDS = 1024, 24  # 4 MiB a weight, 96 MiB in all

CODE = """
import resource
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from tensorfact.compress import compress
# one weight of the same size beforehand: BLAS keeps buffers of its own
compress({first!r}, {out!r} + '0', param_ratio=0.3, executor={executor!r}, allocation={allocation!r})
before = peak()
compress({source!r}, {out!r}, param_ratio=0.3, executor={executor!r}, allocation={allocation!r})
print(before, peak())
"""


def write(directory, shards):
    directory.mkdir()
    rng = np.random.default_rng(0)
    names = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32)
        save_file({f"layers.{i}.proj.weight": weight}, directory / file)
        names[f"layers.{i}.proj.weight"] = file
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (directory / "config.json").write_text('{"model_type": "plain"}')
    return directory


@pytest.mark.parametrize(
    ("executor", "workers", "allocation"),
    [("serial", 1, "uniform"), ("threads:2", 2, "uniform"), ("threads:2", 2, "spectrum")],
)
def test_many_shards_take_no_more_memory_than_two(tmp_path, run_python, executor, workers, allocation):
    first, source = write(tmp_path / "first", 2), write(tmp_path / "source", SHARDS)
    code = CODE.format(
        first=str(first), source=str(source), out=str(tmp_path / "out"), executor=executor, allocation=allocation
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    # The checkpoint has 96 MiB. Growth may be one weight a worker and what the allocator fails to reuse.
    assert after - before <= 16 + 8 * workers
