"""Names of classes as every reader compares them."""

import unicodedata


def class_name(text: str) -> str:
    """A class's name in Unicode's composed form (NFC): what looks the same and is meant to be is one class.

    A Mac's file system writes the é of a folder as two characters, most tables write it as one.
    """
    return unicodedata.normalize("NFC", text)
