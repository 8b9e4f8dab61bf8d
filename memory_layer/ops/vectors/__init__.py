"""The index beside its truth: compared, replayed, repaired, kept and brought back."""
