"""One data set, or one layout of files, a module; each registers itself by name."""
