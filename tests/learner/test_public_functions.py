"""The public functions: names, parameters and defaults that others build on, and any number of classes."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import pytest
import torch

from learner import losses
from learner.protocols import imbalanced_counts

NEEDED = Parameter.empty
# Name, the promised parameters in order with their defaults. What a function takes beyond them has a default.
PROMISED: dict[str, dict[str, Any]] = {
    "positive_partition": {"probs": NEEDED, "threshold": 0.9},
    "ambiguous_consistency": {"logits": NEEDED, "positive": NEEDED, "margin": 0.0},
    "negative_learning": {"logits": NEEDED, "complementary": NEEDED},
    "nt_xent": {"a": NEEDED, "b": NEEDED, "temperature": 0.07},
    "center_loss": {"features": NEEDED, "targets": NEEDED, "centers": NEEDED},
    "etf_regularizer": {"centers": NEEDED},
    "simplex_etf": {"num_classes": NEEDED, "dim": NEEDED},
    "mixture_logits": {
        "logits": NEEDED,
        "features": NEEDED,
        "centers": NEEDED,
        "beta": 0.5,
        "temperature": 0.1,
        "mode": "logit_cos",
    },
    "flexmatch_thresholds": {"counts": NEEDED, "num_unselected": NEEDED, "threshold": 0.95, "warmup": True},
    "adaptive_margins": {"mean_confidence": NEEDED, "epoch": NEEDED, "floor": 0.8, "ceiling": 0.97},
    "topk_gate": {"scores": NEEDED, "k": NEEDED, "activation": "none"},
    "imbalanced_counts": {"n1": NEEDED, "gamma": NEEDED, "num_classes": NEEDED},
    "soft_cross_entropy": {"logits": NEEDED, "targets": NEEDED},
}


def public(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = imbalanced_counts if name == "imbalanced_counts" else getattr(losses, name)
    return function


@pytest.mark.parametrize("name", PROMISED)
def test_names_and_defaults_are_a_promise(name: str) -> None:
    function, promised = public(name), PROMISED[name]
    found = inspect.signature(function).parameters
    head = list(found.values())[: len(promised)]
    assert {p.name: p.default for p in head} == promised
    assert all(p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in head)
    assert all(p.default is not NEEDED for p in list(found.values())[len(promised) :])
    assert inspect.getdoc(function)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 3, 7, 8, 62])
def test_shapes_for_any_number_of_classes(num_classes: int, dtype: torch.dtype) -> None:
    batch, width, full = 5, 80, torch.float64 if dtype == torch.float64 else torch.float32
    z = torch.randn(batch, num_classes).to(dtype)
    f, h = torch.randn(batch, width).to(dtype), torch.randn(num_classes, width).to(dtype)
    p, some = z.softmax(dim=1), torch.rand(batch, num_classes) < 0.5
    counts, y = torch.randint(9, (num_classes,)), torch.randint(num_classes, (batch,))
    positive = losses.positive_partition(p)
    assert (positive.shape, positive.dtype) == (z.shape, torch.bool)
    shaped = {
        losses.ambiguous_consistency(z, positive): (batch,),
        losses.negative_learning(z, some): (batch,),
        losses.soft_cross_entropy(z, p): (batch,),
        losses.nt_xent(f, f.flip(1)): (),
        losses.center_loss(f, y, h): (),
        losses.etf_regularizer(h): (),
        losses.mixture_logits(z, f, h): (batch, num_classes),
        losses.topk_gate(z, 2): (batch, num_classes),
    }
    for tensor, shape in shaped.items():
        assert tuple(tensor.shape) == shape
        assert tensor.dtype == full, "float32-safe: half precision ends at the door"
        assert bool(tensor.isfinite().all())
    assert losses.simplex_etf(num_classes, width).shape == (num_classes, width)
    assert losses.flexmatch_thresholds(counts, 3).shape == (num_classes,)
    assert losses.adaptive_margins(p.mean(dim=0), 4).shape == (num_classes,)
    assert len(imbalanced_counts(100, 10, num_classes)) == num_classes


def test_nothing_is_written_into_the_arguments() -> None:
    """Public code mixes images in place, so that what it calls the real image is the mixed one."""
    z, f, h = torch.randn(4, 5), torch.randn(4, 6), torch.randn(5, 6)
    p, some, y = z.softmax(dim=1), torch.rand(4, 5) < 0.5, torch.randint(5, (4,))
    given = (z, f, h, p, some, y)
    before = [tensor.clone() for tensor in given]
    losses.ambiguous_consistency(z, losses.positive_partition(p))
    losses.negative_learning(z, some)
    losses.soft_cross_entropy(z, p)
    losses.nt_xent(f, f)
    losses.center_loss(f, y, h)
    losses.etf_regularizer(h)
    losses.mixture_logits(z, f, h, mean=f.mean(dim=0))
    losses.topk_gate(z, 2)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))
