"""Prove from outside which clients can read which ports: probes observe, checks judge (pure), reports tell.

`matrix` plans what to try from the status document, `probes` tries it and says exactly what came back,
`checks` compares that with what should have come. Nothing here starts, stops or changes a mesh.
"""
