"""A family of models that the package does not know: two files, as CONTRIBUTING.md says."""
