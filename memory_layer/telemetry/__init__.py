"""What the product says of itself to an operator: its metrics and its log."""
