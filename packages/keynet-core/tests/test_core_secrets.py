"""A secret is in no text anyone prints."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback
from dataclasses import dataclass

import pytest

from keynet_core import Secret

SECRET = Secret("hunter2")


@dataclass(frozen=True)
class Holder:
    token: Secret


def test_the_text_is_revealed_on_request_only():
    assert SECRET.reveal() == "hunter2"


@pytest.mark.parametrize(
    "shown",
    [
        repr(SECRET),
        str(SECRET),
        f"{SECRET} {SECRET!r} {SECRET!s} {SECRET!a}",
        format(SECRET),
        "{0} {0!r}".format(SECRET),  # noqa: UP032  # another way through __format__
        "%s %r" % (SECRET, SECRET),  # noqa: UP031  # the way logging takes
        repr([SECRET]),
        repr({"token": SECRET}),
        repr(Holder(SECRET)),
        "".join(traceback.format_exception(ValueError(SECRET))),
    ],
)
def test_every_way_to_print_it_is_masked(shown):
    assert "hunter2" not in shown
    assert "********" in shown


def test_a_log_line_is_masked(monkeypatch):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger(__name__)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.warning("token %s %r", SECRET, Holder(SECRET))
    assert stream.getvalue() == "token ******** Holder(token=Secret('********'))\n"


@pytest.mark.parametrize("leave", [pickle.dumps, copy.deepcopy, json.dumps])
def test_it_does_not_leave_in_another_form(leave):
    with pytest.raises(TypeError) as caught:
        leave(SECRET)
    assert "hunter2" not in str(caught.value)


def test_it_has_no_attributes_to_dump():
    assert not hasattr(SECRET, "__dict__")


def test_equal_texts_are_equal_secrets_and_nothing_else_is():
    same = Secret("hunter2")
    assert same == SECRET
    assert hash(same) == hash(SECRET)
    assert Secret("hunter3") != SECRET
    assert same != "hunter2"


@pytest.mark.parametrize(
    ("text", "same"), [("hunter2", True), ("hunter", False), ("", False), ("hunter2é", False), ("\udcff", False)]
)
def test_it_matches_its_own_text_only(text, same):
    assert SECRET.matches(text) is same


def test_bytes_that_are_no_text_match_themselves():
    assert Secret("a\udcff").matches("a\udcff")
