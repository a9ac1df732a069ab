"""`python -m sparrow` is the `sparrow` command."""

import sys

from sparrow.cli.main import main

sys.exit(main())
