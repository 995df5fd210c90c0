"""One typed view per kind of object. A view keeps the usable fields and notes the others as faults."""
