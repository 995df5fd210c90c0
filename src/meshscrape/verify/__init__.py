"""Prove from outside which clients can read which ports: probes observe, checks judge (pure), reports tell.

`registry` has the checks and `questions` where each is asked. `probes` visits the ports and returns exactly
what came back; `judges` compares that with what should have come. Nothing here starts, stops or changes a
mesh.
"""
