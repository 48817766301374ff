"""Settings: typed, ranged, closed."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Settings, is_loopback, unknown_variables, without_password


def test_another_address_needs_keys() -> None:
    with pytest.raises(ValidationError, match="REBOUND_ADMIN_KEYS"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", admin_keys="secret").host == "0.0.0.0"
    assert Settings(host="0.0.0.0", keys_file="keys.toml").host == "0.0.0.0"
    assert Settings(host="0.0.0.0", without_keys=True).host == "0.0.0.0", "it is told so explicitly"
    with pytest.raises(ValidationError, match="leave one of them out"):
        Settings(without_keys=True, client_keys="secret")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("example.org")


def test_unknown_variables_are_named_with_the_nearest_known() -> None:
    (message,) = unknown_variables({"REBOUND_WORKER": "2", "REBOUND_PORT": "1", "OTHER": "x", "REBOUND_SIM_URL": "x"})
    assert message == "REBOUND_WORKER is no setting; did you mean REBOUND_WORKERS?"


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"workers": 0}, {"log_format": "xml"}, {"colour": 1}])
def test_values_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_keys_are_never_shown() -> None:
    settings = Settings(client_keys="one, two", admin_keys="three")
    assert [key.get_secret_value() for key in settings.client_keys] == ["one", "two"]
    assert not {"one", "two", "three"} & set(repr(settings).replace("'", " ").split())
    with pytest.raises(ValidationError) as refused:
        Settings(host="0.0.0.0", client_keys="hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("redis://me:hun@ter2@host", "redis://***@host"),
        ("redis://host/0?password=hunter2&db=1", "redis://host/0?password=***&db=1"),
        ("unix:///run/redis@home.sock", "unix:///run/redis@home.sock"),
        ("redis://host:6379/0", "redis://host:6379/0"),
    ],
)
def test_the_password_of_redis_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert "hunter2" not in repr(Settings(redis_url=url))
