"""python -m gokamsg: the same as the installed command."""

from gokamsg.cli import main

if __name__ == "__main__":
    main()
