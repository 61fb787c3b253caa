"""What a compression did, as data: one record a tensor, one report a run, JSON in and out.

Nothing here renders anything: `report.py` and `report_html.py` read these records, `run.py` fills them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "REPORT_VERSION",
    "BlockRecord",
    "CalibrationRecord",
    "DenseRecord",
    "Fidelity",
    "Latency",
    "LayerRecord",
    "Report",
    "downsample_spectrum",
]

REPORT_VERSION = 1

Spectrum = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One weight that is stored in factored form.

    Parameters
    ----------
    name : str
        Module name: the checkpoint key without ``.weight``.
    kind : str
        ``"linear"``, or ``"conv1d"`` for a transposed weight (`transformers.pytorch_utils.Conv1D`).
    shape : tuple of int
        ``(out_features, in_features)``, whatever the storage order of the source.
    dtype : str
        safetensors name of the stored type, for example ``"BF16"``.
    rank : int or tuple of int
        Rank of the factors; a tuple of bonds for a train.
    full_rank : int or None
        Rank, or largest bond, that meets every weight of this shape; None means ``min(shape)``.
    break_even : int or None
        Largest rank, or largest bond, that takes fewer numbers than the weight; None means that of two factors.
    error : float or None
        Achieved relative Frobenius error. It is predicted from the spectrum in a dry run, None where nothing is known.
    optimal_error : float or None
        Smallest error possible at this rank, from the full spectrum; None when it was not computed or is not known.
    path : str
        Algorithm that ran, as named by the factorisation (``"subspace"``, ``"gram-exact"``, ...).
    params_before, params_after : int
        Numbers stored for the weight, dense and factored. A bias is not counted: it is unchanged.
    bytes_before, bytes_after : int
        The same in bytes.
    seconds : float
        Time spent on this weight by its worker, reading included.
    spectrum : tuple of (int, float)
        At most 64 points ``(index from 1, sigma_index / sigma_1)``, log-spaced. Empty when unknown. It spans all
        singular values where the ranks were shared by them, else only the `rank` leading ones. For a train they are
        those of the middle unfolding.
    notes : tuple of str
        Fallbacks and remarks of the factorisation.
    latency_before_ms, latency_after_ms : float or None
        Median time of this layer alone on `Latency.layer_input`, dense and factored. None when it was not measured.
    output_error : float or None
        Relative error of the layer's outputs on the inputs that it has in the dense model, over the calibration data.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    rank: int | tuple[int, ...]
    error: float | None
    optimal_error: float | None
    path: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    full_rank: int | None = None
    break_even: int | None = None
    seconds: float = 0.0
    spectrum: Spectrum = ()
    notes: tuple[str, ...] = ()
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    output_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """One block, or several that share arrays, trained to give the outputs of the dense model.

    The losses are squared errors of the outputs relative to their squared norm, on samples that were not trained on;
    `loss_after` is never above `loss_before`, because training that does not help is dropped. `steps` are those taken.
    """

    name: str
    layers: int
    loss_before: float
    loss_after: float
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """The data that a run learned from: what they are in words, how many, and how blocks were trained (or None)."""

    description: str
    samples: int
    positions: int
    refinement: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRecord:
    """One tensor of two or more axes that stays as it was, and why.

    `targeted` is true where the weight counts in the budget but stayed dense (at or past break-even).
    """

    name: str
    reason: str
    shape: tuple[int, ...]
    dtype: str
    params: int
    bytes: int
    targeted: bool = False
    spectrum: Spectrum = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median wall time of one forward pass, in milliseconds, measured on interleaved runs of both models.

    `layer_input` says on what the single layers were timed (`LayerRecord.latency_before_ms`), empty if they were not.
    """

    before_ms: float
    after_ms: float
    input: str
    threads: int
    repeats: int
    layer_input: str = ""

    @property
    def speedup(self) -> float:
        """Time before over time after: above 1 the compressed model is faster."""
        return self.before_ms / self.after_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How close the outputs of the compressed model are to those of the source, on `input`.

    `metrics` maps a name with its unit or range (for example ``"cosine_mean"``, ``"relative_error"``,
    ``"top1_agreement"``) to a value; `output` names the tensor compared.
    """

    input: str
    output: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one run of `compress` or `estimate` did, or would do.

    Parameters
    ----------
    method, options
        Name and options of the method.
    source, output
        Directories as given by the caller; `output` is None in a dry run.
    model_type, architecture
        From the source's ``config.json``.
    param_ratio : float
        Requested share of the parameters of the *targeted* weights.
    targeted_before, targeted_after : int
        Parameters of the targeted weights. `achieved_ratio` is their quotient and never exceeds `param_ratio`.
    params_before, params_after, bytes_before, bytes_after : int
        The whole checkpoint, every tensor counted.
    layers, dense
        Records in checkpoint order. Vectors (biases, norm scales) are only part of the totals.
    seconds : dict of str to float
        Wall time of the phases: ``plan``, ``spectra``, ``factor``, ``compare``, ``total``.
    peak_memory_bytes : int or None
        Highest resident size of this process up to the end of writing (workers in other processes not included).
    executor : str
        Where the tasks ran, as in ``threads:2``.
    latency, fidelity
        Comparison of the two models; None when it was not asked for or not possible (`notes` says so).
    notes : tuple of str
        Remarks on the whole run.
    versions : dict of str to str
        Versions of tensorfact, NumPy and SciPy.
    dry_run : bool
        True for `estimate`: nothing was written, errors are predictions.
    created : str
        Time of the run, ISO 8601 with its zone; empty when unknown.
    calibration : CalibrationRecord or None
        The data, where there were some.
    blocks : tuple of BlockRecord
        Blocks that were trained on them.
    """

    method: str
    options: dict[str, Any]
    source: str
    output: str | None
    model_type: str
    architecture: str
    param_ratio: float
    targeted_before: int
    targeted_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerRecord, ...]
    dense: tuple[DenseRecord, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    executor: str = "serial"
    latency: Latency | None = None
    fidelity: Fidelity | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    created: str = ""
    calibration: CalibrationRecord | None = None
    blocks: tuple[BlockRecord, ...] = ()

    @property
    def achieved_ratio(self) -> float:
        """Share of the targeted parameters that stay."""
        return self.targeted_after / self.targeted_before if self.targeted_before else 1.0

    @property
    def total_ratio(self) -> float:
        """Share of all parameters of the checkpoint that stay."""
        return self.params_after / self.params_before if self.params_before else 1.0

    def to_json(self) -> str:
        """Return the report as strict JSON (no NaN, no infinity)."""
        content = {"report_version": REPORT_VERSION, **dataclasses.asdict(self)}
        content["achieved_ratio"] = self.achieved_ratio
        content["total_ratio"] = self.total_ratio
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read a report back.

        Raises
        ------
        ValueError
            If `text` is not a report, or one written by a newer format.
        """
        try:
            content = json.loads(text)
            version = content.pop("report_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"text must be a tensorfact report, got something else ({error!r})") from error
        if version != REPORT_VERSION:
            raise ValueError(f"report_version must be {REPORT_VERSION}, got {version!r}; a newer tensorfact wrote it")
        try:
            content.pop("achieved_ratio", None)
            content.pop("total_ratio", None)
            content["layers"] = tuple(_layer(item) for item in content["layers"])
            content["dense"] = tuple(_dense(item) for item in content["dense"])
            content["notes"] = tuple(content["notes"])
            content["blocks"] = tuple(BlockRecord(**item) for item in content.get("blocks", ()))
            for key, kind in (("latency", Latency), ("fidelity", Fidelity), ("calibration", CalibrationRecord)):
                if content.get(key) is not None:
                    content[key] = kind(**content[key])
            return cls(**content)
        except (KeyError, TypeError) as error:
            raise ValueError(f"text must be a complete tensorfact report, got {error!r}") from error

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Read ``report.json`` of a compressed checkpoint, or the file itself."""
        path = Path(path)
        file = path / "report.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"path must hold a report.json, got {str(path)!r}")
        return cls.from_json(file.read_bytes())


def downsample_spectrum(values: npt.ArrayLike, points: int = 64) -> Spectrum:
    """Return at most `points` log-spaced pairs ``(index from 1, sigma_index / sigma_1)`` of descending `values`."""
    sigma = np.asarray(values, dtype=np.float64)
    if sigma.size == 0 or not sigma[0] > 0:
        return ()
    index = np.unique(np.geomspace(1, sigma.size, num=points).round().astype(np.int64))
    return tuple((int(i), float(f"{sigma[i - 1] / sigma[0]:.5g}")) for i in index)


def _spectrum(item: dict[str, Any]) -> Spectrum:
    return tuple((int(i), float(value)) for i, value in item["spectrum"])


def _layer(item: dict[str, Any]) -> LayerRecord:
    rank = item["rank"]
    fields = {
        "shape": tuple(item["shape"]),
        "rank": tuple(rank) if isinstance(rank, list) else rank,
        "spectrum": _spectrum(item),
        "notes": tuple(item["notes"]),
    }
    return LayerRecord(**{**item, **fields})


def _dense(item: dict[str, Any]) -> DenseRecord:
    return DenseRecord(**{**item, "shape": tuple(item["shape"]), "spectrum": _spectrum(item)})
