"""Split images into those to train on and those to test on, and weigh classes of different size."""

import math

import numpy as np

from resbook.arithmetic import check_integer


def class_weights(labels, num_classes):
    """Return for each class the number of images over the number of classes and of its own images.

    So every class has the same say in the loss, and an image has the weight 1 on average.

    Args:
        labels: int64 ``(N,)``.
        num_classes: how many there are.

    Returns:
        float32 ``(num_classes,)``.

    Raises:
        ValueError: a class has no image.
    """
    counts = labels.bincount(minlength=num_classes)
    if len(counts) != num_classes or not counts.all():
        raise ValueError(f"labels must hold each of 0 to {num_classes - 1}, got the counts {counts.tolist()}")
    return len(labels) / (num_classes * counts.float())


def split(labels, classes, photographs=None, test_share=0.2, seed=0):
    """Return the positions of the images to train on and of those to test on, every class in the same proportion.

    Args:
        labels: positions in ``classes``, a list or an integer tensor ``(N,)``.
        classes: their names.
        photographs: None, or the name of the photograph that each image was cut from; all images of one go to the
            same part, and so proportions hold roughly. Default None.
        test_share: above 0 and at most 0.5. Default 0.2.
        seed: 0 to 2**32 - 1. Default 0.

    Returns:
        Two lists.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: a part would have no image of a class, or ``test_share`` or ``seed`` is out of range.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < test_share <= 0.5:
        raise ValueError(f"test_share must be above 0 and at most 0.5, got {test_share}")
    check_integer("seed", seed, least=0, most=2**32 - 1)
    labels = np.asarray(labels)
    if photographs is not None:
        return _split_by_photograph(labels, classes, photographs, test_share, seed)
    least = math.ceil(1 / test_share)
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if count < least:
            raise ValueError(
                f"test_share={test_share} needs {least} images or more of every class; {name!r} has {count}"
            )
    return train_test_split(range(len(labels)), test_size=test_share, stratify=labels, random_state=seed)


def _split_by_photograph(labels, classes, photographs, test_share, seed):
    """Return the best of some splits, in each of which photographs in random order fill the test part.

    (The folds of scikit-learn's StratifiedGroupKFold have shares of 1/2, 1/3, ... only, and with few photographs they
    miss splits that exist.)
    """
    names, source = np.unique([str(name) for name in photographs], return_inverse=True)
    counts = np.zeros((len(names), len(classes)), int)
    np.add.at(counts, (source, labels), 1)
    for name, column in zip(classes, counts.T, strict=True):
        if (column > 0).sum() < 2:
            only = ", ".join(names[column > 0]) or "none"
            raise ValueError(f"a split by photograph needs two or more of every class; {name!r} comes from {only}")
    total = counts.sum(0)

    def distance(part):
        return (abs(part / total - test_share) + (part == 0) + (part == total)).sum()

    def fill(order):
        part, chosen = 0 * total, []
        for i in order:
            if distance(part + counts[i]) < distance(part):
                part = part + counts[i]
                chosen.append(i)
        return distance(part), chosen

    random = np.random.RandomState(seed)  # its numbers are the same in every version of NumPy
    tries = min(100, 1 + 20_000 // len(names))  # the more photographs, the better is a single one
    _, chosen = min(fill(random.permutation(len(names))) for _ in range(tries))
    test = np.isin(source, chosen)
    if any(len(set(labels[part])) < len(classes) for part in (test, ~test)):
        raise ValueError(f"no split of the {len(names)} photographs was found that has every class in both parts")
    return np.flatnonzero(~test).tolist(), np.flatnonzero(test).tolist()
