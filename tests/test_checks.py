"""Errors of wrong arguments: who, what, the rule and the value."""

from numbers import Integral

import numpy as np
import pytest

from kopt._checks import check_choice, check_range, needs_tensorflow


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [("[0, 1)", [0, 0.5], [-0.1, 1, float("nan")]), ("(-inf, 0]", [-5, 0.0], [0.1]), ("(0, inf)", [1e-9, 7], [0])],
)
def test_a_range_includes_what_its_brackets_say(interval, inside, outside):
    for value in inside:
        assert check_range("Who", interval, what=value) == value
    for value in outside:
        with pytest.raises(ValueError, match=r"^Who: what must be a number in .*, got"):
            check_range("Who", interval, what=value)


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_a_range_takes_numbers_only(value):
    with pytest.raises(TypeError, match=r"^Who: what must be a number in"):
        check_range("Who", "[0, 1]", what=value)


def test_an_integer_is_asked_for():
    assert check_range("Who", "[1, inf)", kind=Integral, what=np.int64(3)) == 3
    with pytest.raises(TypeError, match=r"^Who: what must be an integer in \[1, inf\), got 1\.0\.$"):
        check_range("Who", "[1, inf)", kind=Integral, what=1.0)


def test_a_choice_is_one_of_the_choices():
    assert check_choice("Who", ("a", "b"), what="b") == "b"
    with pytest.raises(ValueError, match=r"^Who: what must be one of True, False, got 1\.$"):
        check_choice("Who", (True, False), what=1)


def test_without_tensorflow_the_extras_are_named():
    with (
        pytest.raises(ModuleNotFoundError, match=r"^Who needs TensorFlow, .* Install one of kopt\[tensorflow\], "),
        needs_tensorflow("Who"),
    ):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
    with pytest.raises(ModuleNotFoundError, match=r"^other$"), needs_tensorflow("Who"):
        raise ModuleNotFoundError("other", name="other")
