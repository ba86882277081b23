# SPDX-License-Identifier: Apache-2.0
"""The kernels, one op a file: plain Triton, and nothing of torch."""
