"""Tools for looking at runs: their logs as arrays, statistics, and one style for all figures."""
