"""What the runbook does: each line of it is a function that runs, judges and reports."""
