"""The papers' numbers, in percent, as their tables print them (ALGORITHMS.md 13.3). Not ours; shown beside ours."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Published:
    """One number of a paper: mean and, where it prints one, standard deviation."""

    source: str
    dataset: str  # rafdb, ferplus, affectnet7, affectnet8
    split: str  # LabelSplit.name
    method: str
    metric: Literal["balanced", "overall"]
    mean: float
    std: float | None = None


# LEAF table 1, balanced: RAF-DB 100,200,400 | FERPlus 100,200,400 | AffectNet7, AffectNet8 500,1000,2000. FERPlus
# "100" is 96 labels.
_LEAF_SPLITS = (
    *(("rafdb", f"leaf-{n}") for n in (100, 200, 400)),
    *(("ferplus", f"leaf-{n}") for n in (96, 200, 400)),
    *((name, f"leaf-{n}") for name in ("affectnet7", "affectnet8") for n in (500, 1000, 2000)),
)
_LEAF = """
Pi-Model      43.39 52.92 60.29 42.62 48.18 58.06 44.76 50.34 53.26 39.71 44.26 46.88
Pseudo-Label  44.36 52.04 59.61 39.75 48.03 55.19 44.85 48.28 52.28 40.70 43.03 47.49
VAT           33.28 48.21 57.14 40.07 48.40 51.95 43.46 47.68 51.79 38.02 43.13 47.54
UDA           49.22 59.96 65.80 44.36 52.48 62.80 47.69 51.49 55.48 42.74 46.38 48.73
MeanTeacher   39.50 52.26 62.71 37.86 47.43 58.40 46.98 50.47 54.09 41.76 45.87 49.57
MixMatch      40.40 54.77 62.62 43.72 51.06 56.64 45.20 49.12 53.82 41.12 44.07 49.05
ReMixMatch    39.52 54.22 60.93 40.63 48.30 58.15 43.63 50.80 54.02 42.66 45.34 50.17
FixMatch      48.13 60.23 65.04 48.05 52.77 60.38 47.83 51.39 54.75 42.69 46.04 49.50
DeFixMatch    50.37 59.21 65.81 45.08 53.01 62.14 47.51 51.32 55.00 43.28 46.49 48.49
Dash          49.95 59.27 66.44 43.10 55.56 62.74 48.03 51.65 54.49 42.33 45.69 50.06
CoMatch       49.09 60.81 65.18 41.24 49.32 59.74 47.97 51.88 55.07 43.94 46.47 49.03
SimMatch      50.47 58.56 66.83 45.93 49.07 60.61 48.06 52.04 56.09 43.71 47.40 50.38
AdaMatch      48.35 57.10 63.61 43.87 50.48 59.92 47.03 51.13 54.23 41.69 45.43 49.12
FlexMatch     48.79 53.24 61.16 43.75 47.90 58.23 48.00 52.23 54.76 42.98 46.45 49.02
FreeMatch     48.89 55.26 62.09 41.85 45.57 58.39 46.74 50.77 54.46 41.98 45.96 49.44
SoftMatch     49.95 56.13 63.45 42.97 49.97 57.58 47.65 50.71 54.56 42.06 46.73 49.26
Ada-CM        56.15 62.82 67.52 52.11 58.94 60.12 47.78 52.94 56.00 44.29 46.05 51.24
LION          56.08 61.81 67.49 49.87 58.77 65.27 47.96 53.13 56.67 43.99 48.07 51.48
LEAF          56.83 63.43 69.00 52.20 61.00 62.92 50.21 53.87 56.84 45.37 49.53 52.34
LEAF-linear   56.01 60.35 67.18 51.79 58.72 62.25 49.19 52.99 56.71 44.62 47.84 52.03
LEAF-bottleneck 56.23 62.91 67.44 51.81 57.22 62.85 48.89 53.86 56.80 45.26 48.10 52.27
"""

# LEAF's ablation on AffectNet7: overall 500,1000 | balanced 500,1000.
_LEAF_ABLATION = """
LEAF-no-semantic 49.76 53.53 49.71 53.51
LEAF-no-instance 48.82 52.36 48.76 52.33
LEAF-no-category 46.53 50.94 46.47 50.90
LEAF-ce          49.27 52.60 49.21 52.58
LEAF             50.27 53.90 50.21 53.87
"""

# LION table 1, overall accuracy on RAF-DB: 100, 400, 2000, 4000 labels by Ada-CM's counts.
_LION = """
Vanilla         52.43+-2.24 67.75+-0.95 78.91+-0.43 81.90+-0.48
Pseudo-Label    54.96+-4.24 69.99+-1.81 79.18+-0.27 82.88+-0.49
MixMatch        54.57+-4.16 73.14+-1.40 79.63+-0.91 83.57+-0.49
UDA             58.15+-1.54 72.39+-1.64 81.16+-0.54 83.56+-0.82
ReMixMatch      58.83+-2.34 73.34+-1.82 79.66+-0.66 83.51+-0.18
MarginMix       58.91+-1.78 73.31+-1.64 80.22+-0.76 83.47+-0.28
FixMatch        60.67+-2.25 73.36+-1.59 81.27+-0.27 83.31+-0.33
Ada-CM          62.36+-1.10 74.44+-1.53 82.05+-0.22 84.42+-0.49
LION            67.83+-0.64 76.43+-1.12 82.39+-0.13 84.81+-0.16
"""

# LION's ablation on RAF-DB with 100 labels, overall.
_LION_ABLATION = """
LION-none  58.21+-2.21
LION-LD    61.19+-1.23
LION-LD-NL 65.06+-0.21
LION-LD-NC 61.86+-0.32
LION       67.83+-0.64
"""

# ReMoP table 3, RAF-DB (2000,50) (2000,150) (500,50) (500,150): overall/balanced each.
_REMOP_RAFDB = """
Vanilla        84.04+-.56 70.13+-.73 80.97+-.30 61.41+-1.05 77.55+-.40 58.28+-1.15 73.08+-.39 48.52+-1.54
FixMatch       85.31+-.21 72.19+-.54 82.39+-.52 65.15+-1.19 80.99+-.33 64.46+-1.05 77.33+-.27 53.88+-1.13
FixMatch+ABC   85.93+-.33 73.85+-.11 83.25+-.52 68.40+-.94 82.63+-.03 68.07+-.76 78.90+-.53 58.78+-1.34
FixMatch+Adsh  86.15+-.54 74.19+-1.30 83.24+-.59 67.94+-1.33 82.55+-.16 68.22+-1.16 80.12+-.31 62.52+-.85
FixMatch+InPL  85.86+-.16 73.44+-.21 82.94+-.27 67.31+-.49 82.19+-.15 67.41+-.94 78.74+-.23 58.28+-1.63
FixMatch+CPE   85.40+-.24 78.21+-.23 83.80+-.65 73.02+-.23 80.66+-.43 70.61+-.01 78.25+-.35 62.90+-1.86
FixMatch+ReMoP 86.85+-.07 76.92+-.08 85.04+-.18 71.28+-.69 83.15+-.60 71.12+-.02 81.42+-.36 64.89+-2.84
"""

# ReMoP table 4, FERPlus (4000,150) (1000,150): overall/balanced each.
_REMOP_FERPLUS = """
Vanilla        82.79+-.32 60.14+-.73 77.13+-.33 49.44+-.79
FixMatch       84.70+-.30 63.62+-1.05 82.02+-.14 54.26+-.67
FixMatch+ABC   84.99+-.22 63.33+-.22 82.47+-.43 56.16+-.11
FixMatch+Adsh  84.89+-.01 63.31+-.87 81.95+-.22 56.47+-.65
FixMatch+InPL  84.41+-.32 63.00+-.92 81.58+-.09 55.21+-.69
FixMatch+CPE   83.19+-.63 64.25+-.60 79.86+-.23 56.88+-.48
FixMatch+ReMoP 85.81+-.17 65.01+-.96 83.03+-.46 57.14+-1.20
"""

# ReMoP table 1 (seed 1): RAF-DB (500,150) | FERPlus (1000,150), overall/balanced each.
_REMOP_ABLATION = """
Vanilla          73.50 49.10 76.75 49.51
Vanilla+H        74.22 50.84 77.74 52.87
Vanilla+H+Lreg   75.13 52.16 78.08 53.24
FixMatch         77.71 55.48 82.21 54.62
FixMatch+H       79.86 58.52 82.65 57.16
FixMatch+H+Lreg  81.29 60.93 83.67 58.77
"""

# ReMoP table 2: RAF-DB (2000,50) (500,50), overall/balanced each.
_REMOP_ADACM = """
Ada-CM       85.75+-.29 73.12+-.39 81.39+-.36 65.80+-1.49
Ada-CM+ReMoP 86.15+-.36 76.01+-.69 81.63+-.47 68.80+-.27
"""

# SSFER (ViT-B), overall: RAF-DB 5,10,25 % | FERPlus 5,10,25 % | AffectNet7 1,5,10 % | AffectNet8 1,5,10 %.
_SSFER_SPLITS = (
    *((name, f"percent-{p}") for name in ("rafdb", "ferplus") for p in (5, 10, 25)),
    *((name, f"percent-{p}") for name in ("affectnet7", "affectnet8") for p in (1, 5, 10)),
)
_SSFER = """
Vanilla   79.88 83.37 86.86 80.50 82.60 84.77 58.05 63.11 64.39 53.10 59.52 60.95
SSFER     80.96 85.07 88.23 81.77 83.95 85.82 59.08 64.02 65.37 53.85 60.17 61.65
"""

_IMBALANCED = tuple(("rafdb", f"imbalance-{n}-{g}") for n, g in ((2000, 50), (2000, 150), (500, 50), (500, 150)))
_NUMBER = re.compile(r"^(\d+\.\d+)(?:\+-(\d*\.\d+))?$")
Columns = tuple[tuple[str, str, Literal["balanced", "overall"]], ...]


def _both(*splits: tuple[str, str]) -> Columns:
    return tuple((dataset, split, metric) for dataset, split in splits for metric in ("overall", "balanced"))


_TABLES: tuple[tuple[str, str, Columns], ...] = (
    ("LEAF, table 1", _LEAF, tuple((d, s, "balanced") for d, s in _LEAF_SPLITS)),
    (
        "LEAF, ablation",
        _LEAF_ABLATION,
        tuple(("affectnet7", f"leaf-{n}", m) for m in ("overall", "balanced") for n in (500, 1000)),
    ),
    ("LION, table 1", _LION, tuple(("rafdb", f"adacm-{n}", "overall") for n in (100, 400, 2000, 4000))),
    ("LION, ablation", _LION_ABLATION, (("rafdb", "adacm-100", "overall"),)),
    ("ReMoP, table 3", _REMOP_RAFDB, _both(*_IMBALANCED)),
    ("ReMoP, table 4", _REMOP_FERPLUS, _both(("ferplus", "imbalance-4000-150"), ("ferplus", "imbalance-1000-150"))),
    ("ReMoP, table 1", _REMOP_ABLATION, _both(("rafdb", "imbalance-500-150"), ("ferplus", "imbalance-1000-150"))),
    ("ReMoP, table 2", _REMOP_ADACM, _both(_IMBALANCED[0], _IMBALANCED[2])),
    ("SSFER, components", _SSFER, tuple((d, s, "overall") for d, s in _SSFER_SPLITS)),
)


def _parse() -> tuple[Published, ...]:
    found = []
    for source, text, columns in _TABLES:
        for line in text.strip().splitlines():
            method, *numbers = line.split()
            for number, (dataset, split, metric) in zip(numbers, columns, strict=True):
                match = _NUMBER.match(number)
                assert match is not None, number
                std = float(match[2]) if match[2] else None
                found.append(Published(source, dataset, split, method, metric, float(match[1]), std))
    return tuple(found)


PUBLISHED = _parse()

# How the papers call our presets; a method entry's `published` overrides it.
NAMES = {
    "supervised": "Vanilla",
    "pi": "Pi-Model",
    "pseudo_label": "Pseudo-Label",
    "mean_teacher": "MeanTeacher",
    "fixmatch": "FixMatch",
    "flexmatch": "FlexMatch",
    "adacm": "Ada-CM",
    "freematch": "FreeMatch",
    "softmatch": "SoftMatch",
    "adamatch": "AdaMatch",
    "lion": "LION",
    "lion_paper": "LION",
    "lion_official": "LION",
    "leaf": "LEAF",
    "leaf_official": "LEAF",
    "remop+fixmatch": "FixMatch+ReMoP",
    "remop_official": "FixMatch+ReMoP",
    "remop+adacm": "Ada-CM+ReMoP",
}


def published(dataset: str, split: str, method: str, metric: str) -> list[Published]:
    """Return the papers' numbers for a data set kind, a split's name and a paper's method name, in table order."""
    wanted = (dataset, split, method, metric)
    return [p for p in PUBLISHED if (p.dataset, p.split, p.method, p.metric) == wanted]
