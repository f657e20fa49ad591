"""Plan, measure, plan again: the choice among plans by what the compressed network does."""
