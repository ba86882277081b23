# SPDX-License-Identifier: Apache-2.0
"""What every test shares: tests that download packages run on request alone."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("PAGEDSERVE_TEST_DOWNLOAD") == "1":
        return
    skip = pytest.mark.skip(reason="downloads packages: set PAGEDSERVE_TEST_DOWNLOAD=1")
    for item in items:
        if "download" in item.keywords:
            item.add_marker(skip)
