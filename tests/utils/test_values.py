import numpy as np
import pytest

from ginseng.utils.values import require_integer, require_number


@pytest.mark.parametrize("value", [1, 7, np.int64(1), np.uint8(7)])
def test_integers(value):
    require_integer("size", value, 1, below=8)


@pytest.mark.parametrize("value", [0, 8, 2.0, 2.5, np.float64(2), True, "2", None])
def test_what_is_no_such_integer(value):
    with pytest.raises(ValueError, match=r"`size` must be an integer in \[1, 8\), but got "):
        require_integer("size", value, 1, below=8)


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1]"), (1, "[0, 1]"), (np.float32(0.5), "(0, 1)"), (np.inf, "(0, inf]"), (np.array(3), "[0, inf)")],
)
def test_numbers(value, interval):
    require_number("share", value, interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "(0, 1]"), (1, "[0, 1)"), (np.inf, "[0, inf)"), (-1, "[0, inf)")]
    + [(value, "[0, 1]") for value in (np.nan, "a", None, True, np.True_, [0.5, 0.5], np.array([0.5, 0.5]))],
)
def test_what_is_no_such_number(value, interval):
    with pytest.raises(ValueError, match="`share` must lie in .0, .*, but got"):
        require_number("share", value, interval)
