"""Out-of-fold calibration: what is fitted, that it is out of fold, and what a recipe does with it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from learner.calibration import (
    FOLDS,
    Calibrated,
    Temperature,
    enough,
    fit_delta,
    fit_temperature,
    folds_of,
    out_of_fold_cosines,
    out_of_fold_logits,
    tempered,
)
from learner.keepers.calibrator import Calibrator
from learner.methods import build, preset_of
from learner.parts import Clock, NetOut, Survey
from learner.scorers import LinearSoftmax


def clouds(num: int, num_classes: int = 4, dim: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clouds: nobody can be sure about them."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(num) % num_classes
    centers = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    return 0.45 * centers[y] + torch.randn(num, dim, generator=draw), y


def survey_of(features: torch.Tensor, y: torch.Tensor, p: torch.Tensor) -> Survey:
    return Survey(features, torch.arange(len(y)), features, p, y)


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


def test_twins_fit_as_tightly_as_they_are_asked_to() -> None:
    x, y = clouds(200)
    fold = folds_of(torch.arange(200))
    loss = [float(F.cross_entropy(out_of_fold_logits(x, y, fold, 4, fit), y)) for fit in (1.2, 0.9, 0.3, 0.05)]
    temperature = [fit_temperature(out_of_fold_logits(x, y, fold, 4, fit), y) for fit in (1.2, 0.9, 0.3, 0.05)]
    assert temperature == sorted(temperature)
    assert temperature[0] < 1 < temperature[-1]
    assert loss[-1] > loss[1]
    assert out_of_fold_logits(x, y, fold, 4, 2.0).abs().max() == 0  # as good as knowing nothing


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
    aux: dict[str, torch.Tensor] = {}
    part(torch.zeros(3, 5), aux)
    z = torch.randn(3, 4)
    scores = Calibrated(LinearSoftmax())(NetOut(torch.zeros(3, 5), torch.zeros(3, 5), z, aux))
    assert torch.allclose(scores.p, torch.softmax(z / 2, dim=1), atol=1e-6)
    assert torch.equal(scores.hard, z.argmax(dim=1))
    assert "value" in part.state_dict()
    assert not list(part.parameters())


def overfit(x: torch.Tensor, y: torch.Tensor) -> torch.nn.Linear:
    head = torch.nn.Linear(x.shape[1], 4)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
    return head


def test_an_overfitted_head_becomes_honest_about_new_samples() -> None:
    x, y = clouds(80, seed=1)
    new_x, new_y = clouds(2000, seed=2)
    recipe = build("lion+calibrated", 4, 20, {"feature_norm": "none"})
    keeper = next(k for k in recipe.keepers if isinstance(k, Calibrator))
    head = overfit(x, y)
    with torch.no_grad():
        p, new_z = torch.softmax(head(x), dim=1), head(new_x)
    keeper.survey(survey_of(x, y, p))
    found, best = float(keeper.temperature.value), fit_temperature(new_z, new_y)
    assert best > 1.5
    assert found == pytest.approx(best, rel=0.4)
    assert F.cross_entropy(new_z / found, new_y) < F.cross_entropy(new_z, new_y) - 0.1
    # The reading under the temperature in force leads to the same fit.
    keeper.survey(survey_of(x, y, tempered(p, found)))
    assert float(keeper.temperature.value) == pytest.approx(found, rel=0.02)
    assert 0.01 < keeper.doubts.temperature <= 1  # type: ignore[union-attr]


def test_an_unsure_head_is_never_made_surer() -> None:
    x, y = clouds(200, seed=1)
    recipe = build("fixmatch+calibrated", 4, 20, {"feature_norm": "none"})
    keeper = next(k for k in recipe.keepers if isinstance(k, Calibrator))
    logits = out_of_fold_logits(x, y, folds_of(torch.arange(200)), 4, 1.25)
    assert fit_temperature(logits, y) < 0.9
    keeper.survey(survey_of(x, y, torch.full((200, 4), (1 - 0.2865) / 3).scatter(1, y[:, None], 0.2865)))
    assert float(keeper.temperature.value) == pytest.approx(1, abs=0.01)


def test_the_complementary_bank_gets_a_delta_that_bounds_its_errors() -> None:
    x, y = clouds(400, seed=3)
    recipe = build("lion+calibrated", 4, 20, {"feature_norm": "none", "calibrated": {"error_rate": 0.01}})
    keeper = next(k for k in recipe.keepers if isinstance(k, Calibrator))
    keeper.survey(survey_of(x, y, torch.softmax(overfit(x, y)(x).detach(), dim=1)))
    assert keeper.bank is not None
    assert 0 < keeper.bank.delta < keeper.bank.options.delta
    other = next(k for k in build("lion+calibrated", 4, 20).keepers if isinstance(k, Calibrator))
    other.load_state_dict(keeper.state_dict())
    assert other.bank is not None
    assert other.bank.delta == keeper.bank.delta
    assert other.doubts is not None
    assert other.doubts.temperature == keeper.doubts.temperature  # type: ignore[union-attr]


def test_too_few_labels_calibrate_nothing() -> None:
    x, y = clouds(20)
    keeper = next(k for k in build("fixmatch+calibrated", 4, 20).keepers if isinstance(k, Calibrator))
    keeper.survey(survey_of(x, y, torch.softmax(10 * torch.randn(20, 4), dim=1)))
    assert float(keeper.temperature.value) == 1
    assert not enough(y, 4)
    assert enough(torch.arange(24), 8)
    assert not enough(torch.arange(24), 9)


def test_surveys_are_asked_for_at_the_start_and_now_and_then() -> None:
    recipe = build("supervised+calibrated", 4, 20, {"calibrated": {"every": 50}})
    asked = [step for step in range(201) if recipe.keepers[-1].wants_survey(Clock(step + 7, 0, step, 300))]
    assert asked == [0, 50, 100, 150, 200]


def test_plug_ins_may_follow_a_preset() -> None:
    assert preset_of("lion_paper+calibrated").options == preset_of("lion_paper").options
    assert preset_of("lion_paper+calibrated").spec == "lion+calibrated"
    recipe = build("lion_paper+calibrated", 4, 20)
    assert recipe.name == "lion_paper+calibrated"
    with pytest.raises(ValueError, match="each plug-in once"):
        build("lion+calibrated+calibrated", 4, 20)
    with pytest.raises(ValueError, match=r"calibrated\.every"):
        build("lion+calibrated", 4, 20, {"calibrated": {"every": 0}})
