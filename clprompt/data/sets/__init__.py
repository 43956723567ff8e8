"""One data set, or one layout of files, a module; each registers itself by name.

A module may register two names for the two forms of the same files: ``csv`` and ``npz`` hold one label for
each image, ``multi_label_csv`` and ``multi_label_npz`` a set of labels; their arguments are the same.
"""
