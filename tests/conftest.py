# SPDX-License-Identifier: Apache-2.0
"""What every test shares: tests that download packages run on request alone, and Ctrl-C works in child processes."""

import os
import signal

import pytest


def pytest_configure():
    # Shells start background jobs with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if os.environ.get("PAGEDSERVE_TEST_DOWNLOAD") == "1":
        return
    skip = pytest.mark.skip(reason="downloads packages: set PAGEDSERVE_TEST_DOWNLOAD=1")
    for item in items:
        if "download" in item.keywords:
            item.add_marker(skip)
