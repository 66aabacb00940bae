"""Verdicts on claims: each is given by the code that holds the evidence, and only if all of it holds."""

from collections import Counter

VERDICTS = ("true", "true with conditions", "false", "open")


class Claims:
    """The verdicts given so far; shown, their numbers."""

    def __init__(self):
        self.verdicts = []

    def judge(self, verdict, *evidence):
        """Give a verdict on a claim, if the evidence bears it out.

        Args:
            verdict: "true", "true with conditions", "false" or "open".
            *evidence: one or more comparisons, each a truth value or a tensor of one.

        Returns:
            A :class:`Verdict`, to be shown.

        Raises:
            ValueError: the verdict is unknown, or there is no evidence.
            AssertionError: a piece of evidence does not hold.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(map(repr, VERDICTS))}, got {verdict!r}")
        if not evidence:
            raise ValueError("evidence must be at least one comparison, got none")
        for number, holds in enumerate(evidence, 1):
            if not holds:
                raise AssertionError(f"evidence {number} of {len(evidence)} does not hold, so not {verdict!r}")
        self.verdicts.append(verdict)
        return Verdict(verdict)

    def __repr__(self):
        counts = Counter(self.verdicts)
        parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
        return f"{len(self.verdicts)} claims: {', '.join(parts)}"


class Verdict:
    """One verdict, which a page shows as a label."""

    def __init__(self, verdict):
        self.verdict = verdict

    def __repr__(self):
        return f"Verdict: {self.verdict}"

    def _repr_html_(self):
        kind = self.verdict.replace(" ", "-")
        return f'<p class="rb rb-verdict rb-verdict-{kind}">Verdict: <strong>{self.verdict}</strong></p>'
