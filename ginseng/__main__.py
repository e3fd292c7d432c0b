"""``python -m ginseng``."""

from ginseng.cli import main

main()
