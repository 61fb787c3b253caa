"""What a report says of the data that a run learned from, and of the blocks that were trained on them."""

from __future__ import annotations

import statistics

from tensorfact.compress import _page
from tensorfact.compress._grouping import format_count
from tensorfact.compress.records import Report

__all__ = ["blocks_section", "learned"]


def learned(report: Report) -> list[str]:
    """Return lines of text, none where there were no data."""
    if report.calibration is None:
        return []
    outputs = [layer.output_error for layer in report.layers if layer.output_error is not None]
    mean = f"; mean error of the outputs of single layers {statistics.mean(outputs):.4f}" if outputs else ""
    lines = [f"calibration: {report.calibration.description}{mean}"]
    for block in report.blocks:
        lines.append(
            f"refined {block.name}: loss {block.loss_before:.4g} -> {block.loss_after:.4g} on samples held out, "
            f"{format_count(block.steps, 'step')}, {block.seconds:.1f} s"
        )
    return lines


def blocks_section(report: Report) -> str:
    """Return a table of the trained blocks and one of the layers' output errors, empty without data."""
    if report.calibration is None:
        return ""
    headers = ("blocks", "weights", "loss before", "loss after", "steps", "seconds")
    rows = (
        (b.name, str(b.layers), f"{b.loss_before:.4g}", f"{b.loss_after:.4g}", str(b.steps), f"{b.seconds:.1f}")
        for b in report.blocks
    )
    parts = [_page.table(headers, rows)] if report.blocks else []
    known = [layer for layer in report.layers if layer.output_error is not None]
    if known:
        errors = ((layer.name, f"{layer.output_error:.4f}") for layer in known)
        table = _page.table(("layer", "error of its outputs"), errors)
        parts.append(f"<details><summary>Errors of the outputs of {len(known)} layers</summary>{table}</details>")
    text = (
        "Errors of outputs are those on the inputs that a layer has in the dense model. The loss of a block is the "
        "squared error of its output relative to the dense one's squared norm, on samples that were held out."
    )
    return _page.section("Calibration", text, f'<div class="card">{"".join(parts)}</div>') if parts else ""
