"""One typed view per kind of object. A view takes what can be used and notes the rest as faults."""
