"""``python -m racnn``."""

from racnn.cli import main

main()
