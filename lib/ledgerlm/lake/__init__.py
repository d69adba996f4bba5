"""Delta tables: schemas, reads at a version, idempotent writes."""
