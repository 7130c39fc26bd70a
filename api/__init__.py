"""The edges: REST service, command line, jobs and dashboard. The only package that puts the others together."""
