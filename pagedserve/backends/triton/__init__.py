# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, and the three ways to run them: on a GPU, interpreted on CPU tensors, compiled ahead of time.

Importing this package needs Triton; where there is none, or one that cannot run these kernels, it raises
BackendUnavailable with the reason, which the table of backends passes on.
"""

from pagedserve.backends.triton.version import require

require()
