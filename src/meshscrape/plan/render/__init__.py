"""Render a plan as a diff, as files or as kustomize overlays. Pure."""
