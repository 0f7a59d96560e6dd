"""querykey: contrastive learning as dictionary look-up."""
