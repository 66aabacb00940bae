"""Splits and class weights: the proportions, what photographs keep together, and what cannot be split."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resbook.splits import class_weights, split
from sklearn.utils.class_weight import compute_class_weight

SHARES = st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5])


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def shares_of(labels, test, classes):
    return np.bincount(labels[test], minlength=classes) / np.bincount(labels, minlength=classes)


@settings(max_examples=60)
@given(extra=st.lists(st.integers(0, 40), min_size=2, max_size=7), share=SHARES, seed=st.integers(0, 99))
def test_every_class_is_split_to_within_one_image(extra, share, seed):
    counts = [int(np.ceil(1 / share)) + more for more in extra]
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, test = split(labels.tolist(), "abcdefg"[: len(counts)], None, share, seed)
    assert sorted(train + test) == list(range(len(labels)))
    tested = np.bincount(labels[test], minlength=len(counts))
    assert (abs(tested - share * np.array(counts)) < 1.5).all()  # one image, and a half where the total is no integer
    assert (tested > 0).all() and (tested < counts).all()


def test_the_seed_decides_both_kinds_of_split():
    labels, photographs = [0, 1] * 60, [f"p{i // 4}" for i in range(120)]
    for names in (None, photographs):
        assert split(labels, "ab", names, seed=1) == split(labels, "ab", names, seed=1)
        assert len({tuple(split(labels, "ab", names, seed=seed)[1]) for seed in range(10)}) == 10


@settings(max_examples=60)
@given(data=st.data(), share=SHARES, seed=st.integers(0, 99))
def test_no_photograph_is_in_both_parts(data, share, seed):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=6, max_size=80))
    pairs += [(label, 20 + 2 * label + i) for label in range(3) for i in (0, 1)]  # so that a split exists
    labels, photographs = np.array(pairs).T
    train, test = split(labels, "abc", [f"photograph {i}" for i in photographs], share, seed)
    assert sorted(train + test) == list(range(len(pairs)))
    assert not set(photographs[train]) & set(photographs[test])
    assert set(labels[train]) == set(labels[test]) == {0, 1, 2}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_a_split_by_photograph_keeps_the_shares_where_there_are_many(share):
    random = np.random.RandomState(3)
    photographs = np.repeat(np.arange(60), random.randint(20, 200, 60))  # SDNET2018: 54 to 104 photographs of a surface
    labels = (random.rand(len(photographs)) < random.beta(0.4, 2, 60)[photographs]).astype(int)
    test = split(labels, ("intact", "cracked"), photographs, share)[1]
    assert abs(shares_of(labels, test, 2) - share).max() < 0.02


def test_few_photographs_of_one_class_each_are_split_all_the_same():
    labels, photographs = [0, 0, 0, 1, 1, 1, 0, 0, 1], list("aaabbbccd")
    train, test = split(labels, ("x", "y"), photographs, 0.2)
    assert {photographs[i] for i in test} == {"c", "d"} and {photographs[i] for i in train} == {"a", "b"}


def test_photographs_may_be_named_by_anything():
    labels, names = [0, 1] * 20, [("D", i // 4) for i in range(40)]
    assert split(labels, "ab", names) == split(labels, "ab", [str(name) for name in names])


def test_many_photographs_are_split_without_end():
    labels = np.arange(20_000) % 2
    test = split(labels, "ab", np.arange(20_000), 0.3)[1]
    assert abs(shares_of(labels, test, 2) - 0.3).max() < 0.001


@pytest.mark.parametrize(
    ("labels", "photographs", "message"),
    [
        ([0, 0, 1, 1], "aabb", "two or more of every class; 'x' comes from a$"),
        ([0, 0, 0, 0], "abcd", "two or more of every class; 'y' comes from none"),
        ([0, 0, 0, 1], "abcd", "two or more of every class; 'y' comes from d$"),
    ],
)
def test_a_class_of_one_photograph_is_told_with_it(labels, photographs, message):
    with pytest.raises(ValueError, match=message):
        split(labels, ("x", "y"), list(photographs))


def test_photographs_that_cannot_be_split_are_told():
    labels, photographs = [0, 0, 1, 1, 2, 2], [1, 2, 2, 3, 3, 1]  # two parts, and any two of three must be in both
    with pytest.raises(ValueError, match="no split of the 3 photographs was found that has every class in both parts"):
        split(labels, "abc", photographs, 0.5)


@pytest.mark.parametrize("share", [0, 1, 0.51, -0.2, float("nan"), 20])
def test_test_share_must_leave_more_to_train_on(share):
    with pytest.raises(ValueError, match="test_share must be above 0 and at most 0.5, got"):
        split([0, 1] * 50, "ab", None, share)


def test_a_class_of_too_few_images_is_told():
    assert len(split([0] * 5 + [1] * 5, "ab")[1]) == 2
    with pytest.raises(ValueError, match="test_share=0.2 needs 5 images or more of every class; 'b' has 1$"):
        split([0] * 50 + [1], "ab")
    with pytest.raises(ValueError, match="test_share=0.3 needs 4 images or more of every class; 'c' has 0$"):
        split([0, 1] * 5, "abc", None, 0.3)


def test_the_seed_must_be_an_integer():
    with pytest.raises(TypeError, match="seed must be an integer"):
        split([0, 1] * 50, "ab", seed=None)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        split([0, 1] * 50, "ab", seed=-1)


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_class_weights_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weights = class_weights(torch.tensor(labels), len(counts))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[torch.tensor(labels)].mean() == pytest.approx(1, rel=1e-5)


def test_a_class_without_an_image_has_no_weight():
    with pytest.raises(ValueError, match=r"labels must hold each of 0 to 2, got the counts \[2, 0, 1\]"):
        class_weights(torch.tensor([0, 0, 2]), 3)
    with pytest.raises(ValueError, match=r"labels must hold each of 0 to 1, got the counts \[1, 1, 1\]"):
        class_weights(torch.tensor([0, 1, 2]), 2)
