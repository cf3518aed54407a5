"""Teaching a small network what a large one does: losses, and what they need.

Pure functions; who calls them trains.
"""
