"""A plan for people and for GitOps: as a diff, as files, as a kustomize overlay. Pure."""
