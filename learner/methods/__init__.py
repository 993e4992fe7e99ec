"""Methods by name. A method is one file that reads like its paper and returns a `Recipe`; a plug-in changes one.

A name is a preset, or one host and any plug-ins joined by "+": "fixmatch", "eaf+fixmatch", "remop+eaf+flexmatch";
plug-ins may follow a preset: "lion_paper+calibrated". The options of a plug-in stand under its name among the host's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from learner.keepers.calibrator import CalibratorOptions
from learner.methods.adacm import AdaCMOptions, adacm
from learner.methods.adamatch import AdaMatchOptions, adamatch
from learner.methods.calibrated import with_calibration
from learner.methods.eaf import EafOptions, with_eaf
from learner.methods.ema_teacher import EmaTeacherOptions, ema_teacher
from learner.methods.facemix import MIXUP, FaceMixOptions, facemix
from learner.methods.fixmatch import FixMatchOptions, fixmatch
from learner.methods.flexmatch import FlexMatchOptions, flexmatch
from learner.methods.freematch import FreeMatchOptions, freematch
from learner.methods.leaf import OFFICIAL as LEAF_OFFICIAL
from learner.methods.leaf import LeafOptions, leaf
from learner.methods.lion import OFFICIAL, PAPER, LionOptions, lion
from learner.methods.loop import LOOP
from learner.methods.loop import SPEC as LOOP_SPEC
from learner.methods.mean_teacher import MeanTeacherOptions, mean_teacher
from learner.methods.pi import PiOptions, pi
from learner.methods.pseudo_label import PseudoLabelOptions, pseudo_label
from learner.methods.remop import OFFICIAL as REMOP_OFFICIAL
from learner.methods.remop import PLAIN, RemopOptions, with_remop
from learner.methods.softmatch import SoftMatchOptions, softmatch
from learner.methods.supervised import SupervisedOptions, supervised
from learner.parts import Recipe

Host = tuple[type[BaseModel], Callable[[Any, int, int], Recipe]]
PlugIn = tuple[type[BaseModel], Callable[[Recipe, Any, int, int], Recipe]]

HOSTS: dict[str, Host] = {
    "supervised": (SupervisedOptions, supervised),
    "fixmatch": (FixMatchOptions, fixmatch),
    "flexmatch": (FlexMatchOptions, flexmatch),
    "adacm": (AdaCMOptions, adacm),
    "freematch": (FreeMatchOptions, freematch),
    "softmatch": (SoftMatchOptions, softmatch),
    "adamatch": (AdaMatchOptions, adamatch),
    "pi": (PiOptions, pi),
    "pseudo_label": (PseudoLabelOptions, pseudo_label),
    "mean_teacher": (MeanTeacherOptions, mean_teacher),
    "ema_teacher": (EmaTeacherOptions, ema_teacher),
    "facemix": (FaceMixOptions, facemix),
    "leaf": (LeafOptions, leaf),
    "lion": (LionOptions, lion),
}

# In the order in which they are applied to the host, whatever the order in the name.
PLUG_INS: dict[str, PlugIn] = {
    "eaf": (EafOptions, with_eaf),
    "remop": (RemopOptions, with_remop),
    "calibrated": (CalibratorOptions, with_calibration),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A named combination: host and plug-ins, and options that differ from theirs."""

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "supervised": Preset("supervised"),
    "fixmatch": Preset("fixmatch"),
    "flexmatch": Preset("flexmatch"),
    "adacm": Preset("adacm"),
    "freematch": Preset("freematch"),
    "softmatch": Preset("softmatch"),
    "adamatch": Preset("adamatch"),
    "pi": Preset("pi"),
    "pseudo_label": Preset("pseudo_label"),
    "mean_teacher": Preset("mean_teacher"),
    "ema_teacher": Preset("ema_teacher"),  # SSFER's third stage
    "facemix": Preset("facemix"),  # SSFER's second stage
    "mixup": Preset("facemix", MIXUP),
    "eaf+fixmatch": Preset("eaf+fixmatch"),
    "eaf+flexmatch": Preset("eaf+flexmatch"),
    "leaf": Preset("leaf"),
    "leaf_official": Preset("eaf+adacm", LEAF_OFFICIAL),
    "lion": Preset("lion"),  # the annotation loop's; lion_annotation is the same by its full name
    "lion_annotation": Preset("lion"),
    "lion_paper": Preset("lion", PAPER),
    "lion_official": Preset("lion", OFFICIAL),
    "remop": Preset("remop+fixmatch", PLAIN),  # the paper's; remop+fixmatch is the same by its full name
    "remop+fixmatch": Preset("remop+fixmatch", PLAIN),
    "remop+flexmatch": Preset("remop+flexmatch", PLAIN),
    "remop+adacm": Preset("remop+adacm"),
    "remop_official": Preset("remop+fixmatch", REMOP_OFFICIAL),
    "lion+remop": Preset("remop+lion"),
    "loop": Preset(LOOP_SPEC, LOOP),
}

MAX_CLASSES = 62  # class sets are kept as bits of an int64


@dataclass(frozen=True, slots=True)
class Resolved:
    """A name and options, checked: the host, its options, and the options of every plug-in in order."""

    host: str
    options: BaseModel
    plug_ins: dict[str, BaseModel]

    def as_dict(self) -> dict[str, Any]:
        """Return every option with its value, plug-ins under their names."""
        return self.options.model_dump(mode="json") | {
            name: options.model_dump(mode="json") for name, options in self.plug_ins.items()
        }


def available() -> list[str]:
    """List the presets; `build` knows these names and every combination of a host and plug-ins."""
    return sorted(PRESETS)


def preset_of(name: str) -> Preset:
    """Return the preset of a name: a preset's, one with more plug-ins behind it, or the bare combination."""
    base, _, last = name.rpartition("+")
    if name in PRESETS or last not in PLUG_INS or not base:
        return PRESETS.get(name) or Preset(name)
    below = preset_of(base)
    return Preset(f"{below.spec}+{last}", below.options)


def resolve(name: str, options: Mapping[str, Any]) -> Resolved:
    """Check options and fill in the method's defaults.

    Raises:
        ValueError: unknown method, unknown option, or a value out of range; the message names it.
    """
    preset = preset_of(name)
    host, plug_ins = _take_apart(name, preset.spec)
    merged = _merged(preset.options, options)
    mine = {plug_in: merged.pop(plug_in, {}) for plug_in in plug_ins}
    checked = {plug_in: _checked(name, PLUG_INS[plug_in][0], mine[plug_in], f"{plug_in}.") for plug_in in plug_ins}
    return Resolved(host, _checked(name, HOSTS[host][0], merged), checked)


def build(name: str, num_classes: int, feature_dim: int, options: Mapping[str, Any] | None = None) -> Recipe:
    """Build the recipe of a method, with fresh state, for K classes and features of width d.

    Raises:
        ValueError: unknown method or option, a value out of range, or a combination that makes no sense.
    """
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"a method needs 2 to {MAX_CLASSES} classes, got {num_classes}")
    if feature_dim < 1:
        raise ValueError(f"feature_dim must be positive, got {feature_dim}")
    resolved = resolve(name, options or {})
    try:
        recipe = HOSTS[resolved.host][1](resolved.options, num_classes, feature_dim)
        for plug_in, chosen in resolved.plug_ins.items():
            recipe = PLUG_INS[plug_in][1](recipe, chosen, num_classes, feature_dim)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return replace(recipe, name=name)


def _take_apart(name: str, spec: str) -> tuple[str, list[str]]:
    words = spec.split("+")
    unknown = [word for word in words if word not in HOSTS and word not in PLUG_INS]
    if unknown:
        known = f"available: {', '.join(available())}; hosts: {', '.join(HOSTS)}; plug-ins: {', '.join(PLUG_INS)}"
        raise ValueError(f"unknown method {name!r}; {known}")
    hosts = [word for word in words if word in HOSTS]
    if len(hosts) != 1 or len(set(words)) != len(words):
        raise ValueError(f"method {name!r} must name exactly one of {', '.join(HOSTS)}, and each plug-in once")
    return hosts[0], [plug_in for plug_in in PLUG_INS if plug_in in words]


def _checked(name: str, model: type[BaseModel], values: Any, prefix: str = "") -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(
            f"{prefix}{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"method {name!r}: {reasons}") from error


def _merged(preset: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over a preset, section by section."""
    merged = dict(preset)
    for key, value in options.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
