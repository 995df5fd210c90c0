"""The example mesh: its manifest (mesh.yaml) and the applications it runs."""
