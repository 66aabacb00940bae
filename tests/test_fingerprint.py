"""The fingerprint of this machine's arithmetic: the same twice, another where something rounds differently."""

import torch
import torch.nn.functional as F
from resbook.fingerprint import arithmetic_fingerprint


def test_the_same_arithmetic_has_the_same_fingerprint_and_another_another(monkeypatch):
    before = torch.get_rng_state()
    first = arithmetic_fingerprint()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    assert arithmetic_fingerprint() == first and len(int(first, 16).to_bytes(4, "big")) == 4
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda *args, **options: relu(*args, **options) * (1 + 2**-23))  # one bit up
    assert arithmetic_fingerprint() != first
