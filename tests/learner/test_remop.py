"""ReMoP on any host: what the plug-in changes, what it leaves as it is, how its mixture reads and what it reports."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from learner import snapshot
from learner.center_signals import CenterReader, jensen_shannon
from learner.center_terms import CenterLoss
from learner.centers import COSINE, DISTANCE, DOT, PRESENT
from learner.errors import CheckpointError
from learner.losses import MixtureMode, etf_regularizer, mixture_logits
from learner.methods import HOSTS, build
from learner.models import read_weights, run
from learner.parts import NetOut, Recipe
from learner.round import run_round
from learner.scorers import LinearSoftmax, MixtureScorer
from tests.learner.blobs import FEATURE_DIM, Session, make_blobs, make_network
from tests.learner.runs import first_labels, small_config, write_run
from tests.learner.test_round import next_trainer, tensors_of

H = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])


def out_of(z: Any, f: Any, present: Any = (True, True, True), centers: Tensor = H) -> NetOut:
    """A network's output with centers at H, seen from the origin."""
    logits, features = torch.tensor(z), torch.tensor(f)
    cosines = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(centers, dim=1).T
    here = torch.tensor(present).expand(len(logits), -1)
    aux = {
        COSINE: cosines * here,
        DOT: features @ centers.T,
        PRESENT: here,
        DISTANCE: torch.cdist(features, centers),
    }
    return NetOut(features, features, logits, aux)


class TestScorer:
    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("official", [0.495463, 0.495463, 0.009075]),
            ("prob", [0.392222, 0.562762, 0.045016]),
            ("logit_cos", [0.377411, 0.622245, 0.000344]),
        ],
    )
    def test_reads_the_worked_example(self, mode: MixtureMode, expected: list[float]) -> None:
        scores = MixtureScorer(mode=mode)(out_of([[2.0, 1, 0]], [[3.0, 4]]))
        assert scores.p[0].tolist() == pytest.approx(expected, abs=5e-7)
        assert int(scores.hard) == (0 if mode == "official" else 1)

    def test_literal_has_the_mixtures_label_and_the_heads_confidence(self) -> None:
        out = out_of([[2.0, 1, 0], [0.1, 0, 0]], [[3.0, 4], [-1.0, 0]])
        scores = MixtureScorer(mode="literal", confidence="linear")(out)
        assert scores.hard.tolist() == [0, 2], ".63 beats .52; the third center pulls the undecided one over"
        assert scores.conf.tolist() == pytest.approx(out.z.softmax(dim=1).max(dim=1).values.tolist())
        torch.testing.assert_close(scores.p.sum(dim=1), torch.ones(2))
        assert scores.p.argmax(dim=1).tolist() == [0, 2]

    @pytest.mark.parametrize("mode", ["logit_cos", "prob", "official", "literal"])
    def test_is_the_pure_function_read_through_the_network(self, mode: MixtureMode) -> None:
        recipe = build("remop+fixmatch", 4, FEATURE_DIM, {"remop": {"mix": mode, "beta": 0.3, "temperature": 0.2}})
        centers = recipe.parts["centers"]
        centers.place(torch.tensor([True, True, False, True]), torch.randn(4, FEATURE_DIM))  # type: ignore[operator]
        with torch.no_grad():
            out = run(make_network(4, recipe), torch.randn(6, 2))
            state = centers.state_dict()
            mean = None if mode == "official" else state["mean"]
            mixed = mixture_logits(out.z, out.f, state["vectors"], 0.3, 0.2, mode, mean, state["is_set"])
        scores = recipe.scorer(out)
        if mode == "literal":
            assert torch.equal(scores.hard, mixed.argmax(dim=1))
        else:
            torch.testing.assert_close(scores.p, mixed.softmax(dim=1))

    def test_without_any_center_the_head_reads_alone(self) -> None:
        out = out_of([[2.0, 1, 0]], [[3.0, 4]], (False, False, False))
        torch.testing.assert_close(MixtureScorer()(out).p, LinearSoftmax()(out).p)

    def test_beta_of_one_is_the_heads_reading_to_the_bit(self) -> None:
        out = out_of([[2.0, 1, 0]], [[3.0, 4]])
        for mode in ("logit_cos", "prob", "official", "literal"):
            assert torch.equal(MixtureScorer(1.0, mode=mode)(out).p, LinearSoftmax()(out).p)  # type: ignore[arg-type]


class TestReader:
    def columns(self, **changes: Any) -> dict[str, Tensor]:
        out = out_of([[2.0, 1, 0], [5.0, 0, 0]], [[3.0, 4], [2.0, 0]], **changes)
        scores = MixtureScorer()(out)
        return CenterReader()(out, scores, None)

    def test_two_readings_and_their_disagreement(self) -> None:
        found = self.columns()
        assert found["remop_linear"].tolist() == [0, 0]
        assert found["remop_feature"].tolist() == [1, 0]
        assert found["remop_mixed"].tolist() == [1, 0]
        assert found["remop_disagree"].tolist() == [True, False]
        assert found["remop_center_margin"].tolist() == pytest.approx([0.2, 1.0])
        assert found["remop_cos"][0].tolist() == pytest.approx([0.6, 0.8, -0.6])
        assert found["remop_dist"][1].tolist() == pytest.approx([1, 5**0.5, 3])
        p, q = torch.tensor([[2.0, 1, 0]]).softmax(dim=1), torch.tensor([[6.0, 8, -6]]).softmax(dim=1)
        assert float(found["remop_js"][0]) == pytest.approx(float(jensen_shannon(p, q)), abs=1e-6)
        assert found["remop_js"][0] > found["remop_js"][1]

    def test_missing_centers_are_unknown_and_never_nearest(self) -> None:
        found = self.columns(present=(True, False, True))
        assert found["remop_feature"].tolist() == [0, 0]
        assert found["remop_cos"][:, 1].isnan().all()
        assert found["remop_dist"][:, 1].isnan().all()
        assert found["remop_center_margin"].tolist() == pytest.approx([1.2, 2.0])
        one = self.columns(present=(False, True, False))
        assert one["remop_center_margin"].isnan().all()
        none = self.columns(present=(False, False, False))
        assert none["remop_feature"].tolist() == [-1, -1]
        assert not none["remop_disagree"].any()
        assert none["remop_js"].tolist() == [0, 0]

    def test_divergence_of_the_worked_example(self) -> None:
        p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.7, 0.1]])
        assert float(jensen_shannon(p, q)) == pytest.approx(0.212216, abs=1e-6)
        assert float(jensen_shannon(torch.eye(2)[:1], torch.eye(2)[1:])) == pytest.approx(1)


class TestPlugIn:
    @pytest.mark.parametrize("host", sorted(HOSTS))
    def test_any_host_trains_with_it_and_keeps_its_own_parts(self, host: str) -> None:
        plain, recipe = build(host, 4, FEATURE_DIM), build(f"remop+{host}", 4, FEATURE_DIM)
        assert [term.name for term, _ in recipe.losses] == [
            *(term.name for term, _ in plain.losses),
            "center",
            "center_regularizer",
        ]
        assert type(recipe.targeter) is type(plain.targeter)
        assert recipe.views == plain.views, "no further view of an image is made for the plug-in"
        assert torch.tensor(Session(recipe, make_blobs()).run(8)).isfinite().all()
        assert recipe.parts["centers"].is_set.all()  # type: ignore[operator, union-attr]

    @pytest.mark.parametrize("host", ["pi", "mean_teacher"])
    def test_hosts_without_a_threshold_draw_no_unlabeled_image_to_a_center(self, host: str) -> None:
        session = Session(build(f"remop+{host}", 4, FEATURE_DIM), make_blobs())
        session.run(2)
        ctx = session.last
        assert ctx is not None
        assert ctx.target is not None
        term = next(term for term, _ in session.recipe.losses if isinstance(term, CenterLoss))
        everyone = float(term(ctx).detach())
        assert everyone == pytest.approx(float(dataclasses.replace(term, unlabeled=False)(ctx).detach()))
        ctx.target.subset |= True
        assert everyone != pytest.approx(float(term(ctx).detach()))

    @pytest.mark.parametrize("method", ["remop+fixmatch", "remop+flexmatch", "remop+adacm", "lion+remop"])
    def test_beta_of_one_and_no_losses_is_the_host_bit_for_bit(self, method: str) -> None:
        """The keeper still works and the centers are still there; the host must not notice."""
        host = next(word for word in method.split("+") if word != "remop")
        off = {"remop": {"beta": 1.0, "lambda_c": 0.0, "lambda_reg": 0.0}}
        plain = Session(build(host, 4, FEATURE_DIM, {"feature_norm": "none"} if "match" in host else {}), make_blobs())
        mixed = Session(build(method, 4, FEATURE_DIM, off), make_blobs())
        assert plain.run(25) == mixed.run(25)
        mine = mixed.network.state_dict()
        assert all(torch.equal(value, mine[name]) for name, value in plain.network.state_dict().items())
        assert mixed.network.parts["centers"].is_set.all()  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("method", "options", "reason"),
        [
            ("remop+adacm", {"remop": {"mix": "official"}}, "Ada-CM needs a cosine mixture"),
            ("remop+fixmatch", {"remop": {"mix": "literal", "confidence": "mixed"}}, "no distribution"),
            ("remop+fixmatch", {"remop": {"centers": {"update": "ema"}, "lambda_reg": 0.1}}, "take no gradient"),
            ("remop+fixmatch", {"remop": {"lambda_reg": 0.0, "nc2_norm": True}}, "has weight 0"),
            ("remop+fixmatch", {"remop": {"mix": "official", "centers": {"center": True}}}, "has none"),
            ("remop+fixmatch", {"remop": {"beta": 1.1}}, "remop.beta"),
            ("remop+fixmatch", {"remop": {"alpha": 1}}, "remop.alpha"),
            ("remop+remop+fixmatch", {}, "each plug-in once"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, method: str, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            build(method, 7, 512, options)

    def test_dot_products_of_unit_features_and_too_few_dimensions_warn(self) -> None:
        with pytest.warns(UserWarning, match="plain dot products"):
            build("lion+remop", 7, 512, {"remop": {"mix": "official"}})
        with pytest.warns(UserWarning, match="no simplex ETF"):
            build("remop+fixmatch", 7, 5)

    def test_official_preset_has_the_documented_settings(self) -> None:
        recipe = build("remop_official", 7, 512)
        weights = {term.name: weight for term, weight in recipe.losses}
        assert weights == {"supervised": 1.0, "consistency": 0.2, "center": 1e-4, "center_regularizer": 0.1}
        assert recipe.scorer == MixtureScorer(0.5, 0.1, "official", "mixed")
        assert (recipe.feature_norm, recipe.forward_mode, recipe.pseudo_source) == ("none", "separate", "student_train")
        centers: Any = recipe.parts["centers"]
        assert centers.is_set.all()
        assert centers.lr_scale == 1.0

    def test_paper_preset_leaves_features_as_they_are(self) -> None:
        assert build("remop+fixmatch", 7, 512).feature_norm == "none"
        assert build("remop+adacm", 7, 512).feature_norm == "l2"

    def test_margins_of_adacm_are_read_from_mixed_scores(self, tmp_path: Path) -> None:
        """Thresholds of labeled images and confidences of unlabeled ones must be on one scale."""
        config = small_config(method="remop+adacm", options={"margins": {"update_steps": 2}}, steps=3)
        trainer = next_trainer(write_run(tmp_path / "run", config, first_labels()))
        assert list(trainer.steps()) == [1, 2, 3]
        survey = trainer.survey()
        with torch.no_grad():
            out = run(trainer.ema.network, trainer.source.clean(survey.rows.numpy()))
        assert torch.equal(survey.p, trainer.recipe.scorer(out).p)
        assert not torch.allclose(survey.p, LinearSoftmax()(out).p, atol=1e-3)

    def test_ablations_leave_terms_out(self) -> None:
        names = [t.name for t, _ in build("remop+fixmatch", 7, 512, {"remop": {"lambda_reg": 0.0}}).losses]
        assert names == ["supervised", "consistency", "center"]
        averaged = build("remop+fixmatch", 7, 512, {"remop": {"centers": {"update": "ema"}}})
        assert [t.name for t, _ in averaged.losses] == ["supervised", "consistency", "center"]


class TestLearning:
    """On points of a plane, so that what the equations promise can be seen."""

    def trained(self, seed: int, **options: Any) -> tuple[Recipe, float, float]:
        blobs = make_blobs(spread=0.6, seed=2)
        recipe = build("remop+fixmatch", 4, FEATURE_DIM, {"remop": options})
        session = Session(recipe, blobs, seed)
        own = list(recipe.parts["centers"].parameters())
        rest = [p for n, p in session.network.named_parameters() if not n.startswith("parts.")]
        session.optimizer = torch.optim.Adam([{"params": rest}, *({"params": [p], "lr": 0.05} for p in own)], lr=5e-3)
        session.run(120)
        session.network.eval()
        with torch.no_grad():
            out = run(session.network, blobs.x)
        nearest = out.aux[COSINE].argmax(dim=1)
        return recipe, float((nearest == blobs.y).float().mean()), float(out.aux[COSINE].max(dim=1).values.mean())

    @pytest.mark.parametrize("options", [{}, {"centers": {"update": "ema"}}])
    def test_centers_stay_with_their_features(self, options: dict[str, Any]) -> None:
        """With lambda_c on both sides of L_c the regularizer takes the centers away: .83 right, cosines below 0."""
        _, accuracy, cosine = self.trained(0, **options)
        assert accuracy > 0.95
        assert cosine > 0.9

    def test_the_regularizer_works_on_the_centers(self) -> None:
        reached = []
        for weight in (0.0, 100.0):
            centers: Any = self.trained(0, lambda_reg=weight)[0].parts["centers"]
            reached.append(float(etf_regularizer(centers.vectors.detach())))
        assert reached[1] < 0.05 < reached[0]


class TestSnapshot:
    """Regression: the public code saves no centers, so the mixture of its checkpoints cannot be read again."""

    @pytest.mark.parametrize("method", ["remop_official", "remop+adacm"])
    def test_logits_after_loading_are_equal_to_the_bit(self, tmp_path: Path, method: str) -> None:
        out = run_round(write_run(tmp_path / "run", small_config(method=method, steps=6), first_labels()))
        model = snapshot.load(out)
        weights = read_weights(out / "model.safetensors")
        assert torch.equal(weights["parts.centers.vectors"], model.network.parts["centers"].vectors)  # type: ignore[arg-type]
        x = torch.randn(5, 3, 24, 24)
        again = snapshot.load(out)
        with torch.no_grad():
            one, two = run(model.network.eval(), x), run(again.network.eval(), x)
        assert torch.equal(model.recipe.scorer(one).p, again.recipe.scorer(two).p)
        assert not torch.equal(model.recipe.scorer(one).p, LinearSoftmax()(one).p), "the centers must count"

    def test_a_snapshot_without_centers_is_refused(self, tmp_path: Path) -> None:
        out = run_round(write_run(tmp_path / "run", small_config(method="remop+fixmatch", steps=2), first_labels()))
        kept = {k: v for k, v in read_weights(out / "model.safetensors").items() if not k.startswith("parts.")}
        save_file(kept, out / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"parts\.centers"):
            snapshot.load(out)

    def test_columns_and_logs_reach_the_files(self, tmp_path: Path) -> None:
        out = run_round(write_run(tmp_path / "run", small_config(method="remop+fixmatch", steps=6), first_labels()))
        table = pq.read_table(out / "signals.parquet").to_pandas()
        labeled = table["row"] < 20
        assert table["remop_own_dist"][labeled].notna().all()
        assert table["remop_own_dist"][~labeled].isna().all()
        assert table["remop_own_z"][labeled].notna().all()
        own = [row["remop_dist"][row["row"] % 4] for _, row in table[labeled].iterrows()]
        np.testing.assert_allclose(table["remop_own_dist"][labeled], own, rtol=1e-6)
        wide = np.stack(table["remop_cos"].to_list())
        assert (np.argmax(wide, axis=1) == table["remop_feature"]).all()
        assert (table["remop_disagree"] == (table["remop_feature"] != table["remop_linear"])).all()
        assert (table["remop_mixed"] == table["pred"]).all()
        logs = json.loads((out / "metrics.json").read_text())["logs"]
        assert {"center", "center_regularizer", "centers/regularizer_at_start", "centers/drift/3"} <= logs.keys()

    def test_the_host_is_the_same_bit_for_bit_in_a_whole_round(self, tmp_path: Path) -> None:
        off = {"remop": {"beta": 1.0, "lambda_c": 0.0, "lambda_reg": 0.0}, "threshold": 0.3}
        plain = small_config(method="fixmatch", options={"feature_norm": "none", "threshold": 0.3}, steps=8)
        mixed = small_config(method="remop+fixmatch", options=off, steps=8)
        one, two = (
            tensors_of(run_round(write_run(tmp_path / name, config, first_labels())))
            for name, config in (("plain", plain), ("mixed", mixed))
        )
        assert all(torch.equal(value, two[name]) for name, value in one.items())
        assert "model/parts.centers.vectors" in two
