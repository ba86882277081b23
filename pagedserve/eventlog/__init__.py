# SPDX-License-Identifier: Apache-2.0
"""What a scheduler was told and what it decided, as a file: written as it happens, replayed bit for bit."""
