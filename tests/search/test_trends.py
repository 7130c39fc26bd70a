"""Rules are found where they were put in, and not where there are none."""

import json

import numpy as np
import pytest

from latency.analytic import MacsModel
from search.errors import TrendError
from search.frontier import Frontier
from search.profiles import SIZES, Profile
from search.trends import Trends, from_frontiers, learn, shape_of
from tests.reference import random_saliency
from vit.architecture import Architecture, BlockShape
from vit.presets import preset

TEMPLATE = preset("deit-s")
BUMP = np.array([0.5, 0.6, 0.8, 1.2, 1.3, 1.4, 1.4, 1.3, 1.2, 0.9, 0.8, 0.6])


def model(embed_dim: int, sizes: dict[str, np.ndarray]) -> Architecture:
    columns = [np.maximum(np.rint(sizes[size]), 1).astype(int).tolist() for size in SIZES]
    return TEMPLATE.replace(
        embed_dim=embed_dim, blocks=tuple(BlockShape(*row) for row in zip(*columns, strict=True)), softmax_scale=None
    )


def made_up(seed: int, *, bump: np.ndarray = BUMP, power: float = 1.0, noise: float = 0.05) -> list[Architecture]:
    """One model at three widths: MLP by `bump` and `power`, QK without any rule, the rest constant."""
    rng = np.random.default_rng(seed)
    by_block = np.exp(noise * rng.standard_normal((2, 12)))
    found = []
    for embed_dim in (128, 256, 384):
        mlp = 3.0 * 128 * (embed_dim / 128) ** power * bump * by_block[0]
        qk = 32 * np.exp(0.5 * rng.standard_normal(12))
        found.append(
            model(embed_dim, {"num_heads": np.full(12, 6), "qk_dim": qk, "v_dim": np.full(12, 64), "mlp_dim": mlp})
        )
    return found


def test_a_rule_that_is_there_is_found_with_its_numbers():
    trends = learn([made_up(seed) for seed in range(5)])
    depth, width = trends.depth["mlp_dim"], trends.width["mlp_dim"]
    assert depth.is_there
    assert depth.shape == "less - more - less"
    np.testing.assert_allclose(depth.eps, BUMP / BUMP.mean(), rtol=0.08)
    assert all(low <= eps <= high for low, eps, high in zip(depth.low, depth.eps, depth.high, strict=True))
    assert width.is_there
    assert width.power == pytest.approx(1.0, abs=0.02)
    assert width.interval[0] <= width.power <= width.interval[1]


def test_what_is_no_trend_is_said_to_be_none_and_left_out_of_the_profile():
    trends = learn([made_up(seed) for seed in range(5)])
    for size in ("num_heads", "qk_dim", "v_dim"):
        assert not trends.depth[size].is_there
        assert trends.depth[size].shape == "none"
        assert not trends.width[size].is_there
    profile = trends.profile("mine")
    assert profile.qk_dim.eps == (1.0,)
    assert profile.v_dim.power == 0.0
    assert [block.v_dim for block in profile.blocks(200, 12)] == [64] * 12
    assert "no trend: num_heads with depth, qk_dim with depth" in trends.sentence()
    assert "mlp_dim less - more - less" in trends.sentence()


def test_noise_is_called_a_trend_about_as_often_as_the_level_says():
    rng, found = np.random.default_rng(7), 0
    for seed in range(200):
        groups = []
        for _ in range(4):
            mlp = 400 * np.exp(0.3 * rng.standard_normal(12))
            rest = {"num_heads": np.full(12, 4), "qk_dim": np.full(12, 32), "v_dim": np.full(12, 32)}
            groups.append([model(128, rest | {"mlp_dim": mlp})])
        found += learn(groups, seed=seed).depth["mlp_dim"].is_there
    assert found <= 20  # 10 are expected; more than 20 of 200 happen once in a thousand


def test_budgets_of_one_model_are_no_independent_witnesses():
    rng = np.random.default_rng(3)
    blocks = 400 * np.exp(0.5 * rng.standard_normal(12))
    rest = {"num_heads": np.full(12, 4), "qk_dim": np.full(12, 32), "v_dim": np.full(12, 32)}
    one = [model(embed, rest | {"mlp_dim": blocks}) for embed in (64, 96, 128, 160)]
    trend = learn([one]).depth["mlp_dim"]
    assert (trend.p, trend.is_there, trend.shape) == (None, False, "none")
    assert learn([one]).width["mlp_dim"].interval is None


def test_the_learned_profile_gives_back_what_it_was_learned_from():
    trends = learn([made_up(seed, noise=0.0) for seed in range(3)])
    profile = trends.profile("mine")
    (expected,) = [arch for arch in made_up(0, noise=0.0) if arch.embed_dim == 256]
    given = [block.mlp_dim for block in profile.blocks(256, 12)]
    np.testing.assert_allclose(given, [block.mlp_dim for block in expected.blocks], rtol=0.03)
    assert profile.note(256) is None
    assert "learned from EMB 128 to 384; at 768" in profile.note(768)
    assert Profile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_the_width_is_what_it_was(power):
    trend = learn([made_up(seed, power=power) for seed in range(4)]).width["mlp_dim"]
    assert trend.power == pytest.approx(power, abs=0.03)
    assert trend.is_there == (power > 0)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([1, 1, 2, 2, 1, 0], "less - more - less"),
        ([2, 2, 1, 1, 2, 2], "more - less - more"),
        ([1, 1, 2, 2, 3, 3], "rises"),
        ([3, 3, 2, 2, 1, 1], "falls"),
        ([1, 1, 1, 1, 2, 2], "uneven"),
    ],
)
def test_shapes_have_names(values, shape):
    assert shape_of(values) == shape


def test_frontiers_are_asked_for_every_share():
    arch = TEMPLATE.replace(embed_dim=32, blocks=(BlockShape(2, 8, 8, 32),) * 6, softmax_scale=None)
    frontiers = [Frontier(random_saliency(arch, seed), MacsModel(arch)) for seed in (0, 1)]
    groups = from_frontiers(frontiers, (0.7, 0.5))
    for frontier, group in zip(frontiers, groups, strict=True):
        assert group == [frontier.best(share * frontier.full_ms).arch for share in (0.7, 0.5)]
    trends = learn(groups, source="random saliency")
    assert trends.groups == (2, 2)
    json.dumps(trends.to_dict())


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([], "give at least one for every group"),
        ([[preset("deit-s")], []], "give at least one for every group"),
        ([[preset("deit-s")], [preset("deit-s").replace(blocks=(BlockShape(1, 8, 8, 8),) * 8)]], "8 and 12 blocks"),
        ([[preset("deit-s").replace(blocks=(BlockShape(1, 8, 8, 8),) * 3)]], "at least 6 blocks, the models have 3"),
    ],
)
def test_models_that_teach_no_rule_are_refused(groups, says):
    with pytest.raises(TrendError, match=says):
        learn(groups)


def test_trends_are_values():
    assert learn([made_up(0), made_up(1)]) == learn([made_up(0), made_up(1)])
    assert isinstance(learn([made_up(0), made_up(1)]), Trends)
