"""What we measure: plain functions on a model or on records. Import from its modules."""
