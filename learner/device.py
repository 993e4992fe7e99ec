"""Where a run computes, and how precisely."""

from typing import Any, Literal, Protocol

import lightning_fabric
import torch
from threadpoolctl import threadpool_limits

from learner.errors import InputError

Precision = Literal["32-true", "bf16-mixed"]


class Placement(Protocol):
    """The part of a run's configuration that says where it computes."""

    @property
    def device(self) -> str:
        """auto, cpu, cuda or mps."""
        ...

    @property
    def precision(self) -> Literal["auto", "32-true", "bf16-mixed"]:
        """What the network multiplies in."""
        ...

    @property
    def threads(self) -> int | None:
        """CPU threads; None leaves torch's choice."""
        ...


def make_fabric(config: Placement) -> lightning_fabric.Fabric:
    """Choose device, precision and threads.

    Raises:
        InputError: this machine has no such device.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        threadpool_limits(config.threads, "blas")  # numpy's too: another number of threads rounds sums otherwise
    try:
        device = lightning_fabric.Fabric(accelerator=config.device, devices=1).device
        precision = config.precision if config.precision != "auto" else fitting_precision(device)
        return lightning_fabric.Fabric(accelerator=config.device, devices=1, precision=precision)
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"cannot use device {config.device!r}: {error}") from error


def fitting_precision(device: torch.device) -> Precision:
    """Return bf16-mixed where the device computes bfloat16 by itself, and faster; 32-true elsewhere."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device.type == "cpu":
        # newer than the oldest torch that we support
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16-mixed" if able.get("avx512_bf16") or able.get("amx_bf16") else "32-true"
    return "32-true"
