"""What processes tell each other, without a second process: the calls are replaced."""

import pytest
from torch import distributed

from topr.errors import ToprError
from topr.training.processes import ALONE, Processes


@pytest.mark.parametrize("failure", [OSError("disk full"), ToprError("wrong")])
def test_what_the_first_process_fails_with_is_told_to_those_that_wait(monkeypatch, failure):
    told = []
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda made, src: told.append(made))

    def make():
        raise failure

    with pytest.raises(type(failure)) as raised:
        Processes(rank=0, count=2).from_first(make)
    assert raised.value is failure
    ((_, error),) = told
    assert isinstance(error, ToprError)
    assert str(failure) in str(error)
    with pytest.raises(type(failure)):
        ALONE.from_first(make)
