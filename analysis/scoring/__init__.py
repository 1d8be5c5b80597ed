"""Predictions against annotations: the dataset, matching of phrases to categories, metrics, chance."""
