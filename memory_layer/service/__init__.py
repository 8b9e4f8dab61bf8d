"""Use cases: plain async functions ``(installation, caller, request) -> answer`` that every door calls the same way."""
