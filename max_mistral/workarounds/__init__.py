"""What MAX 26.7 gets wrong, or does slowly, gone around: CONTRIBUTING lists it."""
