"""Arrays in, scores out: scikit-learn estimators."""
