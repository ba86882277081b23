# SPDX-License-Identifier: Apache-2.0
"""Measurements of pagedserve and its peers: `python -m bench --help`. Nothing in pagedserve imports this package."""
