"""The dense model in memory while its blocks are replaced one after the other: inputs, targets, and what is stored.

torch and transformers are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorfact.compress._blocks import Activations, Calls, find_blocks, hidden_of, run_block, watch_blocks
from tensorfact.compress._grams import run_model
from tensorfact.compress._hf_classes import loaded_keys, module_names
from tensorfact.compress._inputs import load_dense
from tensorfact.compress._refine import Span

if TYPE_CHECKING:
    import torch

    from tensorfact.compress.calibration import Batches

__all__ = ["Flow", "open_model"]


def open_model(directory: Path, device: str) -> Any:
    """Load a checkpoint in float32, to be looked at and changed in place."""
    try:
        model = load_dense(directory).to(device)
    except Exception as error:  # whatever transformers and the files have to say
        raise ValueError(
            f"calibration needs a model that loads, {str(directory)!r} does not: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    for module in model.modules():  # parts of a model may have configurations of their own
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False  # a cache would pass from block to block and grow
    return model.requires_grad_(False)


class _Stopped(Exception):  # noqa: N818 (no error: it ends a forward pass)
    pass


class Flow:
    """Hidden states of the dense and of the compressed model, as far as both have come.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Becomes the compressed one, block by block.
    layers : iterable of str
        Layers to replace.
    limit : int
        Bytes that each of the kept sets of hidden states may take in memory; larger ones are mapped files in `folder`.
    """

    def __init__(self, model: Any, layers: Iterable[str], batches: Batches, *, limit: int, folder: Path) -> None:
        self.model, self.batches = model, batches
        self.limit, self.folder = limit, folder
        self.device = next(model.parameters()).device
        self.names = module_names(model, layers)
        self.blocks = find_blocks(model)
        self.calls: Calls | None = None
        self.teacher: Activations
        self.student: Activations
        self.at = 0
        self._home: dict[str, str] = {}

    def remember(self, keys: Sequence[str]) -> None:
        """Note where each tensor of the checkpoint lies in the model, before anything is replaced."""
        found = loaded_keys(self.model, keys, self.model.state_dict())
        self._home = {target: key for key, (target, merged) in found.items() if merged is None}

    def watch(self, run: Any) -> None:
        """Call ``run()``, a pass of the dense model over all batches, and note how it calls its blocks."""
        self.calls = watch_blocks(self.model, [block for _, block in self.blocks], self.batches, run)

    def run(self) -> None:
        """Run the model over all batches."""
        for index in range(len(self.batches.inputs)):
            run_model(self.model, self.batches, index)

    def start(self) -> None:
        """Put both flows at block 0."""
        calls = self._calls()
        self.teacher = Activations.of(calls.first, self.limit, self.folder)
        self.student = Activations.of(calls.first, self.limit, self.folder)
        calls.first.clear()

    def teach(self, blocks: range) -> list[Activations]:
        """Return the outputs of the dense blocks, which must not be replaced yet; the flow stays where it is."""
        outputs = []
        hidden = self.teacher
        for index in blocks:
            hidden = self._through(index, self._entering(index, hidden))
            outputs.append(hidden)
        return outputs

    def span(self, blocks: range, targets: Sequence[Activations], *, teacher: bool) -> Span:
        """Return what refinement needs of some blocks, with the inputs of the compressed or of the dense model."""
        calls = self._calls()
        inside = self._given(blocks)
        if teacher:
            inside = [self._entering(i, y) for i, y in zip(blocks[1:], targets, strict=False)]
        return Span(
            [self.block(index) for index in blocks],
            [calls.rest[index] for index in blocks],
            self._entering(blocks[0], self.teacher) if teacher else self.student,
            inside,
            targets,
            self.batches.masks,
        )

    def pass_on(self, blocks: range, outputs: Sequence[Activations]) -> None:
        """Take both flows beyond some blocks, which are replaced now; `outputs` are those of the dense ones."""
        self.teacher = outputs[-1]
        for index in blocks:
            self.student = self._through(index, self.student)
            self.at = index + 1
            if index + 1 in self._calls().breaks:
                self.student = self._caught(index + 1)

    def block(self, index: int) -> Any:
        """Return a block as it is now."""
        return self.model.get_submodule(self.blocks[index][0])

    def parameters(self, blocks: range, modules: Iterable[str]) -> dict[str, Any]:
        """Return by name what is trained: the floating parameters of `modules`, norms and biases of the blocks."""
        own = {id(p) for name in modules for p in self.model.get_submodule(name).parameters() if p.is_floating_point()}
        found: dict[str, Any] = {}
        for index in blocks:
            prefix, block = self.blocks[index][0], self.block(index)
            for name, parameter in block.named_parameters():
                if id(parameter) in own or (parameter.ndim < 2 and parameter.is_floating_point()):
                    found[f"{prefix}.{name}"] = parameter
        return found

    def keep_biases(self, biases: Mapping[str, Any], suffix: str) -> None:
        """Put the biases that linear modules had, by module name, into those that have taken their places."""
        import torch

        state = self.model.state_dict()
        with torch.no_grad():
            for name, bias in biases.items():
                if f"{name}.{suffix}" in state:  # else the method has a use of its own for it
                    state[f"{name}.{suffix}"].copy_(bias)

    def fill(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put stored arrays, given as numbers under their full names, into the model."""
        import torch

        state = self.model.state_dict()
        places = self._places(arrays, state)
        with torch.no_grad():
            for key, values in arrays.items():
                state[places[key]].copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def collect(self, keys: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Return arrays of the model under their full stored names."""
        import torch

        state = self.model.state_dict()
        places = self._places(keys, state)
        found = {key: state[place].detach().cpu() for key, place in places.items()}
        # NumPy has no bfloat16, which is the type of scales
        return {k: (t.float() if t.dtype == torch.bfloat16 else t).numpy().copy() for k, t in found.items()}

    def source_key(self, parameter: str) -> str | None:
        """Return the name in the checkpoint of a parameter that the dense model has."""
        return self._home.get(parameter)

    def _places(self, keys: Iterable[str], state: dict[str, Any]) -> dict[str, str]:
        wanted = list(keys)
        found = {key: target for key, (target, _) in loaded_keys(self.model, wanted, state).items()}
        lost = [key for key in wanted if found[key] not in state]
        if lost:
            raise ValueError(f"arrays must have a place in the modules of the method, got {', '.join(lost[:3])}")
        return found

    def _calls(self) -> Calls:
        if self.calls is None:
            raise ValueError("the model must run its blocks one after the other to be refined")
        return self.calls

    def _entering(self, index: int, hidden: Activations) -> Activations:
        found = self._calls().breaks.get(index)
        return hidden if found is None else Activations.of(found, self.limit, self.folder)

    def _given(self, blocks: range) -> list[Activations | None]:
        """Inputs of blocks inside of a span: those of the dense model where something lies between two of them."""
        breaks = self._calls().breaks
        found = [breaks.get(index) for index in blocks[1:]]
        return [None if x is None else Activations.of(x, self.limit, self.folder) for x in found]

    def _through(self, index: int, hidden: Activations) -> Activations:
        import torch

        calls, block = self._calls().rest[index], self.block(index)
        with torch.no_grad():
            outputs: Activations | None = None
            first = run_block(block, hidden[0].to(self.device), calls[0])
            same = first.shape == hidden[0].shape
            if same:
                outputs = hidden.like(self.limit, self.folder)
                outputs[0] = first
                for i in range(1, len(hidden)):
                    outputs[i] = run_block(block, hidden[i].to(self.device), calls[i])
                return outputs
            rest = [run_block(block, hidden[i].to(self.device), calls[i]) for i in range(1, len(hidden))]
            return Activations.of([first, *rest], self.limit, self.folder)

    def _caught(self, index: int) -> Activations:
        """Inputs of a block in the model as it is now, by running it up to there."""
        caught: list[torch.Tensor] = []

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            caught.append(hidden_of(hidden).detach().clone())
            raise _Stopped

        handle = self.block(index).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            for i in range(len(self.batches.inputs)):
                try:
                    run_model(self.model, self.batches, i)
                except _Stopped:
                    continue
        finally:
            handle.remove()
        return Activations.of(caught, self.limit, self.folder)
