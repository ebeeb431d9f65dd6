"""Intervals and tests, against SciPy and published numbers; how often they are right, by simulation."""

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, norm, permutation_test, ttest_rel

from vdvae_repr.probing import statistics
from vdvae_repr.probing.statistics import Items, PairUnits, Units

PROPORTION = (0.0, 1.0)


def figure_of(values, units, seed=0):
    """The mean of values of items, or of several draws of them (N, I), with its interval."""
    draws = [
        Items.mean_of(column) for column in np.asarray(values, float).reshape(len(values), -1).T
    ]
    among = Units(np.asarray(units), seed)
    found = np.array([item.value for item in draws])
    resampled = statistics.weighted(draws, among, among.draws())
    binary = bool(np.isin(values, (0, 1)).all())
    left_out = np.zeros((0, len(draws)))
    return statistics.figure(found, resampled, left_out, among, PROPORTION, binary)


def difference_of(a, b, units, seed=0):
    return statistics.compare(
        [Items.mean_of(a)], [Items.mean_of(b)], Units(np.asarray(units), seed), PROPORTION
    )


# Against SciPy


@pytest.mark.parametrize(("right", "of"), [(0, 10), (3, 10), (20, 20), (950, 1000)])
def test_wilson_and_clopper_pearson_are_scipys(right, of):
    test = binomtest(right, of)
    for own, name in ((statistics.wilson, "wilson"), (statistics.clopper_pearson, "exact")):
        theirs = test.proportion_ci(method=name)
        assert own(right, of) == pytest.approx((theirs.low, theirs.high))


def test_successes_of_units_need_not_be_whole():
    low, high = statistics.clopper_pearson(2.5, 10)
    assert (low, high) == pytest.approx((beta.ppf(0.025, 2.5, 8.5), beta.ppf(0.975, 3.5, 7.5)))


@pytest.mark.parametrize("units", [6, 9, 13])
def test_all_sign_flips_are_scipys_permutation_test(units):
    rng = np.random.default_rng(units)
    a, b = rng.normal(0.5, 1, units), rng.normal(0, 1, units)
    theirs = permutation_test(
        (a, b), lambda a, b: np.sum(a - b), permutation_type="samples", n_resamples=np.inf
    )
    (p,) = statistics.sign_flip((a - b)[:, None], 0)
    assert p == pytest.approx(theirs.pvalue)


def test_drawn_sign_flips_are_near_the_t_test_and_have_a_floor():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.15, 1, (200, 1))
    (p,) = statistics.sign_flip(gaps, 0)
    assert p == pytest.approx(ttest_rel(gaps[:, 0], np.zeros(200)).pvalue, abs=0.01)
    (least,) = statistics.sign_flip(np.ones((200, 1)), 0)
    assert least == 1 / 10_001


def test_holm_is_the_published_procedure():
    """Holm 1979: the smallest times 3, the next times 2, the last once, and never descending."""
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([None, 0.01]) == [None, 0.02]


@pytest.mark.parametrize(
    ("differences", "p", "word"),
    [
        ([0.1, 0.2, 0.3], [0.01, 0.02, 0.04], "better"),
        ([0.1, 0.2, 0.3], [0.01, 0.02, 0.05], "no difference told"),
        ([-0.217, 0.1, 0.1], [0.003, 0.01, 0.01], "worse"),  # 0.100 beside pixels 0.317
        ([0.1, 0.2, -0.3], [0.01, 0.02, 0.4], "no difference told"),
        ([0.1, 0.2], [None, None], "no difference told"),
    ],
)
def test_the_verdict_is_better_only_above_every_rival(differences, p, word):
    assert statistics.verdict(differences, p) == word


# What stands for what


def test_five_units_have_no_p_and_say_why():
    five = difference_of(np.ones(10), np.zeros(10), np.repeat(np.arange(5), 2))
    assert five.p is None
    assert five.why == "5 independent units are too few for a test, which takes 6"
    one = difference_of(np.ones(10), np.zeros(10), np.zeros(10))
    assert one.why == "1 independent unit is too few for a test, which takes 6"
    six = difference_of(np.ones(12), np.zeros(12), np.repeat(np.arange(6), 2))
    assert (six.p, six.why) == (2 / 2**6, None)


def test_the_sign_says_which_is_better():
    right, wrong = np.array([1.0] * 9 + [0.0]), np.array([0.0] * 9 + [1.0])
    worse = statistics.compare(
        [Items.mean_of(wrong)], [Items.mean_of(right)], Units(np.arange(10), 0), PROPORTION
    )
    error = statistics.compare(
        [Items.mean_of(wrong)], [Items.mean_of(right)], Units(np.arange(10), 0), PROPORTION, sign=-1
    )
    assert (worse.value, error.value) == pytest.approx((-0.8, 0.8))
    assert worse.high < 0 < error.low
    assert worse.p == error.p < 0.05


@pytest.mark.parametrize("units", [1, 2, 6, 20, 121])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_intervals_have_width_and_stay_in_range(units, value):
    """All right, all wrong, or each unit half right: nothing that is drawn differs."""
    each = np.tile([min(1.0, 2 * value), max(0.0, 2 * value - 1)], units)
    figure = figure_of(each, np.repeat(np.arange(units), 2))
    assert figure.value == pytest.approx(value)
    assert 0 <= figure.low < figure.high <= 1
    assert figure.low <= figure.value <= figure.high
    assert figure.interval == "clopper-pearson"
    equal = difference_of(each, each, np.repeat(np.arange(units), 2))
    assert -1 <= equal.low < 0 < equal.high <= 1


def test_independent_items_have_wilsons_interval():
    right = np.arange(100) < 90
    figure = figure_of(right, np.arange(100))
    theirs = binomtest(90, 100).proportion_ci(method="wilson")
    assert (figure.low, figure.high) == pytest.approx((theirs.low, theirs.high))
    assert (figure.interval, figure.units) == ("wilson", 100)


def test_the_interval_of_initialisations_holds_their_spread():
    """Of three that differ by 0.3 it is wider than what people alone say: by the mean's own variance."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(200), 5)
    items = [rng.random(1000) < share for share in (0.35, 0.5, 0.65)]
    together = figure_of(np.stack(items, axis=1), people)
    one = figure_of(items[1], people)
    spread = np.std([item.mean() for item in items], ddof=1) / 3**0.5
    assert together.value == pytest.approx(np.mean(items))
    assert together.high - together.low > 2 * (one.high - one.low)
    assert together.high - together.low == pytest.approx(2 * 1.96 * spread, rel=0.35)


def test_classes_are_drawn_then_their_images():
    """The variance of a draw is that of classes plus that of images within them, as worked out by hand."""
    rng = np.random.default_rng(0)
    classes, images = 40, 10
    values = rng.normal(size=(classes, 1)) + rng.normal(size=(classes, images))
    units = Units(np.repeat(np.arange(classes), images), 0, nested=True)
    drawn = statistics.weighted([Items.mean_of(values.ravel())], units, units.draws())
    expected = (values.mean(axis=1).var() + values.var(axis=1).mean() / images) / classes
    assert drawn.var() == pytest.approx(expected, rel=0.1)


def test_draws_of_people_keep_pairs_once_on_average():
    first, second = np.array([0, 1, 2, 3, 4]), np.array([0, 1, 3, 4, 2])
    units = PairUnits(first, second, 0)
    often = np.concatenate(list(units.draws()))
    assert units.number == 5
    np.testing.assert_allclose(often.mean(axis=0), 1, atol=0.12)
    np.testing.assert_array_equal(units.sums(np.arange(5.0)), [0, 1, 2 + 4, 2 + 3, 3 + 4])


# How often they are right


def null(kind, shape, rng):
    """Differences by unit of two that are equally good."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "skewed":
        return rng.exponential(size=shape) ** 2 - rng.exponential(size=shape) ** 2
    return (rng.integers(0, 5, shape) - rng.integers(0, 5, shape)).astype(float)


@pytest.mark.parametrize("units", [6, 10, 20, 121])
@pytest.mark.parametrize("kind", ["normal", "skewed", "counts"])
def test_equals_are_told_apart_in_6_percent_at_most(units, kind):
    gaps = null(kind, (units, 4000), np.random.default_rng(units))
    assert (statistics.sign_flip(gaps, 0) <= 0.05).mean() <= 0.06


def pairs_of_people(people, each):
    """A pair of either kind a time and person: of each by itself, and of each with the next ones."""
    first = np.tile(np.arange(people), 2 * each)
    second = first.copy()
    for step in range(1, each + 1):
        own = slice((each + step - 1) * people, (each + step) * people)
        second[own] = (first[own] + step) % people
    return first, second


def gaps_of_pairs(first, second, people, times, of_people, rng):
    """Differences by pair, (P, M), of mean 0: what each person adds to both kinds of pairs, and noise."""
    one, two = of_people * rng.normal(size=(2, people, times))
    own = (first == second)[:, None]
    return np.where(own, one[first], two[first] + two[second]) + rng.normal(
        size=(len(first), times)
    )


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("of_people", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("trade", [0.0, 2.0])
def test_equals_by_pairs_are_told_apart_in_6_percent_at_most(each, of_people, trade):
    """Also where one wins at pairs of a person what it loses at pairs of two, so that no one is better."""
    first, second = pairs_of_people(60, each)
    gaps = gaps_of_pairs(first, second, 60, 1000, of_people, np.random.default_rng(each))
    gaps += np.where(first == second, trade, -trade)[:, None]
    sums = PairUnits(first, second, 0).sums(gaps)
    assert (statistics.sign_flip(sums, 0, gaps.sum(axis=0)) <= 0.05).mean() <= 0.06


def test_p_of_pairs_is_of_the_difference_that_is_reported():
    """A trade-off of sum 0 is no difference at all, and one that is better at all pairs is."""
    first, second = pairs_of_people(60, 2)
    own, units = first == second, PairUnits(first, second, 0)
    nothing = Items.mean_of(np.zeros(len(own)))
    traded = statistics.compare([Items.mean_of(own)], [Items.mean_of(~own)], units, PROPORTION)
    assert (traded.value, traded.p) == (0, 1)
    better = statistics.compare([Items.mean_of(np.ones(len(own)))], [nothing], units, PROPORTION)
    assert (better.value, better.p < 0.05) == (pytest.approx(1), True)
    few = PairUnits(np.tile(np.arange(6), 2), np.tile(np.arange(6), 2) + np.repeat([0, 6], 6), 0)
    gaps = Items.mean_of(np.repeat([10.0, -3.0], 6))  # more than any flip of people's sums comes to
    found = statistics.compare([gaps], [Items.mean_of(np.zeros(12))], few, (-np.inf, np.inf))
    assert found.p > 0


@pytest.mark.parametrize("p", [0.5, 0.95])
@pytest.mark.parametrize("n", [20, 60, 100])
@pytest.mark.parametrize("each", [1, 2])
def test_intervals_of_whole_units_hold_the_truth_in_92_percent_at_least(each, n, p):
    """Of all numbers of units that can be right, each by its probability: single items, or pairs."""
    units, held = np.repeat(np.arange(n), each), 0.0
    for right in range(n + 1):
        figure = figure_of(np.repeat(np.arange(n) < right, each), units)
        held += binom.pmf(right, n, p) * (figure.low <= p <= figure.high)
        assert (figure.interval == "wilson") == (each == 1)
    assert held >= 0.92


@pytest.mark.parametrize("p", [0.5, 0.95])
@pytest.mark.parametrize("n", [20, 60, 100])
def test_intervals_of_people_hold_the_truth_in_92_percent_at_least(n, p):
    """Of people who differ, six items each."""
    rng = np.random.default_rng(n)
    right = rng.random((500, n, 6)) < rng.beta(4 * p, 4 * (1 - p), (500, n, 1))
    people = np.repeat(np.arange(n), 6)
    found = [figure_of(one.ravel(), people) for one in right]
    assert np.mean([f.low <= p <= f.high for f in found]) >= 0.92


@pytest.mark.parametrize("units", [6, 10, 20, 60])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.9, 0.7)])
def test_intervals_of_differences_hold_the_truth_in_92_percent_at_least(units, a, b):
    """Of people, four images each, whom both find easy or both find hard."""
    rng = np.random.default_rng(units)
    times = 1000 if units < 20 else 300
    hard = rng.normal(size=(times, units, 1))
    scores = [(hard + rng.normal(size=(times, units, 4))) / 2**0.5 < norm.ppf(p) for p in (a, b)]
    ours, theirs = (s.reshape(times, -1).astype(float) for s in scores)
    people = np.repeat(np.arange(units), 4)
    found = [difference_of(*pair, people) for pair in zip(ours, theirs, strict=True)]
    assert np.mean([d.low <= a - b <= d.high for d in found]) >= 0.92
