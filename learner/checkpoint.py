"""Tensors and their description in one safetensors file, replaced atomically; nothing here can run code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.errors import CheckpointError

FORMAT = 1


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description, durably, so that a reader finds the old file or the new one whole."""
    flat = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(flat, temporary, metadata={"meta": json.dumps({"format": FORMAT, **meta})})
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or no safetensors (a pickle, say).
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(header.get("meta", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is no safetensors checkpoint ({error}); pickled files are never loaded"
        ) from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {meta.get('format')!r}; this version reads {FORMAT}")
    return tensors, meta


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pack(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before every key."""
    return {f"{prefix}/{name}": tensor for name, tensor in state.items()}


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the entries under a prefix, without it."""
    start = f"{prefix}/"
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimiser's moments by parameter position; rates and decays live in the configuration."""
    named: dict[str, Tensor] = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                named[f"{index}/{key}"] = torch.as_tensor(value)
    return named


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser its moments back, each in the memory layout of its parameter so that sums come out the same."""
    optimizer.state.clear()
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        saved = unpack(str(index), tensors)
        for key, value in saved.items():
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
            optimizer.state[parameter][key] = value.clone() if value.dim() == 0 else value


def load_weights(network: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        CheckpointError: keys or shapes differ; the message lists the first.
    """
    wanted = network.state_dict()
    wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape] + [
        k for k in state if k not in wanted
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the model in {len(wrong)} entries, first {wrong[:4]}")
    network.load_state_dict(dict(state))
