"""The exception tree and the sizes that raise it."""

from __future__ import annotations

import pickle

import pytest

import kvlab
from kvlab import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_a_kvlab_error_and_exported(error: type[errors.KvlabError]) -> None:
    assert issubclass(error, kvlab.KvlabError)
    assert getattr(kvlab, error.__name__) is error
    assert error.__name__ in kvlab.__all__


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_prints_as_its_bare_message_and_survives_pickling(
    error: type[errors.KvlabError],
) -> None:
    raised = error("sequence 7 is unknown")
    assert str(raised) == "sequence 7 is unknown"
    again = pickle.loads(pickle.dumps(raised))  # noqa: S301 (made one line above)
    assert type(again) is error
    assert str(again) == str(raised)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidArgumentError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.NotFoundError, KeyError),
        (errors.StoreIOError, OSError),
        (errors.StoreTimeoutError, TimeoutError),
    ],
)
def test_built_in_handlers_catch(error: type[errors.KvlabError], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


def test_an_operating_system_error_keeps_its_number() -> None:
    raised = errors.StoreIOError(28, "write /cache: no space left")
    assert raised.errno == 28
    assert str(raised) == "write /cache: no space left"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0), (4096, 4096), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5GB", 1_500_000_000)],
)
def test_sizes_are_read(size: int | str, expected: int) -> None:
    assert kvlab.parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GiB", "-1", "12 parsecs", -1, 1 << 64])
def test_a_size_that_cannot_be_is_named_in_the_error(size: int | str) -> None:
    with pytest.raises(kvlab.InvalidArgumentError) as caught:
        kvlab.parse_size(size)
    assert str(size) in str(caught.value)


@pytest.mark.parametrize("size", [True, 1.5, None, b"1"])
def test_a_size_of_another_type_is_a_type_error(size: object) -> None:
    with pytest.raises(TypeError, match="a size is an int or a string"):
        kvlab.parse_size(size)  # type: ignore[arg-type]
