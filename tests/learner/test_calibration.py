"""Out-of-fold calibration: what is fitted, that it is out of fold, and what a recipe does with it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from learner import snapshot
from learner.bank import FeatureBank, adapt
from learner.bank_build import Plan
from learner.bank_build import build as make_bank
from learner.calibration import (
    FOLDS,
    Calibrated,
    Temperature,
    enough,
    fit_delta,
    fit_temperature,
    folds_of,
    foretold,
    match_confidence,
    out_of_fold_cosines,
    out_of_fold_logits,
    tempered,
)
from learner.data import PixelCache, write_shards
from learner.encoders import HogEncoder
from learner.evaluate import Evaluation, evaluate
from learner.keepers.calibrator import Calibrator
from learner.methods import build, preset_of
from learner.parts import Clock, NetOut, Survey
from learner.predict import Predictor
from learner.scorers import LinearSoftmax
from learner.trainer import Trainer, TrainingData
from tests.learner.runs import CLASSES, SIZE, patterns, small_config, view_of
from tests.learner.steps import survey_of

ALL, POOL = 900, np.arange(500)


def clouds(num: int, num_classes: int = 4, dim: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds: nobody can be sure about them."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(num) % num_classes
    centers = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    return 0.45 * centers[y] + torch.randn(num, dim, generator=draw), y


def surveyed(x: Tensor, y: Tensor, pool: Tensor, pool_p: Tensor, raw: Tensor | None = None) -> Survey:
    """Labeled features, and what a recipe says about a pool."""
    return survey_of(pool, x, torch.full((len(y), 4), 0.25), y, pool_p=pool_p, raw=raw)


def test_a_row_stays_in_its_fold_and_folds_are_even() -> None:
    rows = torch.arange(4000)
    fold = folds_of(rows)
    assert torch.equal(folds_of(rows[50:90]), fold[50:90])
    assert torch.bincount(fold, minlength=FOLDS).min() > 900


def test_the_temperature_is_the_one_of_least_cross_entropy() -> None:
    z, y = clouds(300)
    z = 3 * z[:, :4]
    for scale in (0.3, 1.0, 5.0):
        found = fit_temperature(z * scale, y)
        best = minimize_scalar(
            lambda t, s=scale: float(F.cross_entropy((z * s).double() / t, y)), bounds=(0.05, 20), method="bounded"
        ).x
        assert found == pytest.approx(best, rel=1e-2)
    hidden = torch.cat([z, torch.full((300, 1), -torch.inf)], dim=1)
    assert fit_temperature(hidden, y) == pytest.approx(fit_temperature(z, y), rel=1e-3)
    assert fit_temperature(hidden, torch.full((300,), 4)) == 1.0  # nothing to learn from


def test_twins_have_not_seen_the_samples_that_they_read() -> None:
    x, y = clouds(120)
    fold = folds_of(torch.arange(120))
    before = out_of_fold_logits(x, y, fold, 4, 0.2)
    lie = torch.where(fold == 1, (y + 1) % 4, y)
    after = out_of_fold_logits(x, lie, fold, 4, 0.2)
    changed = (before - after).abs().amax(dim=1) > 1e-3
    assert changed[fold != 1].all()
    assert torch.allclose(before[fold == 1], after[fold == 1], atol=1e-5)
    cosines = out_of_fold_cosines(F.normalize(x, dim=1), y, fold, 4)
    assert torch.allclose(cosines[fold == 1], out_of_fold_cosines(F.normalize(x, dim=1), lie, fold, 4)[fold == 1])


def test_twins_stop_where_they_are_told_to() -> None:
    x, y = clouds(200)
    fold = folds_of(torch.arange(200))
    fits = (1.2, 0.9, 0.3, 0.05)
    temperature = [fit_temperature(out_of_fold_logits(x, y, fold, 4, fit), y) for fit in fits]
    assert temperature == sorted(temperature)
    assert temperature[0] < 1 < temperature[-1]
    assert out_of_fold_logits(x, y, fold, 4, 2.0).abs().max() == 0  # as good as knowing nothing


@pytest.mark.parametrize("spread", [1.0, 0.05])  # of the dimensions: narrow ones are learned late
def test_twins_foretell_as_well_as_the_best_regularised_head(spread: float) -> None:
    x, y = clouds(240, seed=4)
    x = x * torch.logspace(0, float(np.log10(spread)), 20)
    fold = folds_of(torch.arange(240))
    log_p = foretold(x, y, fold, 4)
    assert torch.allclose(log_p.exp().sum(dim=1), torch.ones(240), atol=1e-5)
    losses, rights = [], []
    for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        p = np.empty((240, 4))
        for f in range(FOLDS):
            model = LogisticRegression(C=strength, max_iter=2000).fit(x[fold != f].numpy(), y[fold != f].numpy())
            p[(fold == f).numpy()] = model.predict_proba(x[fold == f].numpy())
        losses.append(-np.log(p[np.arange(240), y.numpy()]).mean())
        rights.append((p.argmax(axis=1) == y.numpy()).mean())
    assert float(F.nll_loss(log_p, y)) < min(losses) + 0.03
    assert float((log_p.argmax(dim=1) == y).float().mean()) > rights[int(np.argmin(losses))] - 0.04


def test_the_mean_confidence_meets_the_share_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        z = rng.normal(0, rng.uniform(0.5, 8), (50, 5))
        share = rng.uniform(0.25, 0.9)
        found = match_confidence(torch.from_numpy(z), share)
        grid = np.exp(np.linspace(0, np.log(20), 2000))
        e = np.exp((z - z.max(axis=1, keepdims=True))[None] / grid[:, None, None])
        gap = (e.max(axis=2) / e.sum(axis=2)).mean(axis=1) - share
        wanted = 1.0 if gap[0] <= 0 else 20.0 if gap[-1] >= 0 else grid[np.abs(gap).argmin()]
        assert found == pytest.approx(wanted, rel=3e-3)
    assert match_confidence(torch.log_softmax(torch.from_numpy(z), dim=1), share) == pytest.approx(found, rel=1e-3)


def test_cosines_by_hand() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    found = out_of_fold_cosines(directions, torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 1, 2]), 2)
    wanted = torch.tensor([[0.8944272, 0.0], [0.0, -torch.inf], [0.6, -torch.inf], [0.8944272, 0.0]])
    assert torch.allclose(found[[0, 1, 2]], wanted[[0, 1, 2]], atol=1e-6)


@pytest.mark.parametrize(("rate", "wanted"), [(0.05, 0.02), (0.3, 0.04), (0.5, 0.05), (1.0, 0.05)])
def test_delta_lets_in_no_more_true_classes_than_allowed(rate: float, wanted: float) -> None:
    p_true = torch.tensor([0.02, 0.03, 0.04, *np.linspace(0.04, 0.9, 7).tolist()])
    delta = fit_delta(p_true, 0.05, rate)
    assert delta == pytest.approx(wanted, rel=1e-4)
    assert (p_true <= delta).float().mean() <= rate


def test_tempered_probabilities_are_softmax_of_divided_logits() -> None:
    z = 5 * torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for temperature in (0.5, 1.0, 3.0):
        found = tempered(torch.softmax(z, dim=1), temperature).numpy()
        e = np.exp(z.numpy() / temperature)
        np.testing.assert_allclose(found, e / e.sum(axis=1, keepdims=True), rtol=1e-6)
    extreme = tempered(torch.softmax(torch.tensor([[1e4, -1e4, 0.0]]), dim=1), 2.0)
    assert torch.isfinite(extreme).all()
    assert extreme[0, 0] == 1


def test_a_calibrated_scorer_reads_the_temperature_that_the_network_carries() -> None:
    part = Temperature()
    part.value.fill_(2.0)
    aux: dict[str, Tensor] = {}
    part(torch.zeros(3, 5), aux)
    z = torch.randn(3, 4)
    scores = Calibrated(LinearSoftmax())(NetOut(torch.zeros(3, 5), torch.zeros(3, 5), z, aux))
    assert torch.allclose(scores.p, torch.softmax(z / 2, dim=1), atol=1e-6)
    assert torch.equal(scores.hard, z.argmax(dim=1))
    assert "value" in part.state_dict()
    assert not list(part.parameters())


def overfit(x: Tensor, y: Tensor) -> torch.nn.Linear:
    head = torch.nn.Linear(x.shape[1], 4)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
    return head


def calibrator(name: str = "fixmatch+calibrated", **options: Any) -> Calibrator:
    recipe = build(name, 4, 20, {"feature_norm": "none", **options})
    return next(k for k in recipe.keepers if isinstance(k, Calibrator))


def test_an_overfitted_head_becomes_honest_about_new_samples() -> None:
    x, y = clouds(240, seed=1)
    new_x, new_y = clouds(2000, seed=2)
    keeper, head = calibrator("lion+calibrated"), overfit(x, y)
    new_z = head(new_x).detach()
    keeper.survey(surveyed(x, y, new_x, torch.softmax(new_z, dim=1)))
    found = float(keeper.temperature.value)
    assert fit_temperature(new_z, new_y) > 1.5
    assert F.cross_entropy(new_z / found, new_y) < F.cross_entropy(new_z, new_y) - 0.1
    sure, right = torch.softmax(new_z / found, dim=1).max(dim=1)
    assert float(sure.mean()) == pytest.approx(float((right == new_y).float().mean()), abs=0.08)
    # The reading under the temperature in force leads to the same fit.
    keeper.survey(surveyed(x, y, new_x, torch.softmax(new_z / found, dim=1)))
    assert float(keeper.temperature.value) == pytest.approx(found, rel=1e-3)
    assert keeper.doubts is not None
    assert 0.01 < keeper.doubts.temperature <= 1


def test_the_scale_of_a_scorer_does_not_matter() -> None:
    x, y = clouds(240, seed=1)
    new_x, _ = clouds(500, seed=2)
    z = 2 * overfit(x, y)(new_x).detach()
    honest = []
    for scale in (0.5, 1.0, 2.0):  # a mixture may add cosines over any temperature
        keeper = calibrator()
        keeper.survey(surveyed(x, y, new_x, torch.softmax(scale * z, dim=1)))
        honest.append(float(keeper.temperature.value) / scale)
    assert honest == pytest.approx([honest[0]] * 3, rel=1e-3)


def test_adapted_features_that_have_seen_the_labels_do_not_count() -> None:
    x, y = clouds(240, seed=1)
    new_x, _ = clouds(500, seed=2)
    p = torch.softmax(overfit(x, y)(new_x).detach(), dim=1)
    adapted = F.one_hot(y, 20).float()  # what experts can make of labeled images
    plain, with_experts = calibrator("lion+calibrated"), calibrator("lion+calibrated")
    plain.survey(surveyed(x, y, new_x, p))
    with_experts.survey(surveyed(adapted, y, new_x, p, raw=x))
    assert float(plain.temperature.value) > 1.3
    assert float(with_experts.temperature.value) == float(plain.temperature.value)
    assert torch.equal(with_experts.state_dict()["fitted"], plain.state_dict()["fitted"])


def test_answered_images_of_the_pool_do_not_count() -> None:
    x, y = clouds(240, seed=1)
    new_x, _ = clouds(300, seed=2)
    head = overfit(x, y)
    alone, together, answered = calibrator(), calibrator(), calibrator()
    alone.survey(surveyed(x, y, new_x, torch.softmax(head(new_x).detach(), dim=1)))
    pool = torch.cat([x, new_x])
    survey = surveyed(x, y, pool, torch.softmax(head(pool).detach(), dim=1))
    together.survey(replace(survey, unanswered=torch.arange(540) >= 240))
    assert float(together.temperature.value) == pytest.approx(float(alone.temperature.value), rel=1e-3)
    answered.survey(replace(survey, unanswered=torch.arange(540) < 10))
    assert float(answered.temperature.value) == 1  # too few to tell


def test_an_unsure_recipe_is_never_made_surer() -> None:
    x, y = clouds(200, seed=1)
    keeper = calibrator()
    keeper.survey(surveyed(x, y, x, torch.full((200, 4), 0.24).scatter(1, y[:, None], 0.28)))
    assert float(keeper.temperature.value) == 1


def test_the_complementary_bank_gets_a_delta_that_bounds_its_errors() -> None:
    x, y = clouds(400, seed=3)
    keeper = calibrator("lion+calibrated", calibrated={"error_rate": 0.01})
    keeper.survey(surveyed(x, y, x, torch.full((400, 4), 0.25)))
    assert keeper.bank is not None
    assert 0 < keeper.bank.delta < keeper.bank.options.delta
    other = calibrator("lion+calibrated")
    other.load_state_dict(keeper.state_dict())
    assert other.bank is not None
    assert other.bank.delta == keeper.bank.delta
    assert other.doubts is not None
    assert other.doubts.temperature == keeper.doubts.temperature  # type: ignore[union-attr]


def test_too_few_labels_calibrate_nothing() -> None:
    x, y = clouds(20)
    keeper = calibrator()
    keeper.survey(surveyed(x, y, torch.randn(50, 20), torch.softmax(10 * torch.randn(50, 4), dim=1)))
    assert float(keeper.temperature.value) == 1
    assert not enough(y, 4)
    assert enough(torch.arange(24), 8)
    assert not enough(torch.arange(24), 9)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> FeatureBank:
    """Patterns under so much noise that half of them are read rightly at best."""
    folder = tmp_path_factory.mktemp("noisy")
    noise = np.random.default_rng(0).normal(0, 70, (ALL, SIZE, SIZE, 3))
    write_shards(folder / "cache", (patterns(ALL, seed=3)[0] + noise).clip(0, 255).astype(np.uint8))
    return make_bank(folder / "hog", HogEncoder(), PixelCache(folder / "cache", SIZE), Plan(POOL, np.arange(ALL)))


def trained(bank: FeatureBank, method: str, seed: int) -> Trainer:
    """A round of a recipe on 240 labels."""
    truth = patterns(ALL, seed=3)[1]
    options = {"calibrated": {"every": 20}} if method.endswith("+calibrated") else {}
    short = {"steps": 80, "labeled_batch": 32, "unlabeled_batch": 32, "ramp_scope": "run", "optimizer": {"lr": 0.01}}
    config = adapt(small_config(method=method, options=options, seed=seed, **short)).replace(method=method)
    labeled = np.sort(np.random.default_rng(seed).choice(POOL, 240, replace=False))
    made = snapshot.assemble(config, len(CLASSES), feature_dim=bank.dim)
    data = TrainingData(bank, view_of(labeled.tolist(), truth[labeled].tolist()), np.setdiff1d(POOL, labeled))
    trainer = Trainer(config, made.recipe, made.network, data)
    snapshot.begin(trainer)
    for _ in trainer.steps():
        pass
    return trainer


def judged(trainer: Trainer) -> Evaluation:
    """What it says about images that it has never seen."""
    held, truth = np.arange(len(POOL), ALL), patterns(ALL, seed=3)[1]
    predictor = Predictor(trainer.ema.network, trainer.recipe, trainer.source, torch.device("cpu"), 512, 0)
    return evaluate(predictor.predict(held).probs, truth[held], CLASSES)


def test_a_recipe_of_all_three_papers_becomes_honest(bank: FeatureBank) -> None:
    """Experts that have seen the labels, a mixture with its own scale, LION's masks: measured .21-.23 and .06-.10."""
    before = [judged(trained(bank, "loop", seed)) for seed in range(3)]
    rounds = [trained(bank, "loop+calibrated", seed) for seed in range(3)]
    after = [judged(trainer) for trainer in rounds]
    assert min(e.ece for e in before) > 0.17
    assert np.mean([e.ece for e in after]) < 0.12
    for raw, calibrated in zip(before, after, strict=True):
        assert calibrated.ece < 0.6 * raw.ece
        assert calibrated.log_loss < raw.log_loss - 0.1
        assert calibrated.overall > raw.overall - 0.06
    survey, rows = rounds[0].survey(), rounds[0].data.view.rows.numpy()
    assert survey.unanswered.sum() == len(survey.pool) - len(rows)  # the pool is small: all of it was read
    assert torch.equal(survey.raw, torch.from_numpy(bank.gather(rows, np.zeros(len(rows), np.int64))).float())
    assert not torch.allclose(F.normalize(survey.raw, dim=1), survey.features, atol=1e-3)  # the experts' work
    mine = survey.pool_p[survey.unanswered].max(dim=1).values.mean()
    assert float(mine) == pytest.approx(after[0].overall, abs=0.1)


def test_surveys_are_asked_for_at_the_start_now_and_then_and_at_the_end() -> None:
    recipe = build("supervised+calibrated", 4, 20, {"calibrated": {"every": 50}})
    asked = [step for step in range(200) if recipe.keepers[-1].wants_survey(Clock(step + 7, 0, step, 200))]
    assert asked == [0, 50, 100, 150, 199]


def test_plug_ins_may_follow_a_preset() -> None:
    assert preset_of("lion_paper+calibrated").options == preset_of("lion_paper").options
    assert preset_of("lion_paper+calibrated").spec == "lion+calibrated"
    recipe = build("lion_paper+calibrated", 4, 20)
    assert recipe.name == "lion_paper+calibrated"
    with pytest.raises(ValueError, match="each plug-in once"):
        build("lion+calibrated+calibrated", 4, 20)
    with pytest.raises(ValueError, match=r"calibrated\.every"):
        build("lion+calibrated", 4, 20, {"calibrated": {"every": 0}})
