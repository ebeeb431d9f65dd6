"""Measuring what features are worth: a task on a store, scored under heads beside its controls."""
