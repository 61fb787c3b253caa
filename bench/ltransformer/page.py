"""The page of the experiment: docs/ltransformer.md, made of the stored results alone."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import Any

from bench.ltransformer.arms import LAYERS, Arm

Result = dict[str, Any]
Run = dict[str, Any]
PUBLISHED = {  # task, width, arm: test accuracy in per cent
    ("imdb", 128, "std"): 80.77, ("imdb", 128, "shallow"): 77.50, ("imdb", 128, "t2-dct"): 81.72,
    ("imdb", 128, "t4-dct"): 81.65, ("imdb", 128, "t4-dct-standard"): 82.02, ("imdb", 128, "t4-dct-exponential"): 81.60,
    ("imdb", 128, "t4-dct-harmonic"): 81.53, ("imdb", 128, "t4-dct-learnable"): 81.98, ("ag_news", 256, "std"): 91.40,
    ("ag_news", 256, "shallow"): 86.97, ("ag_news", 256, "t4-dct"): 90.76, ("ag_news", 256, "t4-dct-harmonic"): 90.41,
    ("ag_news", 768, "std"): 91.47, ("ag_news", 768, "t4-dct"): 91.52,
}  # fmt: skip
TRANSFORMS = {"dct": "DCT", "identity": "identity", "random": "random orthogonal"}
SUBSET = (
    "The subset for a CPU differs from the published protocol: part of one epoch instead of 5 or 20, batches of 32 "
    "instead of 128, a peak rate of 1e-3 instead of 3e-4 (taken without a search), no dropout inside the layers, where "
    "it is a third of a step's time on a CPU, and at most 10,000 test texts, drawn once for all."
)
TITLES = {"imdb": "IMDB", "ag_news": "AG News"}


def label(name: str) -> str:
    """What an arm is, in words."""
    dense = {
        "std": f"dense, {LAYERS} layers (`torch.nn`)",
        "shallow": "dense, 1 layer",
        "narrow": f"dense, {LAYERS} layers of half the width",
    }
    if name in dense:
        return dense[name]
    arm = Arm.of(name)
    words = [f"{arm.slices} slices", TRANSFORMS[arm.transform]]
    if arm.positions != "linear":
        words.append("no positions" if arm.positions == "nopos" else f"{arm.positions} positions")
    if arm.own:
        words.append("positions of the formula in its own domain")
    if arm.domain == "transform":
        words.append("LayerNorm in the transform domain")
    return ", ".join(words)


def groups(result: Result) -> dict[tuple[str, int, str], list[Run]]:
    """Runs that compare: of one task, width and protocol."""
    found: dict[tuple[str, int, str], list[Run]] = {}
    for run in result["runs"]:
        found.setdefault((run["task"], run["width"], run["kind"]), []).append(run)
    return found


def finished(runs: list[Run], arm: str) -> list[Run]:
    """Runs of an arm that have seen the test set."""
    return [run for run in runs if run["arm"] == arm and run["test"] is not None]


def accuracies(runs: list[Run]) -> list[float]:
    """Test accuracies in per cent."""
    return [100 * run["test"]["accuracy"] for run in runs]


def chosen(runs: list[Run]) -> list[float]:
    """Validation accuracies in per cent, of the checkpoints that were chosen."""
    return [100 * max(v["accuracy"] for v in run["validation"]) for run in runs]


def spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    """Mean, with the standard deviation where there are several; a dash for nothing."""
    if not values:
        return "-"
    text = f"{mean(values):{sign}.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"


def paired(runs: list[Run], arm: str, other: str = "std") -> list[float]:
    """Test accuracy of an arm minus that of another, seed by seed, in points."""
    against = {run["seed"]: run["test"]["accuracy"] for run in finished(runs, other)}
    return [
        100 * (run["test"]["accuracy"] - against[run["seed"]]) for run in finished(runs, arm) if run["seed"] in against
    ]


def table(task: str, width: int, runs: list[Run]) -> list[str]:
    """One row an arm."""
    lines = [
        "| encoder | its parameters | of dense | all parameters | seeds | validation, % | test, % | "
        "test minus dense, points | published test, % |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- | ---: |",
    ]
    dense = next((run["parameters"]["encoder"] for run in runs if run["arm"] == "std"), None)
    for arm in dict.fromkeys(run["arm"] for run in runs):
        done = finished(runs, arm)
        if not done:
            continue
        size, published = done[0]["parameters"], PUBLISHED.get((task, width, arm))
        share = f"{size['encoder'] / dense:.3f}" if dense else "-"
        lines.append(
            f"| {label(arm)} | {size['encoder']:,} | {share} | "
            f"{size['all']:,} | {len(done)} | {spread(chosen(done))} | {spread(accuracies(done))} | "
            f"{spread(paired(runs, arm), sign='+') if arm != 'std' else ''} | {published or ''} |"
        )
    return lines


def verdict(task: str, runs: list[Run]) -> str:
    """Four slices against the dense encoder, and against their controls."""
    gap = paired(runs, "t4-dct")
    if not gap:
        return ""
    done = finished(runs, "t4-dct")
    share = mean(accuracies(done)) / 100
    noise = 100 * math.sqrt(share * (1 - share) / done[0]["test"]["examples"])
    text = (
        f"Four slices under the DCT against the dense encoder on {TITLES[task]}: {mean(gap):+.2f} points in the mean "
        f"of {len(gap)} seed{'s' * (len(gap) > 1)} ({', '.join(f'{g:+.2f}' for g in gap)}). The standard error of one "
        f"accuracy on {done[0]['test']['examples']:,} texts is {noise:.2f} points."
    )
    if len(gap) > 1:
        error = stdev(gap) / math.sqrt(len(gap))
        level = abs(mean(gap)) <= 2 * math.hypot(error, noise)
        text += (
            f" The mean's own standard error over the seeds is {error:.2f}: four slices are "
            + ("level within twice the noise of both" if level else "ahead" if mean(gap) > 0 else "behind")
            + f", with {100 * (1 - share_of(runs)):.0f} % fewer parameters in the encoder."
        )
    parts = []
    for arm, what in (
        ("t4-identity", "no transform"),
        ("t4-random", "a random one"),
        ("t4-dct-ln", "norms in its domain"),
    ):
        found = paired(runs, "t4-dct", arm)
        if found:
            parts.append(f"{mean(found):+.2f} over {what} ({len(found)} seed{'s' * (len(found) > 1)})")
    return text + (f" The DCT itself is {', '.join(parts)}." if parts else "")


def share_of(runs: list[Run]) -> float:
    """Parameters of an encoder on four slices over those of the dense one."""
    small, dense = (finished(runs, arm)[0]["parameters"]["encoder"] for arm in ("t4-dct", "std"))
    return float(small / dense)


def settings(run: Run) -> str:
    """The protocol of a group in words."""
    p = run["protocol"]
    dropout = f"dropout {p['dropout']:g} in the layers and {p['attention_dropout']:g} on attention weights, "
    if not p["dropout"] and not p["attention_dropout"]:
        dropout = ""
    return (
        f"{p['steps']:,} steps of {p['batch']} texts of at most {p['length']} tokens, AdamW, lr {p['lr']:g} with "
        f"{100 * p['warmup']:g} % warm-up and a cosine to {p['last_lr']:.2g}, weight decay {p['weight_decay']:g}, "
        f"gradients clipped at {p['clip']:g}, {dropout}dropout {p['embedding_dropout']:g} on the embedding, "
        f"{p['heads']} heads in all. The checkpoint with the best validation accuracy (held out: a tenth of the "
        f"training texts; looked at every {p['evaluate_every']:,} steps) sees "
        + f"{run['test']['examples']:,} test texts once."
    )


def speed(result: Result) -> list[str]:
    """Tokens a second and memory."""
    lines = []
    for key, found in result.get("speed", {}).items():
        task, width = key.split()
        base = found["rates"]["std"]
        lines += [
            f"{TITLES[task]}, width {width}, {found['device']}, one thread, texts of full length; medians of "
            "interleaved rounds. Training is a whole step with its optimiser; memory is what a model, optimiser and "
            "two steps add to a process.",
            "",
            "| encoder | training, tokens/s | of dense | reading, tokens/s | of dense | memory, MB |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for arm, rate in found["rates"].items():
            held = found.get("memory", {}).get(arm)
            lines.append(
                f"| {label(arm)} | {rate['train']:,.0f} | {rate['train'] / base['train']:.2f} | {rate['read']:,.0f} | "
                f"{rate['read'] / base['read']:.2f} | {'-' if held is None else f'{held:,.0f}'} |"
            )
        lines.append("")
    return lines


def missing(result: Result) -> list[str]:
    """What the CPU subset asks for and is not there."""
    have = {(run["task"], run["arm"], run["seed"]) for run in result["runs"] if run["test"] and run["kind"] == "cpu"}
    begun = {(run["task"], run["arm"], run["seed"]): run for run in result["runs"] if run["kind"] == "cpu"}
    lines = []
    for task, arm, seed in result["expected"]:
        if (task, arm, seed) not in have:
            run = begun.get((task, arm, seed))
            at = f": stands at step {run['step']} of {run['protocol']['steps']}" if run else ""
            lines.append(f"* {TITLES[task]}, `{arm}`, seed {seed}{at}")
    return lines


def render(result: Result) -> str:
    """The whole page."""
    where = result["environment"]
    lines = [
        "# Encoders on slices of the embedding, from scratch",
        "",
        "Generated by `python -m bench.ltransformer` from `bench/results/ltransformer.json`; do not edit by hand.",
        "",
        "Text classifiers after El Ichi, Jbilou, El Guide and Dufrenois, arXiv 2603.05727: embedding, encoder, mean "
        "over the tokens, linear layer. The dense encoder is `torch.nn.TransformerEncoder`; its rivals are "
        "`tensorfact.torch.LTransformerEncoder`. Byte-level BPE with 30,000 tokens, trained on the training texts; "
        "GELU, post-norm, float32. One seed draws the same embedding and the same batches for every encoder.",
        "",
        "Controls of the DCT: the identity, where slices never meet before the classifier, and an orthogonal matrix "
        "drawn for each seed. Both get the positions that the DCT's slices see, in the transform domain, so that the "
        "transform acts through LayerNorm alone. The dense encoders get sinusoids at the embedding. The narrow one "
        "stands behind a projection of the same embedding, which counts with it.",
        "",
        "![accuracy against parameters of the encoder](ltransformer.png)",
        "",
    ]
    for (task, width, kind), runs in groups(result).items():
        if not any(run["test"] for run in runs):
            continue
        full = next(run for run in runs if run["test"])
        lines += [f"## {TITLES[task]}, width {width}{', full protocol' * (kind == 'paper')}", "", settings(full), ""]
        if kind == "cpu":
            lines += [SUBSET, ""]
        lines += [*table(task, width, runs), ""]
        text = verdict(task, runs)
        lines += [text, ""] if text else []
    lines += [
        "The published accuracies come from 20 epochs (IMDB) and 5 epochs of 120,000 texts (AG News) at other rates, "
        "and from layers of another build (15 w² instead of 12 w² parameters): they stand beside, not as a target. "
        "Reviews and news are read here in small letters and without markup.",
        "",
    ]
    found = speed(result)
    if found:
        lines += ["## Speed and memory", "", *found]
    gone = missing(result)
    if gone:
        lines += ["## Not run", "", "Of the CPU subset:", "", *gone, ""]
    hours = sum(run["cpu_seconds"] for run in result["runs"]) / 3600
    lines += [
        "The published protocol, width 768 included, is `--protocol paper --device cuda`"
        + (" and has not been run here. " if all(run["kind"] == "cpu" for run in result["runs"]) else ". ")
        + f"All runs together: {hours:.1f} hours of one core, on a machine that other work shared, so that their own "
        "times say nothing.",
        "",
        f"{where['cpu']}, {where['cores']} cores; "
        + ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        + f"; commit {where['commit']}.",
        "",
    ]
    return "\n".join(lines)
