"""Data sets: rows of text, prepared ones on disk, batches of them."""

FORMAT = 1
"""Version of the files of a prepared data set; a reader refuses others."""
