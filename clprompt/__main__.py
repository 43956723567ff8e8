"""`python -m clprompt` is the command `clprompt`."""

from clprompt.cli.main import entry

if __name__ == "__main__":
    entry()
