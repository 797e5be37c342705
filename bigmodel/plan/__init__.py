"""Plans: what a run or a study costs, before it starts."""
