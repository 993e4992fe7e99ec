"""The annotation loop's method: three papers in one network, each still doing its own part."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from learner.eaf import FeatureEaf, LogitEaf
from learner.methods import build
from learner.methods.lion import LionOptions, lion
from learner.round import run_round
from learner.scorers import MixtureScorer
from tests.learner.blobs import FEATURE_DIM, Session, make_blobs
from tests.learner.runs import first_labels, small_config, write_run


def test_it_is_lion_with_experts_and_centers() -> None:
    recipe, host = build("loop", 7, 64), lion(LionOptions(), 7, 64)
    assert [type(a) for a in recipe.feature_adapters] == [FeatureEaf]
    assert [type(a) for a in recipe.logit_adapters] == [LogitEaf]
    assert isinstance(recipe.scorer, MixtureScorer)
    assert list(recipe.parts) == ["centers"]
    assert [k.name for k in recipe.keepers] == [*(k.name for k in host.keepers), "centers"]
    weights = {term.name: weight for term, weight in recipe.losses}
    assert {term.name: weight for term, weight in host.losses}.items() <= weights.items()
    assert weights.keys() - {term.name for term, _ in host.losses} == {"center", "center_regularizer", "gate_balance"}
    assert recipe.views == host.views, "one weak and one strong view, as in LION"
    assert recipe.feature_norm == "l2"


@pytest.mark.parametrize("name", ["eaf+remop+lion", "lion+remop+eaf"])
def test_the_name_spelled_out_is_the_same_method(name: str) -> None:
    torch.manual_seed(0)
    one = Session(build("loop", 4, FEATURE_DIM), make_blobs())
    torch.manual_seed(0)
    two = Session(build(name, 4, FEATURE_DIM), make_blobs())
    assert one.run(6) == two.run(6)


def test_every_paper_can_be_switched_off() -> None:
    options: dict[str, Any] = {
        "remop": {"beta": 1.0, "lambda_c": 0.0, "lambda_reg": 0.0},
        "eaf": {"instance": "none", "experts": {"noise": False, "balance": "off"}, "balance_weight": 0.0},
    }
    torch.manual_seed(0)
    off = Session(build("loop", 4, FEATURE_DIM, options), make_blobs())
    host = Session(build("lion", 4, FEATURE_DIM), make_blobs())
    host.network.load_state_dict(off.network.state_dict(), strict=False)
    out, plain = (s.reading() for s in (off, host))
    torch.testing.assert_close(out.p, plain.p, msg="experts start as the identity, beta 1 is the head's reading")


def test_a_round_reports_what_each_paper_found(tmp_path: Path) -> None:
    out = run_round(write_run(tmp_path / "run", small_config(method="loop", steps=6), first_labels()))
    columns = set(pq.read_table(out / "signals.parquet").column_names)
    lion_columns = {"lion_ambiguous_margin", "lion_candidates", "lion_not_set", "lion_suggest", "lion_reliable"}
    leaf_columns = {"leaf_m", "leaf_set", "leaf_gate_entropy_sem", "leaf_gate_entropy_inst"}
    remop_columns = {"remop_linear", "remop_feature", "remop_disagree", "remop_js", "remop_cos", "remop_own_z"}
    assert lion_columns | leaf_columns | remop_columns <= columns
