"""Shows the values in the failed assertions of the conformance suite's checks."""

import pytest

pytest.register_assert_rewrite("tests.policies.conformance")
