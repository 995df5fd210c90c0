"""Tests that look at one running example mesh and leave it as it is."""
