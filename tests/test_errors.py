"""Every error keeps its class and message across pickling, and its place in the tree."""

import inspect
import pickle

import pytest

from skylevel import errors

ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
ALSO = {
    "SettingsError": ValueError,
    "ShapeError": ValueError,
    "NoBackgroundError": ValueError,
    "UnreadableFrameError": OSError,
    "UnsupportedFrameError": ValueError,
    "PlanError": ValueError,
}


def test_the_tree_holds_the_agreed_errors():
    named = {cls.__name__ for cls in ERRORS}
    assert named >= {"SkylevelError", "StoreError", "ClusterError", *ALSO}


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_is_a_skylevel_error(cls):
    assert issubclass(cls, errors.SkylevelError)
    assert cls.__doc__


@pytest.mark.parametrize(("name", "builtin"), ALSO.items())
def test_an_error_is_also_what_python_calls_it(name, builtin):
    with pytest.raises(builtin, match=r"x_cal\.fits"):
        raise getattr(errors, name)("x_cal.fits: no")


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_the_way_back_from_a_worker(cls, protocol):
    error = cls("x_cal.fits: truncated at byte 100; fetch it again")
    error.__cause__ = KeyError("inner")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is cls
    assert str(back) == "x_cal.fits: truncated at byte 100; fetch it again"
    assert back.args == error.args
