"""M2PO beside AReaL's mask. Its module needs a whole training stack to be imported, so the two pure
functions are taken from its installed file. Runs where AReaL is: `make test-peers`.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from peers.same_batch import ADVANTAGE, MASK, assert_same, made_logprobs, weights

SPEC = find_spec("areal")
if SPEC is None:
    pytest.skip("AReaL has an environment of its own: make test-peers", allow_module_level=True)


def areal_function(name):
    """A function of AReaL's actor, and those that it calls."""
    source = Path(SPEC.submodule_search_locations[0], "trainer/ppo/actor.py").read_text()
    wanted = ("_apply_m2po_masking", "_get_m2po_loss_mask")
    body = [node for node in ast.parse(source).body if getattr(node, "name", "") in wanted]
    found = {"torch": torch}
    exec(compile(ast.Module(body=body, type_ignores=[]), "areal", "exec"), found)  # noqa: S102
    return found[name]


@pytest.mark.parametrize("bound", [0.01, 0.04, 0.1])
def test_the_tokens_that_m2po_keeps_are_areals(bound):
    log_mu, log_pi = made_logprobs()
    keep = areal_function("_apply_m2po_masking")(log_mu, log_pi.detach(), MASK, bound)
    assert 0 < keep.sum() < MASK.sum()
    ratio = (log_pi.detach() - log_mu).exp()
    expected = torch.where(keep, ratio * ADVANTAGE[:, None], 0.0)
    assert_same(weights("m2po", log_mu, log_pi, bound=bound), expected)
