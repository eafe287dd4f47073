"""The decorator, the input of a call and the result of a call."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import KeynetError, NameRefused
from keynet_inference import (
    ArgsRefused,
    FunctionExited,
    FunctionInfo,
    FunctionRefused,
    OutsideCall,
    ResultRefused,
    UserInput,
    keynet_function,
)


@keynet_function("echo")
def echo(args: dict) -> dict:
    """Give back what was handed over."""
    return {"x": UserInput.get("x", "nothing")}


def test_a_decorated_function_keeps_its_name_and_says_what_it_is() -> None:
    @keynet_function("image-detection", description="Finds cats.", base_image="python:3.11")
    def main(args: dict) -> dict:
        return {}

    assert main.__name__ == "main"
    assert main.keynet == FunctionInfo(name="image-detection", description="Finds cats.", base_image="python:3.11")
    assert echo.__doc__ == "Give back what was handed over."


def test_user_input_reads_the_arguments_of_the_call() -> None:
    assert echo({"x": 3}) == {"x": 3}


def test_a_parameter_that_was_not_handed_over_is_its_default() -> None:
    assert echo({}) == {"x": "nothing"}


def test_a_parameter_handed_over_as_null_is_none() -> None:
    assert echo({"x": None}) == {"x": None}


def test_parameters_of_openwhisk_can_be_read() -> None:
    @keynet_function("web")
    def web(args: dict) -> dict:
        return {"method": UserInput.get("__ow_method"), "same": args["__ow_method"]}

    assert web({"__ow_method": "get"}) == {"method": "get", "same": "get"}


def test_outside_a_call_user_input_says_so() -> None:
    with pytest.raises(OutsideCall, match="outside a call") as caught:
        UserInput.get("x")

    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, KeynetError)


def test_a_nested_call_sees_its_own_input_and_gives_back_the_outer_one() -> None:
    @keynet_function("outer")
    def outer(args: dict) -> dict:
        before = UserInput.get("x")
        inner = echo({"x": "inner"})["x"]
        return {"seen": [before, inner, UserInput.get("x")]}

    assert outer({"x": "outer"}) == {"seen": ["outer", "inner", "outer"]}


def test_after_a_call_that_raises_there_is_no_input() -> None:
    @keynet_function("broken")
    def broken(args: dict) -> dict:
        raise LookupError(UserInput.get("x"))

    with pytest.raises(LookupError, match="secret"):
        broken({"x": "secret"})
    with pytest.raises(OutsideCall):
        UserInput.get("x")


def test_calls_in_threads_see_their_own_input() -> None:
    together = threading.Barrier(4)

    @keynet_function("slow")
    def slow(args: dict) -> dict:
        together.wait(10)
        return {"x": UserInput.get("x")}

    with ThreadPoolExecutor(4) as pool:
        assert [each["x"] for each in pool.map(slow, [{"x": n} for n in range(4)])] == [0, 1, 2, 3]


def test_a_thread_of_the_function_sees_the_input_in_a_copied_context_only() -> None:
    @keynet_function("threads")
    def threads(args: dict) -> dict:
        with ThreadPoolExecutor(1) as pool:
            copied = pool.submit(copy_context().run, UserInput.get, "x").result()
            bare = pool.submit(UserInput.get, "x").exception()
        return {"copied": copied, "bare": type(bare).__name__}

    assert threads({"x": 1}) == {"copied": 1, "bare": "OutsideCall"}


def test_a_function_that_runs_tasks_hands_its_input_to_them() -> None:
    async def answer() -> list[object]:
        return await asyncio.gather(asyncio.to_thread(UserInput.get, "x"), asyncio.to_thread(echo, {"x": "own"}))

    @keynet_function("tasks")
    def tasks(args: dict) -> dict:
        return {"seen": asyncio.run(answer())}

    assert tasks({"x": "outer"}) == {"seen": ["outer", {"x": "own"}]}


def test_input_never_reaches_the_environment() -> None:
    before = dict(os.environ)

    @keynet_function("environment")
    def environment(args: dict) -> dict:
        return {"same": dict(os.environ) == before}

    assert environment({"TRITON_URL": "http://evil", "AWS_SECRET_ACCESS_KEY": "x"}) == {"same": True}


@pytest.mark.parametrize("args", [None, [], "text", 3])
def test_arguments_that_are_no_dict_are_refused(args: object) -> None:
    with pytest.raises(ArgsRefused, match="'echo' is called with a dict"):
        echo(args)


def taking(parameters: str) -> object:
    scope: dict[str, object] = {}
    exec(f"def main({parameters}): return {{}}", scope)
    return scope["main"]


@pytest.mark.parametrize("parameters", ["", "event", "args, more", "*args", "**args", "args, *more", "*, args"])
def test_other_parameters_are_refused_at_decoration(parameters: str) -> None:
    with pytest.raises(FunctionRefused, match="exactly one parameter, named args"):
        keynet_function("f")(taking(parameters))


@pytest.mark.parametrize("parameters", ["args", "args, /", "args={}", "args: dict"])
def test_one_parameter_named_args_is_taken_however_it_is_written(parameters: str) -> None:
    assert keynet_function("f")(taking(parameters))({}) == {}


def test_an_asynchronous_function_is_refused_with_the_way_around() -> None:
    async def main(args: dict) -> dict:
        return args

    with pytest.raises(FunctionRefused, match="asynchronous") as caught:
        keynet_function("f")(main)
    assert "asyncio.run" in str(caught.value.hint)


def test_a_class_is_refused_at_decoration() -> None:
    class Main:
        def __init__(self, args: dict) -> None: ...

    with pytest.raises(FunctionRefused, match="decorates a function"):
        keynet_function("f")(Main)


@pytest.mark.parametrize("name", ["", "-x", "a b", "이미지", "a/b", "x" * 129, None, 3, "a\n"])
def test_a_name_that_cannot_be_deployed_is_refused_at_decoration(name: object) -> None:
    with pytest.raises(NameRefused, match="a function cannot be called"):
        keynet_function(name)


def test_a_decorator_without_its_name_is_told_how_to_write_it() -> None:
    with pytest.raises(NameRefused) as caught:

        @keynet_function
        def main(args: dict) -> dict:
            return {}

    assert "@keynet_function(" in str(caught.value.hint)


def returning(value: object) -> dict:
    @keynet_function("f")
    def main(args: dict) -> dict:
        return value

    return main({})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_whatever_json_carries_is_returned_as_it_is(value: dict) -> None:
    assert returning(value) is value


@pytest.mark.parametrize("value", [None, [], "text", np.zeros(2), 3])
def test_a_result_that_is_no_dict_is_refused(value: object) -> None:
    with pytest.raises(ResultRefused, match="a result is a dict"):
        returning(value)


@pytest.mark.parametrize(
    ("value", "place", "hint"),
    [
        ({"boxes": [{"at": np.zeros(2)}]}, "numpy.ndarray at result['boxes'][0]['at']", ".tolist()"),
        ({"score": np.float32(1)}, "numpy.float32 at result['score']", ".tolist()"),
        ({"image": b"png"}, "bytes at result['image']", "Storage"),
        ({"found": {1, 2}}, "set at result['found']", "None"),
    ],
)
def test_a_value_json_cannot_carry_is_refused_with_its_place(value: dict, place: str, hint: str) -> None:
    with pytest.raises(ResultRefused) as caught:
        returning(value)

    assert place in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_numbers_json_does_not_have_are_refused(number: float) -> None:
    with pytest.raises(ResultRefused, match=r"at result\['scores'\]\[1\]: JSON has no such number"):
        returning({"scores": [1.0, number]})


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(ResultRefused, match=r"the key 1 at result\['classes'\]"):
        returning({"classes": {1: "cat"}})


def test_a_result_that_holds_itself_is_refused() -> None:
    value: dict[str, object] = {}
    value["self"] = value

    with pytest.raises(ResultRefused, match="in themselves"):
        returning(value)


def test_leaving_the_process_is_an_error_of_the_function() -> None:
    @keynet_function("leaving")
    def leaving(args: dict) -> dict:
        sys.exit(3)

    with pytest.raises(FunctionExited, match=r"'leaving' called sys.exit\(3\)"):
        leaving({})
