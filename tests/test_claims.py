"""A verdict stands only on evidence that holds."""

import pytest
import torch
from resbook.claims import VERDICTS, Claims


def test_counts_the_verdicts_it_gave():
    claims = Claims()
    claims.judge("false", 1 > 0, torch.tensor(True))
    claims.judge("open", True)
    claims.judge("false", True)
    assert repr(claims) == "3 claims: 2 false, 1 open"


@pytest.mark.parametrize("verdict", VERDICTS)
def test_shows_the_verdict(verdict):
    shown = Claims().judge(verdict, True)
    assert repr(shown) == f"Verdict: {verdict}"
    assert f"<strong>{verdict}</strong>" in shown._repr_html_()
    assert f"rb-verdict-{verdict.replace(' ', '-')}" in shown._repr_html_()


def test_evidence_that_does_not_hold_forbids_the_verdict():
    claims = Claims()
    with pytest.raises(AssertionError, match="evidence 2 of 3 does not hold, so not 'true'"):
        claims.judge("true", True, torch.tensor(1.0) > 2, True)
    assert claims.verdicts == []


def test_bad_arguments():
    with pytest.raises(ValueError, match="verdict must be one of 'true', .*got 'maybe'"):
        Claims().judge("maybe", True)
    with pytest.raises(ValueError, match="evidence must be at least one comparison"):
        Claims().judge("true")
