"""A report as one page and its picture. Pure."""
