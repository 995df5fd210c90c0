"""A report as one HTML page with a picture of the mesh (pure)."""
