"""Measurements: speed against the floor, and comparisons over paired seeds; all timing is done here."""
