"""Settings: typed, ranged, closed."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from service.settings import Settings, is_loopback, unknown_variables


def test_another_address_needs_keys() -> None:
    with pytest.raises(ValidationError, match="REBOUND_ADMIN_KEYS"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", admin_keys="secret").host == "0.0.0.0"
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("example.org")


def test_unknown_variables_are_named_with_the_nearest_known() -> None:
    (message,) = unknown_variables({"REBOUND_WORKER": "2", "REBOUND_PORT": "1", "OTHER": "x"})
    assert message == "REBOUND_WORKER is no setting; did you mean REBOUND_WORKERS?"


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"workers": 0}, {"log_format": "xml"}, {"colour": 1}])
def test_values_are_checked(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_keys_are_never_shown() -> None:
    settings = Settings(client_keys="one, two", admin_keys="three")
    assert [key.get_secret_value() for key in settings.client_keys] == ["one", "two"]
    assert not {"one", "two", "three"} & set(repr(settings).replace("'", " ").split())


def test_the_command_lists_what_is_wrong() -> None:
    env = {"REBOUND_WORKER": "2", "REBOUND_PORT": "many", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-m", "service", "serve"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "REBOUND_WORKER is no setting" in done.stderr
    assert "REBOUND_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_api_worker_does_not_import_torch() -> None:
    code = "import sys, service.cli, service.api.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
