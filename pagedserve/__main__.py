# SPDX-License-Identifier: Apache-2.0
"""`python -m pagedserve` is `pagedserve`."""

from pagedserve.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
