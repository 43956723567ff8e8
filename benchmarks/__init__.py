"""Measurements: speed against the floor, and comparisons over paired seeds. Nothing else in the project times anything."""
