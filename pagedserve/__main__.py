# SPDX-License-Identifier: Apache-2.0
"""`python -m pagedserve` is `pagedserve`."""

from pagedserve.cli import main

raise SystemExit(main())
