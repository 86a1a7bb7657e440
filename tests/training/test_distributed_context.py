"""What processes tell each other, without a second process: the calls are replaced."""

import pytest
from torch import distributed

from topr.errors import ToprError
from topr.training.distributed import SINGLE_PROCESS, DistributedContext


@pytest.mark.parametrize("failure", [OSError("disk full"), ToprError("wrong")])
def test_what_the_first_process_fails_with_is_told_to_those_that_wait(monkeypatch, failure):
    told = []

    def gather(found, value):
        told.append(value)
        found[0], found[1] = value, (None, None)

    monkeypatch.setattr(distributed, "all_gather_object", gather)

    def make():
        raise failure

    with pytest.raises(type(failure)) as raised:
        DistributedContext(rank=0, world_size=2).run_on_rank0(make)
    assert raised.value is failure
    ((_, error),) = told
    assert isinstance(error, ToprError)
    assert str(failure) in str(error)
    with pytest.raises(type(failure)):
        SINGLE_PROCESS.run_on_rank0(make)
