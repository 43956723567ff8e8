"""`python -m clprompt` is the command `clprompt`."""

from clprompt.system.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before the import of anything that takes time
    from clprompt.cli.main import entry

    entry()
