# SPDX-License-Identifier: Apache-2.0
"""The command line: `pagedserve generate | chat | demo | doctor | explain`."""

from pagedserve.cli.main import main

__all__ = ["main"]
